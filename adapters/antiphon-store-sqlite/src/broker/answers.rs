//! Answers that lie at an address until its process has taken them.

use antiphon_core::Timestamp;
use antiphon_messaging::Message;
use antiphon_messaging::row::{self, DecodeError};
use bytes::Bytes;
use rusqlite::{Connection, Result, Row, params};

pub(super) fn lay(
    connection: &Connection,
    address: &str,
    message: &Message,
    at: Timestamp,
) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO answer (address, at, topic, id, kind, head, body)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            address,
            at.as_micros(),
            message.topic,
            message.id.as_bytes(),
            message.kind,
            row::encode_head(message),
            message.body.as_ref(),
        ])
        .map(drop)
}

pub(super) fn are_there(connection: &Connection, addresses: &[String]) -> Result<bool> {
    let mut look = connection.prepare_cached("SELECT 1 FROM answer WHERE address = ? LIMIT 1")?;
    for address in addresses {
        if look.exists([address])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes them away. One that is broken is of no use, and goes as well.
pub(super) fn take(
    connection: &Connection,
    addresses: &[String],
) -> Result<Vec<(String, Message)>> {
    let mut taken = Vec::new();
    for address in addresses {
        let mut statement = connection.prepare_cached(
            "SELECT topic, id, kind, head, body FROM answer WHERE address = ? ORDER BY n",
        )?;
        let mut rows = statement.query([address])?;
        while let Some(row) = rows.next()? {
            match message(row)? {
                Ok(message) => taken.push((address.clone(), message)),
                Err(error) => tracing::error!(address, %error, "an answer is broken"),
            }
        }
        drop(rows);
        connection.prepare_cached("DELETE FROM answer WHERE address = ?")?.execute([address])?;
    }
    Ok(taken)
}

fn message(row: &Row<'_>) -> Result<std::result::Result<Message, DecodeError>> {
    let blob = |index| row.get_ref(index)?.as_bytes().map_err(rusqlite::Error::from);
    let (topic, kind): (String, String) = (row.get(0)?, row.get(2)?);
    let (id, head) = (blob(1)?, blob(3)?);
    let body = Bytes::copy_from_slice(blob(4)?);
    Ok(row::decode_id(id).and_then(|id| row::decode(id, topic, kind, head, body)))
}

pub(super) fn forget(connection: &Connection, before: Timestamp) -> Result<()> {
    connection
        .prepare_cached("DELETE FROM answer WHERE at < ?")?
        .execute([before.as_micros()])
        .map(drop)
}
