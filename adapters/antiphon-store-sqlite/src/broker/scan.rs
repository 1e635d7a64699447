//! Reading messages: what is new in the logs, what was waiting, what a lane left open.

use std::collections::BTreeSet;
use std::sync::Arc;

use antiphon_core::Timestamp;
use antiphon_messaging::{Message, row};
use antiphon_sqlbroker::{At, Broken, Found, Inheritance, Ready, Taken, Topic, WaitingRow, Wanted};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Result, Row, params};

const COLUMNS: &str = "SELECT seq, lane, id, kind, head, body FROM log_";

/// Reads new messages of each topic, and the waiting ones that are due.
pub(super) fn scan(connection: &Connection, wanted: &Wanted) -> Result<Found> {
    let mut found = Found::default();
    for (index, topic) in wanted.topics.iter().enumerate() {
        let end = scan_topic(connection, index, topic, wanted, &mut found)?;
        found.ends.push(end);
    }
    for at in &wanted.due {
        let topic = &wanted.topics[at.topic];
        let read = connection
            .prepare_cached(
                "SELECT seq, lane, id, kind, head, body, attempts FROM waiting
                  WHERE grp = ? AND topic = ? AND seq = ?",
            )?
            .query_row(params![wanted.group, topic.id, at.seq], |row| {
                Ok((row.get(1)?, message(row, topic), row.get(6)?))
            })
            .optional()?;
        match read {
            Some((lane, Ok(message), attempts)) => {
                found.due.push(Ready::again(lane, *at, attempts, message));
            }
            Some((lane, Err(error), _)) => {
                found.due_broken.push(Broken { lane, at: *at, error });
            }
            None => found.gone.push(*at),
        }
    }
    Ok(found)
}

/// Reads one topic; answers how far.
fn scan_topic(
    connection: &Connection,
    index: usize,
    topic: &Topic,
    wanted: &Wanted,
    found: &mut Found,
) -> Result<Option<i64>> {
    let Wanted { scan, limit, .. } = wanted;
    if !scan.wants(index) {
        return Ok(None);
    }
    let mut statement =
        connection.prepare_cached(&format!("{COLUMNS}{} WHERE seq > ? ORDER BY seq", topic.id))?;
    let mut rows = statement.query([scan.after[index]])?;
    let (mut end, mut count) = (None, 0);
    while let Some(row) = rows.next()? {
        if count == *limit {
            found.more = true;
            break;
        }
        let (seq, lane): (i64, u32) = (row.get(0)?, row.get(1)?);
        end = Some(seq);
        let at = At { topic: index, seq };
        if !scan.is_wanted(lane, at) {
            continue;
        }
        count += 1;
        match message(row, topic) {
            Ok(message) => found.ready.push(Ready::new(lane, at, message)),
            Err(error) => found.broken.push(Broken { lane, at, error }),
        }
    }
    Ok(end)
}

/// Reads what a lane has waiting and open.
pub(super) fn inherit(
    connection: &Connection,
    group: i64,
    topics: &[Topic],
    taken: &Taken,
) -> Result<Inheritance> {
    let waiting = waiting(connection, group, topics, taken.lane)?;
    let (mut again, mut broken) = (Vec::new(), Vec::new());
    for (index, (topic, (_, open))) in topics.iter().zip(&taken.cursors).enumerate() {
        read_open(connection, index, topic, taken.lane, open, &mut again, &mut broken)?;
    }
    Ok(Inheritance { waiting, again, broken })
}

/// The waiting messages of a lane, without their contents.
pub(super) fn waiting(
    connection: &Connection,
    group: i64,
    topics: &[Topic],
    lane: u32,
) -> Result<Vec<WaitingRow>> {
    let mut statement = connection
        .prepare_cached("SELECT topic, seq, key, due FROM waiting WHERE grp = ? AND lane = ?")?;
    let mut rows = statement.query(params![group, lane])?;
    let mut waiting = Vec::new();
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        // Other topics of the group are read by other members.
        if let Some(topic) = topics.iter().position(|topic| topic.id == id) {
            let at = At { topic, seq: row.get(1)? };
            waiting.push((at, row.get(2)?, Timestamp::from_micros(row.get(3)?)));
        }
    }
    Ok(waiting)
}

fn read_open(
    connection: &Connection,
    index: usize,
    topic: &Topic,
    lane: u32,
    open: &BTreeSet<i64>,
    again: &mut Vec<Ready>,
    broken: &mut Vec<Broken>,
) -> Result<()> {
    let mut statement =
        connection.prepare_cached(&format!("{COLUMNS}{} WHERE seq = ?", topic.id))?;
    for seq in open {
        let at = At { topic: index, seq: *seq };
        match statement.query_row([seq], |row| Ok(message(row, topic))).optional()? {
            Some(Ok(message)) => again.push(Ready::new(lane, at, message)),
            Some(Err(error)) => broken.push(Broken { lane, at, error }),
            None => {}
        }
    }
    Ok(())
}

/// The message in the columns id, kind, head, body, from the third on.
fn message(row: &Row<'_>, topic: &Topic) -> std::result::Result<Arc<Message>, String> {
    let blob = |index| row.get_ref(index)?.as_bytes().map_err(rusqlite::Error::from);
    let read = || -> std::result::Result<Message, BadRow> {
        let id = row::decode_id(blob(2)?)?;
        let kind = row.get(3)?;
        let body = Bytes::copy_from_slice(blob(5)?);
        Ok(row::decode(id, topic.name.clone(), kind, blob(4)?, body)?)
    };
    read().map(Arc::new).map_err(|error| error.to_string())
}

#[derive(Debug, thiserror::Error)]
enum BadRow {
    #[error(transparent)]
    Column(#[from] rusqlite::Error),
    #[error(transparent)]
    Head(#[from] row::DecodeError),
}
