//! Dead letters.

use std::collections::{BTreeMap, HashMap};

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{Dead, DeadLetter, DeadReason, Message, row};
use antiphon_sqlbroker::lane;
use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::lanes::{number, stir};
use super::{scan, settle, topology};

type Result<T> = std::result::Result<T, sqlx::Error>;

/// Rows that are looked at in one read, so that a filter that matches little blocks nobody.
const LOOK_AT_ONCE: i64 = 500;

/// A page of the letters after this place.
pub(super) async fn page(
    connection: &mut PgConnection,
    group: Option<&str>,
    after: &(String, [u8; 16]),
) -> Result<Vec<DeadLetter>> {
    let rows = sqlx::query(
        "SELECT g.name, d.grp, t.name, d.key, d.id, d.kind, d.head, d.body
           FROM antiphon_mq_dead d
           JOIN antiphon_mq_group g ON g.id = d.grp
           JOIN antiphon_mq_topic t ON t.id = d.topic
          WHERE (g.name, d.id) > ($1, $2) AND ($3::text IS NULL OR g.name = $3)
          ORDER BY g.name, d.id LIMIT $4",
    )
    .bind(&after.0)
    .bind(after.1.as_slice())
    .bind(group)
    .bind(LOOK_AT_ONCE)
    .fetch_all(&mut *connection)
    .await?;
    letters(connection, &rows).await
}

/// One letter.
pub(super) async fn one(
    connection: &mut PgConnection,
    group: &str,
    id: MessageId,
) -> Result<Option<DeadLetter>> {
    let rows = sqlx::query(
        "SELECT g.name, d.grp, t.name, d.key, d.id, d.kind, d.head, d.body
           FROM antiphon_mq_dead d
           JOIN antiphon_mq_group g ON g.id = d.grp
           JOIN antiphon_mq_topic t ON t.id = d.topic
          WHERE g.name = $1 AND d.id = $2",
    )
    .bind(group)
    .bind(id.as_bytes().as_slice())
    .fetch_all(&mut *connection)
    .await?;
    Ok(letters(connection, &rows).await?.pop())
}

async fn letters(connection: &mut PgConnection, rows: &[PgRow]) -> Result<Vec<DeadLetter>> {
    let mut groups: Vec<i64> = Vec::with_capacity(rows.len());
    let mut ids: Vec<&[u8]> = Vec::with_capacity(rows.len());
    for row in rows {
        groups.push(row.try_get(1)?);
        ids.push(row.try_get(4)?);
    }
    let found = sqlx::query(
        "SELECT d.grp, d.id, d.code, d.error, d.attempts, d.at
           FROM unnest($1::bigint[], $2::bytea[]) AS l (grp, id)
           JOIN antiphon_mq_death d ON d.grp = l.grp AND d.id = l.id ORDER BY d.n",
    )
    .bind(groups)
    .bind(ids)
    .fetch_all(connection)
    .await?;
    let mut deaths: HashMap<(i64, Vec<u8>), Vec<Dead>> = HashMap::new();
    for row in &found {
        deaths.entry((row.try_get(0)?, row.try_get(1)?)).or_default().push(Dead {
            code: row.try_get(2)?,
            error: row.try_get(3)?,
            attempts: u32::try_from(row.try_get::<i64, _>(4)?).unwrap_or(u32::MAX),
            at: Timestamp::from_micros(row.try_get(5)?),
        });
    }
    let mut letters = Vec::with_capacity(rows.len());
    for row in rows {
        let of: (i64, Vec<u8>) = (row.try_get(1)?, row.try_get(4)?);
        letters.push(DeadLetter {
            group: row.try_get(0)?,
            message: message(row)?,
            deaths: deaths.remove(&of).unwrap_or_default(),
        });
    }
    Ok(letters)
}

/// A message that is dead because it is broken is shown as far as it can be.
fn message(row: &PgRow) -> Result<Message> {
    let topic: String = row.try_get(2)?;
    if let Ok(message) = scan::parts(row, 4, topic.clone()) {
        return Ok(message);
    }
    let text = |index: usize| -> Result<String> {
        Ok(String::from_utf8_lossy(row.try_get(index)?).into_owned())
    };
    Ok(Message {
        id: row::decode_id(row.try_get(4)?).unwrap_or(MessageId::from_bytes([0; 16])),
        topic,
        kind: text(5)?,
        source: String::new(),
        key: text(3)?,
        time: Timestamp::EPOCH,
        not_before: None,
        attributes: BTreeMap::new(),
        body: Bytes::copy_from_slice(row.try_get(7)?),
    })
}

/// Keeps a message that never was in a log: its position is one below those of the topic. Answers
/// whether there is such a group.
pub(super) async fn bury(
    connection: &mut PgConnection,
    group: &str,
    message: &Message,
    reason: &DeadReason,
    at: Timestamp,
) -> Result<bool> {
    let Some(group) = topology::group_locked(connection, group).await? else { return Ok(false) };
    let topic = topology::declare_topic(connection, &message.topic).await?;
    sqlx::query(
        "INSERT INTO antiphon_mq_dead (grp, id, topic, seq, lane, key, kind, head, body)
         SELECT $1, $2, $3,
                least((SELECT coalesce(min(seq), 0) FROM antiphon_mq_dead
                        WHERE grp = $1 AND topic = $3),
                      (SELECT coalesce(min(seq), 0) FROM antiphon_mq_waiting
                        WHERE grp = $1 AND topic = $3),
                      0) - 1,
                $4, $5, $6, $7, $8
         ON CONFLICT (grp, id) DO UPDATE
            SET topic = excluded.topic, lane = excluded.lane, key = excluded.key,
                kind = excluded.kind, head = excluded.head, body = excluded.body",
    )
    .bind(group)
    .bind(message.id.as_bytes().as_slice())
    .bind(topic)
    .bind(number(lane(message)))
    .bind(message.key.as_bytes())
    .bind(message.kind.as_bytes())
    .bind(row::encode_head(message))
    .bind(message.body.as_ref())
    .execute(&mut *connection)
    .await?;
    settle::note_death(connection, group, message.id, reason, at).await?;
    Ok(true)
}

/// Gives messages back to their group: they wait, due at once, as first attempts. Answers how many.
pub(super) async fn redrive(
    connection: &mut PgConnection,
    group: i64,
    ids: &[MessageId],
) -> Result<usize> {
    let moved = sqlx::query(
        "WITH gone AS (
             DELETE FROM antiphon_mq_dead WHERE grp = $1 AND id = ANY($2) RETURNING *
         )
         INSERT INTO antiphon_mq_waiting
             (grp, topic, seq, lane, key, due, attempts, id, kind, head, body)
         SELECT grp, topic, seq, lane, key, 0, 0, id, kind, head, body FROM gone
         ON CONFLICT (grp, topic, seq) DO UPDATE
            SET due = 0, attempts = 0, owner = '', id = excluded.id, kind = excluded.kind,
                head = excluded.head, body = excluded.body",
    )
    .bind(group)
    .bind(bytes(ids))
    .execute(&mut *connection)
    .await?;
    if moved.rows_affected() > 0 {
        stir(connection, group).await?;
    }
    Ok(usize::try_from(moved.rows_affected()).unwrap_or(usize::MAX))
}

/// Forgets letters; answers how many.
pub(super) async fn discard(
    connection: &mut PgConnection,
    group: i64,
    ids: &[MessageId],
) -> Result<usize> {
    let letters = "DELETE FROM antiphon_mq_dead WHERE grp = $1 AND id = ANY($2)";
    let gone = sqlx::query(letters).bind(group).bind(bytes(ids)).execute(&mut *connection).await?;
    let deaths = "DELETE FROM antiphon_mq_death d WHERE grp = $1 AND id = ANY($2)
                     AND NOT EXISTS (SELECT FROM antiphon_mq_waiting w
                                      WHERE w.grp = d.grp AND w.id = d.id)";
    sqlx::query(deaths).bind(group).bind(bytes(ids)).execute(connection).await?;
    Ok(usize::try_from(gone.rows_affected()).unwrap_or(usize::MAX))
}

fn bytes(ids: &[MessageId]) -> Vec<&[u8]> {
    ids.iter().map(|id| id.as_bytes().as_slice()).collect()
}
