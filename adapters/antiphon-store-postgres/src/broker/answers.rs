//! Answers that lie at an address until its process has taken them.

use antiphon_core::Timestamp;
use antiphon_messaging::{Message, row};
use sqlx::{PgConnection, Row};

use super::scan;

type Result<T> = std::result::Result<T, sqlx::Error>;

pub(super) async fn lay(
    connection: &mut PgConnection,
    address: &str,
    message: &Message,
    at: Timestamp,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO antiphon_mq_answer (address, at, topic, id, kind, head, body)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(address)
    .bind(at.as_micros())
    .bind(message.topic.as_bytes())
    .bind(message.id.as_bytes().as_slice())
    .bind(message.kind.as_bytes())
    .bind(row::encode_head(message))
    .bind(message.body.as_ref())
    .execute(connection)
    .await
    .map(drop)
}

pub(super) async fn are_there(connection: &mut PgConnection, addresses: &[String]) -> Result<bool> {
    sqlx::query("SELECT EXISTS (SELECT FROM antiphon_mq_answer WHERE address = ANY($1))")
        .bind(addresses)
        .fetch_one(connection)
        .await?
        .try_get(0)
}

/// Takes them away, in the order in which they were laid down. One that is broken is of no use, and
/// goes as well.
pub(super) async fn take(
    connection: &mut PgConnection,
    addresses: &[String],
) -> Result<Vec<(String, Message)>> {
    let rows = sqlx::query(
        "WITH gone AS (
             DELETE FROM antiphon_mq_answer WHERE address = ANY($1)
             RETURNING n, address, topic, id, kind, head, body
         )
         SELECT address, topic, id, kind, head, body FROM gone ORDER BY n",
    )
    .bind(addresses)
    .fetch_all(connection)
    .await?;
    let mut taken = Vec::with_capacity(rows.len());
    for row in &rows {
        let (address, topic): (String, &[u8]) = (row.try_get(0)?, row.try_get(1)?);
        match scan::parts(row, 2, String::from_utf8_lossy(topic).into_owned()) {
            Ok(message) => taken.push((address, message)),
            Err(error) => tracing::error!(address, error, "an answer is broken"),
        }
    }
    Ok(taken)
}

pub(super) async fn forget(connection: &mut PgConnection, before: Timestamp) -> Result<()> {
    sqlx::query("DELETE FROM antiphon_mq_answer WHERE at < $1")
        .bind(before.as_micros())
        .execute(connection)
        .await
        .map(drop)
}
