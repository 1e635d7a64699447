//! Reading messages: what is new in the logs, what was waiting, what a lane left open.

use std::sync::Arc;

use antiphon_core::Timestamp;
use antiphon_messaging::{LANES, Message, row};
use antiphon_sqlbroker::{At, Broken, Found, Inheritance, Ready, Taken, Topic, WaitingRow, Wanted};
use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::lanes::{lane, number};

type Result<T> = std::result::Result<T, sqlx::Error>;

/// New messages of all topics in one round trip: only those of lanes that are wanted, beyond what
/// each lane has seen. `$3` holds that, lane by lane, topic after topic. The head says how far a
/// topic was read when there are fewer messages than were asked for: both are of one snapshot.
const SCAN: &str = "
SELECT w.nth, t.head, l.seq, l.lane, l.id, l.kind, l.head, l.body
  FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS w (topic, after, nth)
  JOIN antiphon_mq_topic t ON t.id = w.topic
  LEFT JOIN LATERAL (
       SELECT seq, lane, id, kind, head, body FROM antiphon_mq_log
        WHERE topic = w.topic AND seq > w.after
          AND seq > ($3::bigint[])[(w.nth - 1) * $5 + lane + 1]
        ORDER BY seq LIMIT $4
       ) l ON true";

/// Reads new messages of each topic, and the waiting ones that are due.
pub(super) async fn scan(connection: &mut PgConnection, wanted: &Wanted) -> Result<Found> {
    let mut found = Found { ends: vec![None; wanted.topics.len()], ..Found::default() };
    // Topics that no lane wants are left out.
    let indexes: Vec<usize> =
        (0..wanted.topics.len()).filter(|index| wanted.scan.wants(*index)).collect();
    if !indexes.is_empty() {
        scan_logs(connection, wanted, &indexes, &mut found).await?;
    }
    if !wanted.due.is_empty() {
        read_due(connection, wanted, &mut found).await?;
    }
    Ok(found)
}

async fn scan_logs(
    connection: &mut PgConnection,
    wanted: &Wanted,
    indexes: &[usize],
    found: &mut Found,
) -> Result<()> {
    let scan = &wanted.scan;
    let rows = sqlx::query(SCAN)
        .bind(indexes.iter().map(|index| wanted.topics[*index].id).collect::<Vec<i64>>())
        .bind(indexes.iter().map(|index| scan.after[*index]).collect::<Vec<i64>>())
        .bind(indexes.iter().flat_map(|index| scan.wanted[*index]).collect::<Vec<i64>>())
        .bind(i64::try_from(wanted.limit).unwrap_or(i64::MAX))
        .bind(i64::from(LANES))
        .fetch_all(connection)
        .await?;
    let mut heads = vec![0; indexes.len()];
    let mut read: Vec<Vec<(i64, PgRow)>> = indexes.iter().map(|_| Vec::new()).collect();
    for row in rows {
        let nth = usize::try_from(row.try_get::<i64, _>(0)? - 1).unwrap_or(usize::MAX);
        let (Some(head), Some(of_topic)) = (heads.get_mut(nth), read.get_mut(nth)) else {
            continue;
        };
        *head = row.try_get(1)?;
        if let Some(seq) = row.try_get::<Option<i64>, _>(2)? {
            of_topic.push((seq, row));
        }
    }
    for ((index, head), mut rows) in indexes.iter().zip(heads).zip(read) {
        let topic = &wanted.topics[*index];
        rows.sort_by_key(|(seq, _)| *seq);
        let full = rows.len() >= wanted.limit;
        let end = if full { rows.last().map_or(head, |(seq, _)| *seq) } else { head };
        found.more |= full;
        found.ends[*index] = (end > scan.after[*index]).then_some(end);
        for (seq, row) in rows {
            let (at, lane) = (At { topic: *index, seq }, lane(&row, 3)?);
            match message(&row, 4, topic) {
                Ok(message) => found.ready.push(Ready::new(lane, at, message)),
                Err(error) => found.broken.push(Broken { lane, at, error }),
            }
        }
    }
    Ok(())
}

async fn read_due(connection: &mut PgConnection, wanted: &Wanted, found: &mut Found) -> Result<()> {
    let topics = wanted.due.iter().map(|at| wanted.topics[at.topic].id);
    let rows = sqlx::query(
        "SELECT d.nth, w.lane, w.id, w.kind, w.head, w.body, w.attempts
           FROM unnest($2::bigint[], $3::bigint[]) WITH ORDINALITY AS d (topic, seq, nth)
           JOIN antiphon_mq_waiting w ON w.grp = $1 AND w.topic = d.topic AND w.seq = d.seq",
    )
    .bind(wanted.group)
    .bind(topics.collect::<Vec<i64>>())
    .bind(wanted.due.iter().map(|at| at.seq).collect::<Vec<i64>>())
    .fetch_all(connection)
    .await?;
    let mut there = vec![false; wanted.due.len()];
    for row in &rows {
        let nth = usize::try_from(row.try_get::<i64, _>(0)? - 1).unwrap_or(usize::MAX);
        let (Some(at), Some(there)) = (wanted.due.get(nth), there.get_mut(nth)) else { continue };
        *there = true;
        let lane = lane(row, 1)?;
        match message(row, 2, &wanted.topics[at.topic]) {
            Ok(message) => {
                let attempts = u32::try_from(row.try_get::<i32, _>(6)?).unwrap_or(0);
                found.due.push(Ready::again(lane, *at, attempts, message));
            }
            Err(error) => found.due_broken.push(Broken { lane, at: *at, error }),
        }
    }
    let gone = wanted.due.iter().zip(there).filter(|(_, there)| !there);
    found.gone.extend(gone.map(|(at, _)| *at));
    Ok(())
}

/// Reads what lanes have waiting and open.
pub(super) async fn inherit(
    connection: &mut PgConnection,
    group: i64,
    topics: &[Topic],
    taken: &[Taken],
) -> Result<Vec<Inheritance>> {
    let lanes: Vec<u32> = taken.iter().map(|taken| taken.lane).collect();
    let waiting = waiting(connection, group, topics, &lanes).await?;
    let mut inherited: Vec<Inheritance> = waiting
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
        let rows = sqlx::query(
            "SELECT o.nth, l.id, l.kind, l.head, l.body
               FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS o (topic, seq, nth)
               JOIN antiphon_mq_log l ON l.topic = o.topic AND l.seq = o.seq",
        )
        .bind(part.iter().map(|(_, at)| topics[at.topic].id).collect::<Vec<i64>>())
        .bind(part.iter().map(|(_, at)| at.seq).collect::<Vec<i64>>())
        .fetch_all(&mut *connection)
        .await?;
        for row in &rows {
            let nth = usize::try_from(row.try_get::<i64, _>(0)? - 1).unwrap_or(usize::MAX);
            let Some((index, at)) = part.get(nth) else { continue };
            let lane = taken[*index].lane;
            match message(row, 1, &topics[at.topic]) {
                Ok(message) => inherited[*index].again.push(Ready::new(lane, *at, message)),
                Err(error) => inherited[*index].broken.push(Broken { lane, at: *at, error }),
            }
        }
    }
    Ok(inherited)
}

/// The waiting messages of lanes, without their contents.
pub(super) async fn waiting(
    connection: &mut PgConnection,
    group: i64,
    topics: &[Topic],
    lanes: &[u32],
) -> Result<Vec<Vec<WaitingRow>>> {
    let rows = sqlx::query(
        "SELECT lane, topic, seq, key, due FROM antiphon_mq_waiting
          WHERE grp = $1 AND lane = ANY($2)",
    )
    .bind(group)
    .bind(lanes.iter().map(|lane| number(*lane)).collect::<Vec<i32>>())
    .fetch_all(connection)
    .await?;
    let mut waiting: Vec<Vec<WaitingRow>> = lanes.iter().map(|_| Vec::new()).collect();
    for row in &rows {
        let (number, id) = (lane(row, 0)?, row.try_get::<i64, _>(1)?);
        let of_lane = lanes.iter().position(|lane| *lane == number);
        // Other topics of the group are read by other members.
        let topic = topics.iter().position(|topic| topic.id == id);
        if let (Some(of_lane), Some(topic)) = (of_lane, topic) {
            let at = At { topic, seq: row.try_get(2)? };
            let key = String::from_utf8_lossy(row.try_get(3)?).into_owned();
            waiting[of_lane].push((at, key, Timestamp::from_micros(row.try_get(4)?)));
        }
    }
    Ok(waiting)
}

/// The message in the columns id, kind, head, body, from `first` on.
fn message(row: &PgRow, first: usize, topic: &Topic) -> std::result::Result<Arc<Message>, String> {
    parts(row, first, topic.name.clone()).map(Arc::new)
}

/// See [`message`].
pub(super) fn parts(
    row: &PgRow,
    first: usize,
    topic: String,
) -> std::result::Result<Message, String> {
    let column = |index: usize| -> std::result::Result<&[u8], String> {
        row.try_get(first + index).map_err(|error| error.to_string())
    };
    let id = row::decode_id(column(0)?).map_err(|error| error.to_string())?;
    let kind = String::from_utf8(column(1)?.to_vec())
        .map_err(|_| "the kind of the message is not UTF-8".to_owned())?;
    let body = Bytes::copy_from_slice(column(3)?);
    row::decode(id, topic, kind, column(2)?, body).map_err(|error| error.to_string())
}
