//! The operator's view of dead letters.

use std::sync::Arc;

use antiphon_core::{BoxFuture, MessageId, Timestamp};
use antiphon_messaging::{
    Dead, DeadError, DeadFilter, DeadLetter, DeadLetters, DeadReason, Message,
};
use bytes::Bytes;
use rusqlite::{Connection, Result, Row, params};

use super::core::{Core, declare_topic, find};
use super::publish::lane;
use super::rows;
use super::writer::Failure;
use antiphon_messaging::row;

/// Rows that are looked at in one read, so that a filter that matches little blocks nobody.
const LOOK_AT_ONCE: usize = 1_000;

const COLUMNS: &str = "
SELECT grp.name, dead.id, topic.name, dead.key, dead.kind, dead.head, dead.body, dead.grp
  FROM dead JOIN grp ON grp.id = dead.grp JOIN topic ON topic.id = dead.topic";

pub(super) struct DeadRows(pub(super) Arc<Core>);

impl DeadLetters for DeadRows {
    fn list<'a>(
        &'a self,
        filter: &'a DeadFilter,
        after: Option<(&'a str, MessageId)>,
        count_max: usize,
    ) -> BoxFuture<'a, std::result::Result<Vec<DeadLetter>, DeadError>> {
        let mut after = after
            .map_or((String::new(), [0; 16]), |(group, id)| (group.to_owned(), *id.as_bytes()));
        Box::pin(async move {
            let mut letters = Vec::new();
            while letters.len() < count_max {
                let (group, from) = (filter.group.clone(), after.clone());
                let page = self.0.query(move |connection| page(connection, group, &from)).await;
                let page = page.map_err(error("listing"))?;
                let Some(last) = page.last() else { break };
                after = (last.group.clone(), *last.message.id.as_bytes());
                let matching = page.into_iter().filter(|letter| filter.matches(letter));
                letters.extend(matching.take(count_max - letters.len()));
            }
            Ok(letters)
        })
    }

    fn get<'a>(
        &'a self,
        group: &'a str,
        id: MessageId,
    ) -> BoxFuture<'a, std::result::Result<Option<DeadLetter>, DeadError>> {
        let group = group.to_owned();
        Box::pin(async move {
            let found = self.0.query(move |connection| {
                let sql = format!("{COLUMNS} WHERE grp.name = ? AND dead.id = ?");
                let mut statement = connection.prepare_cached(&sql)?;
                let mut rows = statement.query(params![group, id.as_bytes()])?;
                rows.next()?.map(|row| letter(connection, row)).transpose()
            });
            found.await.map_err(error("reading"))
        })
    }

    fn bury<'a>(
        &'a self,
        group: &'a str,
        message: &'a Message,
        reason: &'a DeadReason,
    ) -> BoxFuture<'a, std::result::Result<(), DeadError>> {
        let (group, message, reason) = (group.to_owned(), message.clone(), reason.clone());
        let at = self.0.now();
        Box::pin(async move {
            let answer = self
                .0
                .write(move |connection| bury(connection, &group, &message, &reason, at), |_| {});
            match answer.get().await.map_err(error("burying"))? {
                true => Ok(()),
                false => Err(DeadError {
                    action: "burying",
                    source: "the group was not declared at this broker".into(),
                }),
            }
        })
    }

    fn redrive<'a>(
        &'a self,
        group: &'a str,
        ids: &'a [MessageId],
    ) -> BoxFuture<'a, std::result::Result<usize, DeadError>> {
        self.change("redriving", group, ids, redrive)
    }

    fn discard<'a>(
        &'a self,
        group: &'a str,
        ids: &'a [MessageId],
    ) -> BoxFuture<'a, std::result::Result<usize, DeadError>> {
        self.change("discarding", group, ids, discard)
    }
}

impl DeadRows {
    fn change(
        &self,
        action: &'static str,
        group: &str,
        ids: &[MessageId],
        change: fn(&Connection, i64, MessageId) -> Result<bool>,
    ) -> BoxFuture<'_, std::result::Result<usize, DeadError>> {
        let (group, ids) = (group.to_owned(), ids.to_vec());
        Box::pin(async move {
            let wanted = group.clone();
            let number = self.0.query(move |connection| find(connection, "grp", &wanted)).await;
            let Some(number) = number.map_err(error(action))? else { return Ok(0) };
            let core = Arc::downgrade(&self.0);
            let answer = self.0.write(
                move |connection| {
                    let mut count = 0;
                    for id in ids {
                        count += usize::from(change(connection, number, id)?);
                    }
                    Ok(count)
                },
                move |_| {
                    if let Some(core) = core.upgrade() {
                        core.regrouped(number, "");
                    }
                },
            );
            answer.get().await.map_err(error(action))
        })
    }
}

/// Keeps a message that never was in a log: its position is one below those of the topic. Answers
/// whether there is such a group.
fn bury(
    connection: &Connection,
    group: &str,
    message: &Message,
    reason: &DeadReason,
    at: Timestamp,
) -> Result<bool> {
    let Some(group) = find(connection, "grp", group)? else { return Ok(false) };
    let topic = declare_topic(connection, &message.topic)?;
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

/// Gives a message back to its group: it waits, due at once, as a first attempt.
fn redrive(connection: &Connection, group: i64, id: MessageId) -> Result<bool> {
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

fn discard(connection: &Connection, group: i64, id: MessageId) -> Result<bool> {
    let id = id.as_bytes();
    let removed = connection
        .prepare_cached("DELETE FROM dead WHERE grp = ? AND id = ?")?
        .execute(params![group, id])?;
    connection
        .prepare_cached("DELETE FROM death WHERE grp = ? AND id = ?")?
        .execute(params![group, id])?;
    Ok(removed > 0)
}

fn page(
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

fn error(action: &'static str) -> impl Fn(Failure) -> DeadError {
    move |failure| DeadError { action, source: failure.into() }
}
