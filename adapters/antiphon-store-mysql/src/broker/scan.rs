//! Reading messages: what is new in the logs, what was waiting, what a lane left open.

use std::sync::Arc;

use antiphon_core::Timestamp;
use antiphon_messaging::{Message, row};
use antiphon_sqlbroker::{At, Broken, Found, Inheritance, Ready, Taken, Topic, WaitingRow, Wanted};
use bytes::Bytes;
use sqlx::mysql::MySqlRow;
use sqlx::{MySqlConnection, Row};

use super::lanes::{lane, rows};
use crate::sql::{Answer, Sql, run};

type Result<T> = std::result::Result<T, sqlx::Error>;

/// Reads new messages of each topic, and the waiting ones that are due, in one round trip.
///
/// The heads are read first. A later statement sees at least everything up to them, and since
/// positions become visible in their order, everything up to the last one that it finds.
pub(super) async fn scan(connection: &mut MySqlConnection, wanted: &Wanted) -> Result<Found> {
    let mut found = Found { ends: vec![None; wanted.topics.len()], ..Found::default() };
    // Topics that no lane wants are left out.
    let indexes: Vec<usize> =
        (0..wanted.topics.len()).filter(|index| wanted.scan.wants(*index)).collect();
    if indexes.is_empty() && wanted.due.is_empty() {
        return Ok(found);
    }
    let mut sql = Sql::new("SELECT id, head FROM antiphon_mq_topic WHERE id IN (0");
    for index in &indexes {
        sql.sql(",").number(wanted.topics[*index].id);
    }
    sql.sql(")");
    for index in &indexes {
        ask_topic(&mut sql, wanted, *index);
    }
    if !wanted.due.is_empty() {
        sql.sql("; SELECT topic, seq, lane, id, kind, head, body, attempts ");
        sql.sql("FROM antiphon_mq_waiting WHERE grp = ").number(wanted.group);
        sql.sql(" AND (topic, seq) IN (").list(",", &wanted.due, |sql, at| {
            sql.sql("(").number(wanted.topics[at.topic].id).sql(",").number(at.seq).sql(")");
        });
        sql.sql(")");
    }
    let answers = run(connection, sql).await?;
    for (position, index) in indexes.iter().enumerate() {
        let id = wanted.topics[*index].id;
        let mut head = 0;
        for row in rows(&answers, 0) {
            if row.try_get::<i64, _>(0)? == id {
                head = row.try_get(1)?;
            }
        }
        read_topic(rows(&answers, position + 1), wanted, *index, head, &mut found)?;
    }
    if !wanted.due.is_empty() {
        read_due(rows(&answers, indexes.len() + 1), wanted, &mut found)?;
    }
    Ok(found)
}

/// Only messages of lanes that are wanted, beyond what each lane has seen.
fn ask_topic(sql: &mut Sql, wanted: &Wanted, index: usize) {
    let scan = &wanted.scan;
    sql.sql("; SELECT seq, lane, id, kind, head, body FROM antiphon_mq_log FORCE INDEX (PRIMARY)");
    sql.sql(" WHERE topic = ").number(wanted.topics[index].id);
    sql.sql(" AND seq > ").number(scan.after[index]);
    let behind = |after: &i64| *after == scan.after[index];
    if !scan.wanted[index].iter().all(behind) {
        sql.sql(" AND seq > CASE lane");
        for (lane, after) in (0_u32..).zip(scan.wanted[index]) {
            sql.sql(" WHEN ").number(lane).sql(" THEN ").number(after);
        }
        sql.sql(" END");
    }
    let limit = i64::try_from(wanted.limit).unwrap_or(i64::MAX);
    sql.sql(" ORDER BY seq LIMIT ").number(limit);
}

fn read_topic(
    rows: &[MySqlRow],
    wanted: &Wanted,
    index: usize,
    head: i64,
    found: &mut Found,
) -> Result<()> {
    let topic = &wanted.topics[index];
    let mut last = 0;
    for row in rows {
        let (at, lane) = (At { topic: index, seq: row.try_get(0)? }, lane(row, 1)?);
        last = at.seq;
        match message(row, 2, topic) {
            Ok(message) => found.ready.push(Ready::new(lane, at, message)),
            Err(error) => found.broken.push(Broken { lane, at, error }),
        }
    }
    let full = rows.len() >= wanted.limit;
    let end = if full { last } else { head.max(last) };
    found.more |= full;
    found.ends[index] = (end > wanted.scan.after[index]).then_some(end);
    Ok(())
}

fn read_due(rows: &[MySqlRow], wanted: &Wanted, found: &mut Found) -> Result<()> {
    let mut gone = wanted.due.clone();
    for row in rows {
        let (id, seq): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let asked = gone.iter().position(|at| at.seq == seq && wanted.topics[at.topic].id == id);
        let Some(at) = asked.map(|asked| gone.swap_remove(asked)) else { continue };
        let lane = lane(row, 2)?;
        match message(row, 3, &wanted.topics[at.topic]) {
            Ok(message) => {
                let attempts = u32::try_from(row.try_get::<i64, _>(7)?).unwrap_or(u32::MAX);
                found.due.push(Ready::again(lane, at, attempts, message));
            }
            Err(error) => found.due_broken.push(Broken { lane, at, error }),
        }
    }
    found.gone.extend(gone);
    Ok(())
}

/// Reads what lanes have waiting and open.
pub(super) async fn inherit(
    connection: &mut MySqlConnection,
    group: i64,
    topics: &[Topic],
    taken: &[Taken],
) -> Result<Vec<Inheritance>> {
    let lanes: Vec<u32> = taken.iter().map(|taken| taken.lane).collect();
    let mut sql = Sql::default();
    ask_waiting(&mut sql, group, &lanes);
    let answers = run(connection, sql).await?;
    let mut inherited: Vec<Inheritance> = read_waiting(&answers, topics, &lanes)?
        .into_iter()
        .map(|waiting| Inheritance { waiting, ..Inheritance::default() })
        .collect();
    let mut open: Vec<(usize, At)> = Vec::new();
    for (index, taken) in taken.iter().enumerate() {
        for (topic, (_, positions)) in taken.cursors.iter().enumerate() {
            open.extend(positions.iter().map(|seq| (index, At { topic, seq: *seq })));
        }
    }
    // By parts, so that no answer is without bound.
    for part in open.chunks(256) {
        let mut sql = Sql::new(
            "SELECT topic, seq, id, kind, head, body FROM antiphon_mq_log WHERE (topic, seq) IN (",
        );
        sql.list(",", part, |sql, (_, at)| {
            sql.sql("(").number(topics[at.topic].id).sql(",").number(at.seq).sql(")");
        });
        sql.sql(")");
        let answers = run(connection, sql).await?;
        for row in rows(&answers, 0) {
            let (id, seq): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            let of = |(_, at): &&(usize, At)| at.seq == seq && topics[at.topic].id == id;
            let Some((index, at)) = part.iter().find(of) else { continue };
            let lane = taken[*index].lane;
            match message(row, 2, &topics[at.topic]) {
                Ok(message) => inherited[*index].again.push(Ready::new(lane, *at, message)),
                Err(error) => inherited[*index].broken.push(Broken { lane, at: *at, error }),
            }
        }
    }
    Ok(inherited)
}

/// Asks for the waiting messages of lanes, without their contents.
pub(super) fn ask_waiting(sql: &mut Sql, group: i64, lanes: &[u32]) {
    sql.sql("SELECT lane, topic, seq, `key`, due FROM antiphon_mq_waiting WHERE grp = ");
    sql.number(group).sql(" AND lane IN (-1");
    for lane in lanes {
        sql.sql(",").number(*lane);
    }
    sql.sql(")");
}

/// Reads what [`ask_waiting`] has asked.
pub(super) fn read_waiting(
    answers: &[Answer],
    topics: &[Topic],
    lanes: &[u32],
) -> Result<Vec<Vec<WaitingRow>>> {
    let mut waiting: Vec<Vec<WaitingRow>> = lanes.iter().map(|_| Vec::new()).collect();
    for row in rows(answers, 0) {
        let (number, id) = (lane(row, 0)?, row.try_get::<i64, _>(1)?);
        let of_lane = lanes.iter().position(|lane| *lane == number);
        // Other topics of the group are read by other members.
        let topic = topics.iter().position(|topic| topic.id == id);
        if let (Some(of_lane), Some(topic)) = (of_lane, topic) {
            let at = At { topic, seq: row.try_get(2)? };
            let key: Vec<u8> = row.try_get(3)?;
            let key = String::from_utf8_lossy(&key).into_owned();
            waiting[of_lane].push((at, key, Timestamp::from_micros(row.try_get(4)?)));
        }
    }
    Ok(waiting)
}

/// The message in the columns id, kind, head, body, from `first` on.
fn message(
    row: &MySqlRow,
    first: usize,
    topic: &Topic,
) -> std::result::Result<Arc<Message>, String> {
    parts(row, first, topic.name.clone()).map(Arc::new)
}

/// See [`message`].
pub(super) fn parts(
    row: &MySqlRow,
    first: usize,
    topic: String,
) -> std::result::Result<Message, String> {
    let column = |index: usize| -> std::result::Result<Vec<u8>, String> {
        row.try_get(first + index).map_err(|error| error.to_string())
    };
    let id = row::decode_id(&column(0)?).map_err(|error| error.to_string())?;
    let kind = String::from_utf8(column(1)?)
        .map_err(|_| "the kind of the message is not UTF-8".to_owned())?;
    let body = Bytes::from(column(3)?);
    row::decode(id, topic, kind, &column(2)?, body).map_err(|error| error.to_string())
}
