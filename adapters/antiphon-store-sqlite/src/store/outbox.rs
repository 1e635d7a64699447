//! The outbox: messages that were committed with business rows and wait for the relay.
//!
//! Positions are row ids. One transaction writes at a time, so they grow in the order of commits,
//! and a reader that has seen one has seen all before it.

use std::collections::HashMap;

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::Message;
use antiphon_outbox::{
    Buried, Confirmation, Lease, OutboxRow, OutboxStore, Position, SentCount, Seq, Store,
    StoreError, outbox_lane,
};
use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::connection::Connection;
use super::{SqliteStore, commit, json};
use crate::error::store_error;
use antiphon_messaging::row;

/// Rows per statement: what is prepared once is used again for transactions of the same shape.
const ROWS_PER_STATEMENT: usize = 64;

const READ: &str = "
SELECT o.lane, o.seq, o.id, o.topic, o.kind, o.head, o.body
  FROM json_each(?1) AS p CROSS JOIN antiphon_outbox AS o
 WHERE o.seq IN (SELECT seq FROM antiphon_outbox
                  WHERE due IS NULL AND lane = p.value ->> 0 AND seq > p.value ->> 1
                  ORDER BY seq LIMIT ?2)
UNION ALL
SELECT o.lane, o.seq, o.id, o.topic, o.kind, o.head, o.body
  FROM json_each(?1) AS p CROSS JOIN antiphon_outbox AS o
 WHERE o.seq IN (SELECT seq FROM antiphon_outbox
                  WHERE due <= ?3 AND lane = p.value ->> 0 AND seq > p.value ->> 1
                  ORDER BY seq LIMIT ?2)";

/// Which of the leases `[scope, lane, token]` are still accepted, by their index.
const HELD: &str = "
SELECT p.key FROM json_each(?) AS p JOIN antiphon_lease AS l
    ON l.scope = p.value ->> 0 AND l.lane = p.value ->> 1 AND l.token = p.value ->> 2";

/// Removes rows: counts them, keeps the very last one as a tombstone so that its position is not
/// used again, removes the others, and removes the tombstone before.
const COUNT_CONFIRMED: &str = "
INSERT INTO antiphon_sent (topic, kind, confirmed)
SELECT topic, kind, count(*) FROM antiphon_outbox
 WHERE seq IN (SELECT value FROM json_each(?)) AND lane IN (SELECT value FROM json_each(?))
 GROUP BY topic, kind
ON CONFLICT DO UPDATE SET confirmed = confirmed + excluded.confirmed";
const KEEP_LAST: &str = "
UPDATE antiphon_outbox
   SET lane = -1, due = NULL, id = x'', topic = '', kind = '', head = x'', body = x''
 WHERE seq = (SELECT max(seq) FROM antiphon_outbox)
   AND seq IN (SELECT value FROM json_each(?)) AND lane IN (SELECT value FROM json_each(?))";
const REMOVE: &str = "
DELETE FROM antiphon_outbox
 WHERE seq IN (SELECT value FROM json_each(?)) AND lane IN (SELECT value FROM json_each(?))";
const REMOVE_TOMBSTONES: &str = "
DELETE FROM antiphon_outbox
 WHERE due IS NULL AND lane = -1 AND seq < (SELECT max(seq) FROM antiphon_outbox)";

impl OutboxStore for SqliteStore {
    async fn append(
        &self,
        connection: &mut Connection,
        messages: &[Message],
    ) -> Result<(), StoreError> {
        for rows in messages.chunks(ROWS_PER_STATEMENT) {
            defer_insert(connection, rows)?;
        }
        Ok(())
    }

    async fn read(
        &self,
        positions: &[Position],
        due_by: Timestamp,
        count_max: u32,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        let rows = sqlx::query(READ)
            .bind(json::array(positions.iter().map(|p| (p.lane, p.after.map_or(0, |seq| seq.0)))))
            .bind(count_max)
            .bind(due_by.as_micros())
            .fetch_all(self.reader())
            .await
            .map_err(store_error("reading the outbox"))?;
        let mut read = Vec::with_capacity(rows.len());
        let mut broken = Vec::new();
        for row in rows {
            let (lane, seq) = (row.get(0), Seq(row.get(1)));
            match message(&row, 2) {
                Ok(message) => read.push(OutboxRow { lane, seq, message }),
                Err(error) => broken.push((seq, error)),
            }
        }
        for (seq, error) in broken {
            // Nobody can ever publish it, whoever has the lease.
            tracing::error!(seq = seq.0, %error, "a message in the outbox is broken; put aside");
            self.put_aside(None, seq, &format!("decode: {error}")).await?;
        }
        // Both halves of the statement may have yielded rows of a lane.
        read.sort_unstable_by_key(|row| row.seq);
        limit_per_lane(&mut read, count_max);
        Ok(read)
    }

    async fn confirm(&self, confirmations: &[Confirmation]) -> Result<Vec<u32>, StoreError> {
        let mut connection = self.begin().await?;
        let leases = json::array(
            confirmations.iter().map(|c| (c.lease.scope.as_str(), c.lease.lane, c.lease.token)),
        );
        let held: Vec<i64> = sqlx::query_scalar(HELD)
            .bind(leases)
            .fetch_all(&mut *connection)
            .await
            .map_err(store_error("checking leases"))?;
        let held: Vec<usize> = held.into_iter().filter_map(|i| usize::try_from(i).ok()).collect();
        let lost = confirmations
            .iter()
            .enumerate()
            .filter(|(index, _)| !held.contains(index))
            .map(|(_, confirmation)| confirmation.lease.lane)
            .collect();
        let held: Vec<&Confirmation> =
            held.into_iter().filter_map(|index| confirmations.get(index)).collect();
        let rows = json::array(held.iter().flat_map(|c| c.rows.iter().map(|seq| seq.0)));
        let lanes = json::array(held.iter().map(|c| c.lease.lane));
        if !held.is_empty() {
            defer_removal(&mut connection, COUNT_CONFIRMED, &rows, &lanes)?;
            defer_removal(&mut connection, KEEP_LAST, &rows, &lanes)?;
            defer_removal(&mut connection, REMOVE, &rows, &lanes)?;
            connection.deferred().statement(REMOVE_TOMBSTONES);
            commit(connection, "confirming").await?;
        }
        Ok(lost)
    }

    async fn bury(&self, lease: &Lease, row: Seq, reason: &str) -> Result<(), StoreError> {
        self.put_aside(Some(lease), row, reason).await
    }

    async fn buried(&self, count_max: u32) -> Result<Vec<Buried>, StoreError> {
        let rows = sqlx::query(
            "SELECT at, reason, id, topic, kind, head, body FROM antiphon_outbox_buried
              ORDER BY at DESC, seq DESC LIMIT ?",
        )
        .bind(count_max)
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
        let row = sqlx::query(
            "SELECT count(*), (SELECT id FROM antiphon_outbox WHERE lane >= 0 ORDER BY seq LIMIT 1)
               FROM antiphon_outbox WHERE lane >= 0",
        )
        .fetch_one(self.reader())
        .await
        .map_err(store_error("counting the outbox"))?;
        let oldest: Option<Vec<u8>> = row.get(1);
        let since = oldest.and_then(|id| row::decode_id(&id).ok()).and_then(|id| id.made_at());
        Ok((count(row.get(0)), since))
    }

    async fn sent(&self) -> Result<Vec<SentCount>, StoreError> {
        let rows = sqlx::query(
            "SELECT topic, kind, sum(confirmed), sum(waiting), sum(buried) FROM (
                SELECT topic, kind, confirmed, 0 AS waiting, 0 AS buried FROM antiphon_sent
                UNION ALL
                SELECT topic, kind, 0, count(*), 0 FROM antiphon_outbox WHERE lane >= 0
                 GROUP BY topic, kind
                UNION ALL
                SELECT topic, kind, 0, 0, count(*) FROM antiphon_outbox_buried
                 GROUP BY topic, kind)
              GROUP BY topic, kind ORDER BY topic, kind",
        )
        .fetch_all(self.reader())
        .await
        .map_err(store_error("counting sent messages"))?;
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
}

impl SqliteStore {
    /// Moves a row to the buried ones, if the lease (where one is given) is still held.
    async fn put_aside(
        &self,
        lease: Option<&Lease>,
        row: Seq,
        reason: &str,
    ) -> Result<(), StoreError> {
        let mut connection = self.begin().await?;
        if let Some(lease) = lease {
            let held: Option<i64> = sqlx::query_scalar(HELD)
                .bind(json::array([(lease.scope.as_str(), lease.lane, lease.token)]))
                .fetch_optional(&mut *connection)
                .await
                .map_err(store_error("checking a lease"))?;
            if held.is_none() {
                return Err(StoreError::Fenced { scope: lease.scope.clone(), lane: lease.lane });
            }
        }
        let lane: Option<i64> = sqlx::query_scalar(
            "INSERT OR IGNORE INTO antiphon_outbox_buried
                (seq, at, reason, id, topic, kind, head, body)
             SELECT seq, ?, ?, id, topic, kind, head, body FROM antiphon_outbox
              WHERE seq = ? AND lane >= 0
             RETURNING (SELECT lane FROM antiphon_outbox AS o WHERE o.seq = antiphon_outbox_buried.seq)",
        )
        .bind(self.now().as_micros())
        .bind(reason)
        .bind(row.0)
        .fetch_optional(&mut *connection)
        .await
        .map_err(store_error("burying a message"))?;
        let Some(lane) = lane else { return Ok(()) };
        let (rows, lanes) = (json::array([row.0]), json::array([lane]));
        defer_removal(&mut connection, KEEP_LAST, &rows, &lanes)?;
        defer_removal(&mut connection, REMOVE, &rows, &lanes)?;
        connection.deferred().statement(REMOVE_TOMBSTONES);
        commit(connection, "burying a message").await
    }
}

fn defer_insert(connection: &mut Connection, messages: &[Message]) -> Result<(), StoreError> {
    const ROW: &str = "(?,?,?,?,?,?,?)";
    let deferred = connection.deferred();
    let mut sql = String::with_capacity(90 + messages.len() * (ROW.len() + 1));
    sql.push_str("INSERT INTO antiphon_outbox (lane, due, id, topic, kind, head, body) VALUES ");
    for index in 0..messages.len() {
        sql.push_str(if index == 0 { "" } else { "," });
        sql.push_str(ROW);
    }
    deferred.statement(&sql);
    for message in messages {
        deferred.bind(outbox_lane(message))?;
        deferred.bind(message.not_before.map(Timestamp::as_micros))?;
        deferred.bind(message.id.as_bytes().as_slice())?;
        deferred.bind(message.topic.as_str())?;
        deferred.bind(message.kind.as_str())?;
        deferred.bind(row::encode_head(message))?;
        deferred.bind(message.body.as_ref())?;
    }
    Ok(())
}

fn defer_removal(
    connection: &mut Connection,
    statement: &str,
    rows: &str,
    lanes: &str,
) -> Result<(), StoreError> {
    let deferred = connection.deferred();
    deferred.statement(statement);
    deferred.bind(rows)?;
    deferred.bind(lanes)
}

/// The message in the columns id, topic, kind, head, body, the first of which is `at`.
fn message(row: &SqliteRow, at: usize) -> Result<Message, row::DecodeError> {
    row::decode(
        row::decode_id(row.get(at))?,
        row.get(at + 1),
        row.get(at + 2),
        row.get(at + 3),
        Bytes::from(row.get::<Vec<u8>, _>(at + 4)),
    )
}

/// What is left of a message whose head is broken, for the operator.
fn remains(row: &SqliteRow, at: usize) -> Message {
    Message {
        id: row::decode_id(row.get(at)).unwrap_or(MessageId::from_bytes([0; 16])),
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

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
