//! The outbox: messages that were committed with business rows and wait for the relay.
//!
//! Reading takes no locks and confirming deletes, so a row costs one insert and one delete. Positions
//! come from a sequence; `rows` says why they are in the order of the commits, key by key. A
//! transaction that commits late is not skipped, for a lane is read from its beginning now and then;
//! `floors` says where that is.

mod floors;
mod rows;

use std::collections::HashMap;

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{Message, row};
use antiphon_outbox::{
    Buried, Confirmation, Lease, OutboxRow, OutboxStore, Position, SentCount, Seq, Store,
    StoreError,
};
use bytes::Bytes;
use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio::time::Instant;
use uuid::Uuid;

use super::PostgresStore;
use super::connection::Connection;
use crate::error::store_error;

pub(crate) use floors::Floors;
pub(crate) use rows::{Rows, draw_after_lock};

/// Of rows that were delayed, those come that are due for the longest time; where there are more of
/// them than are asked for, the relay finds the others when it begins again.
const READ: &str = "
SELECT false, p.lane, o.seq, o.id, o.topic, o.kind, o.head, o.body
  FROM unnest($1::integer[], $5::bigint[]) AS p (lane, after)
 CROSS JOIN LATERAL (SELECT * FROM antiphon_outbox
                      WHERE lane = p.lane AND seq > p.after ORDER BY seq LIMIT $3) AS o
UNION ALL
SELECT true, p.lane, o.seq, o.id, o.topic, o.kind, o.head, o.body
  FROM unnest($1::integer[], $2::bigint[]) AS p (lane, after)
 CROSS JOIN LATERAL (SELECT * FROM antiphon_outbox_delayed
                      WHERE lane = p.lane AND due <= $4 AND seq > p.after
                      ORDER BY due LIMIT $3) AS o";

/// Removes rows of the lanes whose lease is still held, counts them, and answers with those lanes.
///
/// The lease is looked at in the same snapshot as the rows: who takes it over later has it after
/// this, and may at most send again what the broker has. Counters have a row per writer, which is
/// the first of its lanes, for that no other instance has.
const CONFIRM: &str = "
WITH held AS MATERIALIZED (
    SELECT p.lane FROM unnest($1::text[], $2::integer[], $3::bigint[]) AS p (scope, lane, token)
      JOIN antiphon_lease AS l USING (scope, lane, token)
), gone AS MATERIALIZED (
    SELECT r.lane, r.seq FROM unnest($4::integer[], $5::bigint[]) AS r (lane, seq)
     WHERE r.lane = ANY ((SELECT array_agg(lane) FROM held)::integer[])
), plain AS (
    DELETE FROM antiphon_outbox AS o USING gone
     WHERE o.lane = gone.lane AND o.seq = gone.seq RETURNING o.topic, o.kind
), delayed AS (
    DELETE FROM antiphon_outbox_delayed AS o USING gone
     WHERE o.lane = gone.lane AND o.seq = gone.seq RETURNING o.topic, o.kind
), counted AS (
    INSERT INTO antiphon_sent AS s (topic, kind, shard, confirmed)
    SELECT topic, kind, (SELECT min(lane) FROM held), count(*)
      FROM (SELECT * FROM plain UNION ALL SELECT * FROM delayed) AS removed
     GROUP BY topic, kind ORDER BY topic, kind
    ON CONFLICT (topic, kind, shard) DO UPDATE SET confirmed = s.confirmed + excluded.confirmed
)
SELECT lane FROM held";

/// Moves a row to the buried ones, wherever it is.
const BURY: &str = "
WITH held AS MATERIALIZED (
    SELECT lane FROM antiphon_lease WHERE scope = $1 AND lane = $2 AND token = $3 FOR SHARE
), plain AS (
    DELETE FROM antiphon_outbox WHERE lane = $2 AND seq = $4 AND EXISTS (SELECT FROM held)
    RETURNING seq, id, topic, kind, head, body
), delayed AS (
    DELETE FROM antiphon_outbox_delayed WHERE lane = $2 AND seq = $4 AND EXISTS (SELECT FROM held)
    RETURNING seq, id, topic, kind, head, body
), buried AS (
    INSERT INTO antiphon_outbox_buried (seq, at, reason, id, topic, kind, head, body)
    SELECT seq, $5, $6, id, topic, kind, head, body
      FROM (SELECT * FROM plain UNION ALL SELECT * FROM delayed) AS removed
    ON CONFLICT (seq) DO NOTHING
)
SELECT count(*) FROM held";

/// Moves a row that cannot be read, whoever has the lease: nobody can ever publish it.
const PUT_ASIDE: &str = "
WITH plain AS (
    DELETE FROM antiphon_outbox WHERE lane = $1 AND seq = $2
    RETURNING seq, id, topic, kind, head, body
), delayed AS (
    DELETE FROM antiphon_outbox_delayed WHERE lane = $1 AND seq = $2
    RETURNING seq, id, topic, kind, head, body
)
INSERT INTO antiphon_outbox_buried (seq, at, reason, id, topic, kind, head, body)
SELECT seq, $3, $4, id, topic, kind, head, body
  FROM (SELECT * FROM plain UNION ALL SELECT * FROM delayed) AS removed
ON CONFLICT (seq) DO NOTHING";

const BACKLOG: &str = "
SELECT count(*), min(id::text COLLATE \"C\") FROM (
    SELECT id FROM antiphon_outbox UNION ALL SELECT id FROM antiphon_outbox_delayed) AS waiting";

const SENT: &str = "
SELECT topic, kind, sum(confirmed)::bigint, sum(waiting)::bigint, sum(buried)::bigint FROM (
    SELECT topic, kind, confirmed, 0 AS waiting, 0 AS buried FROM antiphon_sent
    UNION ALL
    SELECT topic, kind, 0, count(*), 0 FROM antiphon_outbox GROUP BY topic, kind
    UNION ALL
    SELECT topic, kind, 0, count(*), 0 FROM antiphon_outbox_delayed GROUP BY topic, kind
    UNION ALL
    SELECT topic, kind, 0, 0, count(*) FROM antiphon_outbox_buried GROUP BY topic, kind) AS counts
 GROUP BY topic, kind ORDER BY topic, kind";

impl OutboxStore for PostgresStore {
    async fn append(
        &self,
        connection: &mut Connection,
        messages: &[Message],
    ) -> Result<(), StoreError> {
        connection.append(messages)
    }

    async fn read(
        &self,
        positions: &[Position],
        due_by: Timestamp,
        count_max: u32,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        let lanes: Vec<i32> = positions.iter().map(|position| number(position.lane)).collect();
        let after: Vec<i64> =
            positions.iter().map(|position| position.after.map_or(0, |seq| seq.0)).collect();
        let mut turn = self.bookkeeping().await?;
        let asked_at = Instant::now();
        let begins: Vec<i64> = positions
            .iter()
            .map(|position| match position.after {
                Some(seq) => seq.0,
                None => self.floors().begin(position.lane, asked_at),
            })
            .collect();
        let rows = self
            .answer(
                sqlx::query(READ)
                    .bind(lanes)
                    .bind(after)
                    .bind(i64::from(count_max))
                    .bind(due_by.as_micros())
                    .bind(&begins)
                    .fetch_all(&mut *turn),
            )
            .await;
        let rows = turn.ended(rows).map_err(store_error("reading the outbox"))?;
        self.learn(positions, &begins, &rows, asked_at);
        let mut read = Vec::with_capacity(rows.len());
        for row in &rows {
            let (lane, seq) = (lane(row.get(1)), Seq(row.get(2)));
            match message(row, 3) {
                Ok(message) => read.push(OutboxRow { lane, seq, message }),
                Err(error) => {
                    // Nobody can ever publish it, whoever has the lease.
                    tracing::error!(
                        seq = seq.0,
                        %error,
                        "a message in the outbox is broken; put aside"
                    );
                    self.put_aside(lane, seq, &format!("decode: {error}")).await?;
                }
            }
        }
        // Both halves of the statement may have yielded rows of a lane.
        read.sort_unstable_by_key(|row| row.seq);
        limit_per_lane(&mut read, count_max);
        Ok(read)
    }

    async fn confirm(&self, confirmations: &[Confirmation]) -> Result<Vec<u32>, StoreError> {
        if confirmations.is_empty() {
            return Ok(Vec::new());
        }
        let leases = || confirmations.iter().map(|confirmation| &confirmation.lease);
        let rows = || {
            confirmations.iter().flat_map(|confirmation| {
                confirmation.rows.iter().map(|seq| (confirmation.lease.lane, *seq))
            })
        };
        let mut turn = self.bookkeeping().await?;
        let held = self
            .answer(
                sqlx::query_scalar(CONFIRM)
                    .bind(leases().map(|lease| lease.scope.clone()).collect::<Vec<_>>())
                    .bind(leases().map(|lease| number(lease.lane)).collect::<Vec<_>>())
                    .bind(leases().map(|lease| lease.token).collect::<Vec<_>>())
                    .bind(rows().map(|(lane, _)| number(lane)).collect::<Vec<_>>())
                    .bind(rows().map(|(_, seq)| seq.0).collect::<Vec<_>>())
                    .fetch_all(&mut *turn),
            )
            .await;
        let held: Vec<i32> = turn.ended(held).map_err(store_error("confirming"))?;
        self.cleaner().removed(confirmations.iter().map(|c| c.rows.len()).sum());
        let lost = leases().map(|lease| lease.lane).filter(|lane| !held.contains(&number(*lane)));
        Ok(lost.collect())
    }

    async fn bury(&self, lease: &Lease, row: Seq, reason: &str) -> Result<(), StoreError> {
        let mut turn = self.bookkeeping().await?;
        let held = self
            .answer(
                sqlx::query_scalar(BURY)
                    .bind(&lease.scope)
                    .bind(number(lease.lane))
                    .bind(lease.token)
                    .bind(row.0)
                    .bind(self.now().as_micros())
                    .bind(reason.replace('\0', "\u{fffd}"))
                    .fetch_one(&mut *turn),
            )
            .await;
        let held: i64 = turn.ended(held).map_err(store_error("burying a message"))?;
        if held == 0 {
            return Err(StoreError::Fenced { scope: lease.scope.clone(), lane: lease.lane });
        }
        Ok(())
    }

    async fn buried(&self, count_max: u32) -> Result<Vec<Buried>, StoreError> {
        let rows = sqlx::query(
            "SELECT at, reason, id, topic, kind, head, body FROM antiphon_outbox_buried
              ORDER BY at DESC, seq DESC LIMIT $1",
        )
        .bind(i64::from(count_max))
        .fetch_all(self.reader())
        .await
        .map_err(store_error("reading buried messages"))?;
        Ok(rows
            .iter()
            .map(|row| Buried {
                at: Timestamp::from_micros(row.get(0)),
                reason: row.get(1),
                message: message(row, 2).unwrap_or_else(|_| remains(row, 2)),
            })
            .collect())
    }

    async fn backlog(&self) -> Result<(u64, Option<Timestamp>), StoreError> {
        let row = self.answer(sqlx::query(BACKLOG).fetch_one(self.reader())).await;
        let row = row.map_err(store_error("counting the outbox"))?;
        let oldest: Option<String> = row.get(1);
        let since =
            oldest.and_then(|id| Uuid::parse_str(&id).ok()).map(id).and_then(|id| id.made_at());
        Ok((count(row.get(0)), since))
    }

    async fn sent(&self) -> Result<Vec<SentCount>, StoreError> {
        let rows = self.answer(sqlx::query(SENT).fetch_all(self.reader())).await;
        let rows = rows.map_err(store_error("counting sent messages"))?;
        Ok(rows
            .iter()
            .map(|row| {
                let (waiting, buried) = (count(row.get(3)), count(row.get(4)));
                SentCount {
                    topic: row.get(0),
                    kind: row.get(1),
                    committed: count(row.get(2)) + waiting + buried,
                    waiting,
                    buried,
                }
            })
            .collect())
    }

    async fn changed(&self) {
        self.doorbell().changed().await;
    }
}

impl PostgresStore {
    /// Remembers where the lanes begin.
    fn learn(&self, positions: &[Position], begins: &[i64], rows: &[PgRow], asked_at: Instant) {
        let mut found: HashMap<u32, Vec<i64>> = HashMap::new();
        for row in rows.iter().filter(|row| !row.get::<bool, _>(0)) {
            found.entry(lane(row.get(1))).or_default().push(row.get(2));
        }
        let now = Instant::now();
        for (position, begin) in positions.iter().zip(begins) {
            let seqs = found.remove(&position.lane).unwrap_or_default();
            let begin = (*begin, position.after.is_none());
            self.floors().found(position.lane, begin, &seqs, (asked_at, now));
        }
    }

    async fn put_aside(&self, lane: u32, row: Seq, reason: &str) -> Result<(), StoreError> {
        let mut turn = self.bookkeeping().await?;
        let moved = self
            .answer(
                sqlx::query(PUT_ASIDE)
                    .bind(number(lane))
                    .bind(row.0)
                    .bind(self.now().as_micros())
                    .bind(reason)
                    .execute(&mut *turn),
            )
            .await;
        turn.ended(moved).map(drop).map_err(store_error("putting a message aside"))
    }
}

/// The message in the columns id, topic, kind, head, body, the first of which is `at`.
fn message(row: &PgRow, at: usize) -> Result<Message, row::DecodeError> {
    row::decode(
        id(row.get(at)),
        row.get(at + 1),
        row.get(at + 2),
        row.get(at + 3),
        Bytes::from(row.get::<Vec<u8>, _>(at + 4)),
    )
}

/// What is left of a message whose head is broken, for the operator.
fn remains(row: &PgRow, at: usize) -> Message {
    Message {
        id: id(row.get(at)),
        topic: row.get(at + 1),
        kind: row.get(at + 2),
        source: String::new(),
        key: String::new(),
        time: Timestamp::EPOCH,
        not_before: None,
        attributes: std::collections::BTreeMap::new(),
        body: Bytes::from(row.get::<Vec<u8>, _>(at + 4)),
    }
}

fn limit_per_lane(rows: &mut Vec<OutboxRow>, count_max: u32) {
    let mut counts = HashMap::new();
    rows.retain(|row| {
        let count = counts.entry(row.lane).or_insert(0_u32);
        *count += 1;
        *count <= count_max
    });
}

fn id(uuid: Uuid) -> MessageId {
    MessageId::from_bytes(uuid.into_bytes())
}

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A lane as the database keeps it; there are few.
pub(super) fn number(lane: u32) -> i32 {
    i32::try_from(lane).unwrap_or(i32::MAX)
}

pub(super) fn lane(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}
