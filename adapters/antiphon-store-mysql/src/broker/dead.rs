//! Dead letters.

use std::collections::{BTreeMap, HashMap};

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{Dead, DeadLetter, DeadReason, Message, row};
use antiphon_sqlbroker::lane;
use bytes::Bytes;
use sqlx::mysql::MySqlRow;
use sqlx::{MySqlConnection, Row};

use super::lanes::{affected, number, rows, stir};
use super::{scan, settle, topology};
use crate::sql::{Sql, run, text};

type Result<T> = std::result::Result<T, sqlx::Error>;

/// Rows that are looked at in one read, so that a filter that matches little blocks nobody.
const LOOK_AT_ONCE: i64 = 500;

const SELECT: &str = "
SELECT g.name, d.grp, t.name, d.`key`, d.id, d.kind, d.head, d.body
  FROM antiphon_mq_dead d
  JOIN antiphon_mq_group g ON g.id = d.grp
  JOIN antiphon_mq_topic t ON t.id = d.topic WHERE ";

/// A page of the letters after this place.
pub(super) async fn page(
    connection: &mut MySqlConnection,
    group: Option<&str>,
    (after, id): &(String, [u8; 16]),
) -> Result<Vec<DeadLetter>> {
    let mut sql = Sql::new(SELECT);
    sql.sql("(g.name > ").value(after).sql(" OR (g.name = ").value(after);
    sql.sql(" AND d.id > ").value(id).sql("))");
    if let Some(group) = group {
        sql.sql(" AND g.name = ").value(group);
    }
    sql.sql(" ORDER BY g.name, d.id LIMIT ").number(LOOK_AT_ONCE);
    let answers = run(connection, sql).await?;
    letters(connection, rows(&answers, 0)).await
}

/// One letter.
pub(super) async fn one(
    connection: &mut MySqlConnection,
    group: &str,
    id: MessageId,
) -> Result<Option<DeadLetter>> {
    let mut sql = Sql::new(SELECT);
    sql.sql("g.name = ").value(group).sql(" AND d.id = ").value(id.as_bytes());
    let answers = run(connection, sql).await?;
    Ok(letters(connection, rows(&answers, 0)).await?.pop())
}

async fn letters(connection: &mut MySqlConnection, found: &[MySqlRow]) -> Result<Vec<DeadLetter>> {
    let mut of: Vec<(i64, Vec<u8>)> = Vec::with_capacity(found.len());
    for row in found {
        of.push((row.try_get(1)?, row.try_get(4)?));
    }
    if of.is_empty() {
        return Ok(Vec::new());
    }
    let mut sql =
        Sql::new("SELECT grp, id, code, error, attempts, at FROM antiphon_mq_death WHERE ");
    sql.sql("(grp, id) IN (").list(",", &of, |sql, (group, id)| {
        sql.sql("(").number(*group).sql(",").value(id).sql(")");
    });
    sql.sql(") ORDER BY n");
    let answers = run(connection, sql).await?;
    let mut deaths: HashMap<(i64, Vec<u8>), Vec<Dead>> = HashMap::new();
    for row in rows(&answers, 0) {
        deaths.entry((row.try_get(0)?, row.try_get(1)?)).or_default().push(Dead {
            code: text(row, 2)?,
            error: text(row, 3)?,
            attempts: u32::try_from(row.try_get::<i64, _>(4)?).unwrap_or(u32::MAX),
            at: Timestamp::from_micros(row.try_get(5)?),
        });
    }
    let mut letters = Vec::with_capacity(found.len());
    for (row, of) in found.iter().zip(of) {
        letters.push(DeadLetter {
            group: text(row, 0)?,
            message: message(row)?,
            deaths: deaths.remove(&of).unwrap_or_default(),
        });
    }
    Ok(letters)
}

/// A message that is dead because it is broken is shown as far as it can be.
fn message(row: &MySqlRow) -> Result<Message> {
    let topic = text(row, 2)?;
    if let Ok(message) = scan::parts(row, 4, topic.clone()) {
        return Ok(message);
    }
    let lossy = |index: usize| -> Result<String> {
        Ok(String::from_utf8_lossy(&row.try_get::<Vec<u8>, _>(index)?).into_owned())
    };
    let id: Vec<u8> = row.try_get(4)?;
    Ok(Message {
        id: row::decode_id(&id).unwrap_or(MessageId::from_bytes([0; 16])),
        topic,
        kind: lossy(5)?,
        source: String::new(),
        key: lossy(3)?,
        time: Timestamp::EPOCH,
        not_before: None,
        attributes: BTreeMap::new(),
        body: Bytes::from(row.try_get::<Vec<u8>, _>(7)?),
    })
}

/// Keeps a message that never was in a log: its position is one below those of the topic. Answers
/// whether there is such a group.
pub(super) async fn bury(
    connection: &mut MySqlConnection,
    group: &str,
    message: &Message,
    reason: &DeadReason,
    at: Timestamp,
) -> Result<bool> {
    let Some(group) = topology::group_locked(connection, group).await? else { return Ok(false) };
    let topic = topology::declare_topic(connection, &message.topic).await?;
    let mut sql = Sql::new("SELECT LEAST((SELECT COALESCE(MIN(seq), 0) FROM antiphon_mq_dead");
    sql.sql(" WHERE grp = ").number(group).sql(" AND topic = ").number(topic);
    sql.sql("), (SELECT COALESCE(MIN(seq), 0) FROM antiphon_mq_waiting WHERE grp = ");
    sql.number(group).sql(" AND topic = ").number(topic).sql("), 0) - 1");
    let seq = number(&run(connection, sql).await?, 0)?;
    let mut sql = Sql::new(
        "INSERT INTO antiphon_mq_dead (grp, id, topic, seq, lane, `key`, kind, head, body) VALUES (",
    );
    sql.number(group).sql(",").value(message.id.as_bytes()).sql(",").number(topic).sql(",");
    sql.number(seq).sql(",").number(lane(message)).sql(",").value(&message.key).sql(",");
    sql.value(&message.kind).sql(",").value(row::encode_head(message)).sql(",");
    sql.value(&message.body).sql(
        ") ON DUPLICATE KEY UPDATE topic = VALUES(topic), lane = VALUES(lane), \
         `key` = VALUES(`key`), kind = VALUES(kind), head = VALUES(head), body = VALUES(body); ",
    );
    settle::note_death(&mut sql, group, message.id, reason, at);
    run(connection, sql).await?;
    Ok(true)
}

/// Gives messages back to their group: they wait, due at once, as first attempts. Answers how many.
pub(super) async fn redrive(
    connection: &mut MySqlConnection,
    group: i64,
    ids: &[MessageId],
) -> Result<usize> {
    if ids.is_empty() {
        return Ok(0);
    }
    let mut sql = Sql::new(
        "INSERT INTO antiphon_mq_waiting \
         (grp, topic, seq, lane, `key`, due, attempts, id, kind, head, body) \
         SELECT grp, topic, seq, lane, `key`, 0, 0, id, kind, head, body FROM antiphon_mq_dead",
    );
    of_ids(&mut sql, group, ids);
    sql.sql(
        " ON DUPLICATE KEY UPDATE due = 0, attempts = 0, owner = '', id = VALUES(id), \
         kind = VALUES(kind), head = VALUES(head), body = VALUES(body); \
         DELETE FROM antiphon_mq_dead",
    );
    of_ids(&mut sql, group, ids);
    let moved = affected(&run(connection, sql).await?, 1);
    if moved > 0 {
        stir(connection, group).await?;
    }
    Ok(usize::try_from(moved).unwrap_or(usize::MAX))
}

/// Forgets letters; answers how many.
pub(super) async fn discard(
    connection: &mut MySqlConnection,
    group: i64,
    ids: &[MessageId],
) -> Result<usize> {
    if ids.is_empty() {
        return Ok(0);
    }
    let mut sql = Sql::new("DELETE FROM antiphon_mq_dead");
    of_ids(&mut sql, group, ids);
    sql.sql("; DELETE FROM antiphon_mq_death");
    of_ids(&mut sql, group, ids);
    // What waits again keeps its history.
    sql.sql(" AND id NOT IN (SELECT w.id FROM antiphon_mq_waiting w WHERE w.grp = ");
    sql.number(group).sql(" AND w.id IN (").list(",", ids, |sql, id| {
        sql.value(id.as_bytes());
    });
    sql.sql("))");
    let gone = affected(&run(connection, sql).await?, 0);
    Ok(usize::try_from(gone).unwrap_or(usize::MAX))
}

fn of_ids(sql: &mut Sql, group: i64, ids: &[MessageId]) {
    sql.sql(" WHERE grp = ").number(group).sql(" AND id IN (").list(",", ids, |sql, id| {
        sql.value(id.as_bytes());
    });
    sql.sql(")");
}
