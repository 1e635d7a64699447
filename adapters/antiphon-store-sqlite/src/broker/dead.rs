//! Dead letters.

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{Dead, DeadLetter, DeadReason, Message, row};
use antiphon_sqlbroker::lane;
use bytes::Bytes;
use rusqlite::{Connection, Result, Row, params};

use super::{rows, topology};

/// Rows that are looked at in one read, so that a filter that matches little blocks nobody.
const LOOK_AT_ONCE: usize = 1_000;

const COLUMNS: &str = "
SELECT grp.name, dead.id, topic.name, dead.key, dead.kind, dead.head, dead.body, dead.grp
  FROM dead JOIN grp ON grp.id = dead.grp JOIN topic ON topic.id = dead.topic";

/// Keeps a message that never was in a log: its position is one below those of the topic. Answers
/// whether there is such a group.
pub(super) fn bury(
    connection: &Connection,
    group: &str,
    message: &Message,
    reason: &DeadReason,
    at: Timestamp,
) -> Result<bool> {
    let Some(group) = topology::find(connection, "grp", group)? else { return Ok(false) };
    let topic = topology::declare_topic(connection, &message.topic)?;
    let id = message.id.as_bytes();
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO dead (grp, id, topic, seq, lane, key, kind, head, body)
             SELECT ?1, ?2, ?3, min((SELECT coalesce(min(seq), 0) FROM dead WHERE topic = ?3),
                                    (SELECT coalesce(min(seq), 0) FROM waiting WHERE topic = ?3), 0) - 1,
                    ?4, ?5, ?6, ?7, ?8",
        )?
        .execute(params![
            group,
            id,
            topic,
            lane(message),
            message.key,
            message.kind,
            row::encode_head(message),
            message.body.as_ref(),
        ])?;
    rows::note_death(connection, group, id, reason, at)?;
    Ok(true)
}

/// Does something with each letter; answers for how many.
pub(super) fn change(
    connection: &Connection,
    group: i64,
    ids: &[MessageId],
    change: fn(&Connection, i64, MessageId) -> Result<bool>,
) -> Result<usize> {
    let mut count = 0;
    for id in ids {
        count += usize::from(change(connection, group, *id)?);
    }
    Ok(count)
}

/// Gives a message back to its group: it waits, due at once, as a first attempt.
pub(super) fn redrive(connection: &Connection, group: i64, id: MessageId) -> Result<bool> {
    let id = id.as_bytes();
    let moved = connection
        .prepare_cached(
            "INSERT OR REPLACE INTO waiting
                (grp, topic, seq, lane, key, due, attempts, id, kind, head, body)
             SELECT grp, topic, seq, lane, key, 0, 0, id, kind, head, body FROM dead
              WHERE grp = ? AND id = ?",
        )?
        .execute(params![group, id])?;
    if moved == 0 {
        return Ok(false);
    }
    connection
        .prepare_cached("DELETE FROM dead WHERE grp = ? AND id = ?")?
        .execute(params![group, id])?;
    rows::stir(connection)?;
    Ok(true)
}

pub(super) fn discard(connection: &Connection, group: i64, id: MessageId) -> Result<bool> {
    let id = id.as_bytes();
    let removed = connection
        .prepare_cached("DELETE FROM dead WHERE grp = ? AND id = ?")?
        .execute(params![group, id])?;
    connection
        .prepare_cached("DELETE FROM death WHERE grp = ? AND id = ?")?
        .execute(params![group, id])?;
    Ok(removed > 0)
}

/// A page of the letters after this place.
pub(super) fn page(
    connection: &Connection,
    group: Option<String>,
    after: &(String, [u8; 16]),
) -> Result<Vec<DeadLetter>> {
    let sql = format!(
        "{COLUMNS} WHERE (grp.name, dead.id) > (?1, ?2) AND (?3 IS NULL OR grp.name = ?3)
          ORDER BY grp.name, dead.id LIMIT {LOOK_AT_ONCE}"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![after.0, after.1, group])?;
    let mut letters = Vec::new();
    while let Some(row) = rows.next()? {
        letters.push(letter(connection, row)?);
    }
    Ok(letters)
}

/// One letter.
pub(super) fn one(
    connection: &Connection,
    group: &str,
    id: MessageId,
) -> Result<Option<DeadLetter>> {
    let sql = format!("{COLUMNS} WHERE grp.name = ? AND dead.id = ?");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![group, id.as_bytes()])?;
    rows.next()?.map(|row| letter(connection, row)).transpose()
}

fn letter(connection: &Connection, row: &Row<'_>) -> Result<DeadLetter> {
    let (id, topic): (Vec<u8>, String) = (row.get(1)?, row.get(2)?);
    let head: Vec<u8> = row.get_ref(5)?.as_bytes()?.to_vec();
    let body = Bytes::copy_from_slice(row.get_ref(6)?.as_bytes()?);
    let message_id = row::decode_id(&id).unwrap_or(MessageId::from_bytes([0; 16]));
    let kind: String = row.get(4)?;
    let message = row::decode(message_id, topic.clone(), kind.clone(), &head, body.clone());
    // A message that is dead because it is broken is shown as far as it can be.
    let message = message.unwrap_or_else(|_| Message {
        id: message_id,
        topic,
        kind,
        source: String::new(),
        key: row.get(3).unwrap_or_default(),
        time: Timestamp::EPOCH,
        not_before: None,
        attributes: std::collections::BTreeMap::new(),
        body,
    });
    let group: i64 = row.get(7)?;
    Ok(DeadLetter { group: row.get(0)?, message, deaths: deaths(connection, group, &id)? })
}

fn deaths(connection: &Connection, group: i64, id: &[u8]) -> Result<Vec<Dead>> {
    connection
        .prepare_cached(
            "SELECT code, error, attempts, at FROM death WHERE grp = ? AND id = ? ORDER BY rowid",
        )?
        .query_map(params![group, id], |row| {
            Ok(Dead {
                code: row.get(0)?,
                error: row.get(1)?,
                attempts: row.get(2)?,
                at: Timestamp::from_micros(row.get(3)?),
            })
        })?
        .collect()
}
