//! Publishing: rows at the heads of the logs, or among the delayed until they are due.

use std::collections::BTreeMap;

use antiphon_sqlbroker::Row;
use sqlx::{PgConnection, Row as _};

/// Takes positions and fills them, in one statement. The rows of `topic` are locked in the order of
/// their numbers, and last of all that the transaction locks, so nobody waits in a circle; the lock
/// lasts until the commit, which puts commits into the order of the positions.
///
/// The `locked` rows are the newest, and so are those that `UPDATE` changes: it follows a row that
/// somebody else has changed since the statement began.
const APPEND: &str = "
WITH want AS (
    SELECT topic, count(*) AS n FROM unnest($1::bigint[]) AS topic GROUP BY topic
), locked AS (
    SELECT t.id FROM antiphon_mq_topic t WHERE t.id IN (SELECT topic FROM want)
     ORDER BY t.id FOR NO KEY UPDATE
), grown AS (
    UPDATE antiphon_mq_topic t SET head = t.head + want.n
      FROM want JOIN locked ON locked.id = want.topic
     WHERE t.id = want.topic
    RETURNING t.id, t.head, want.n
), written AS (
    INSERT INTO antiphon_mq_log (topic, seq, lane, id, kind, head, body)
    SELECT r.topic, grown.head - grown.n + r.nth, r.lane, r.id, r.kind, r.head, r.body
      FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::bytea[], $5::bytea[],
                  $6::bytea[], $7::bytea[]) AS r (topic, nth, lane, id, kind, head, body)
      JOIN grown ON grown.id = r.topic
)
SELECT id, head FROM grown";

const DELAY: &str = "
INSERT INTO antiphon_mq_delayed (due, topic, lane, id, kind, head, body)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::bytea[], $5::bytea[],
                     $6::bytea[], $7::bytea[])";

/// The columns of many rows.
#[derive(Default)]
struct Columns<'a> {
    topics: Vec<i64>,
    /// The number within the topic from 1, or when the row is due.
    numbers: Vec<i64>,
    lanes: Vec<i32>,
    ids: Vec<&'a [u8]>,
    kinds: Vec<&'a [u8]>,
    heads: Vec<&'a [u8]>,
    bodies: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, row: &'a Row, number: i64) {
        self.topics.push(row.topic);
        self.numbers.push(number);
        self.lanes.push(i32::try_from(row.lane).unwrap_or(0));
        self.ids.push(&row.id);
        self.kinds.push(row.kind.as_bytes());
        self.heads.push(&row.head);
        self.bodies.push(&row.body);
    }
}

/// Whether any of these rows has to wait.
pub(super) fn is_delayed(rows: &[Row]) -> bool {
    rows.iter().any(|row| row.due.is_some())
}

/// Lets rows that are not due wait, and adds the others to their logs; must be the last that the
/// transaction locks. Answers with the topics and their heads.
pub(super) async fn insert(
    connection: &mut PgConnection,
    batches: &[&[Row]],
) -> Result<Vec<(i64, i64)>, sqlx::Error> {
    let (mut now, mut later) = (Columns::default(), Columns::default());
    let mut counts: BTreeMap<i64, i64> = BTreeMap::new();
    for row in batches.iter().copied().flatten() {
        match row.due {
            Some(due) => later.push(row, due.as_micros()),
            None => {
                let count = counts.entry(row.topic).or_default();
                *count += 1;
                now.push(row, *count);
            }
        }
    }
    if !later.topics.is_empty() {
        sqlx::query(DELAY)
            .bind(later.numbers)
            .bind(later.topics)
            .bind(later.lanes)
            .bind(later.ids)
            .bind(later.kinds)
            .bind(later.heads)
            .bind(later.bodies)
            .execute(&mut *connection)
            .await?;
    }
    if now.topics.is_empty() {
        return Ok(Vec::new());
    }
    let grown = sqlx::query(APPEND)
        .bind(now.topics)
        .bind(now.numbers)
        .bind(now.lanes)
        .bind(now.ids)
        .bind(now.kinds)
        .bind(now.heads)
        .bind(now.bodies)
        // All of it: a statement outside of a transaction is committed at its very end.
        .fetch_all(connection)
        .await?;
    grown.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}
