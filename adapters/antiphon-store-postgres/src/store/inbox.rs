//! The inbox: which messages a consumer has handled, remembered up to the horizon.
//!
//! Ids are UUIDv7 and sort by their time, so the horizon is the smallest id that is remembered. One
//! statement enters the messages of a day, waits for another transaction that has entered the same,
//! and counts; the counters have a row per connection, so that nobody waits for them.

mod days;

use std::collections::{BTreeMap, HashSet};

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::Message;
use antiphon_outbox::{HandledCount, InboxEntry, InboxStore, Store, StoreError};
use antiphon_saga::BarrierKey;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::PostgresStore;
use super::barrier::side_number;
use super::connection::Connection;
use super::saga::uuid;
use crate::error::{State, state, store_error};

pub(crate) use days::Days;
use days::{day_of, day_of_id, first_id, table};

/// Enters one message if the horizon allows it and nobody has entered it. The number of a server
/// process is the counter's row: each has one transaction at a time.
///
/// Many messages have a statement of their own because this one is planned once and that one each
/// time, which takes longer than to carry it out: for a list of unknown length the server does not
/// trust a plan that it made before.
macro_rules! enter_one {
    ($more:literal) => {
        concat!("WITH entered AS (
            INSERT INTO {table} (id, consumer)
            SELECT $2, $1 FROM antiphon_horizon WHERE id <= $2
            ON CONFLICT DO NOTHING RETURNING id),
         counted AS (
            INSERT INTO antiphon_handled AS h (consumer, topic, kind, shard, done, duplicates)
            SELECT $1, $3, $4, pg_backend_pid(), e.count, 1 - e.count
              FROM antiphon_horizon, (SELECT count(*) FROM entered) AS e WHERE id <= $2
            ON CONFLICT (consumer, topic, kind, shard) DO UPDATE
               SET done = h.done + excluded.done, duplicates = h.duplicates + excluded.duplicates)",
            $more)
    };
}

/// The same for many.
macro_rules! enter {
    () => {
        "WITH horizon AS MATERIALIZED (SELECT id FROM antiphon_horizon),
         message AS MATERIALIZED (
            SELECT m.id, m.topic, m.kind
              FROM unnest($2::uuid[], $3::text[], $4::text[]) AS m (id, topic, kind), horizon
             WHERE m.id >= horizon.id),
         entered AS (
            INSERT INTO {table} (id, consumer)
            SELECT DISTINCT id, $1 FROM message ORDER BY id
            ON CONFLICT DO NOTHING RETURNING id),
         counted AS (
            INSERT INTO antiphon_handled AS h (consumer, topic, kind, shard, done, duplicates)
            SELECT $1, m.topic, m.kind, pg_backend_pid(), count(DISTINCT e.id),
                   count(*) - count(DISTINCT e.id)
              FROM message AS m LEFT JOIN entered AS e USING (id)
             GROUP BY m.topic, m.kind
            ON CONFLICT (consumer, topic, kind, shard) DO UPDATE
               SET done = h.done + excluded.done, duplicates = h.duplicates + excluded.duplicates)
         SELECT id FROM entered"
    };
}

/// Adds up the counters of connections that are gone, in the row of nobody.
const FOLD: &str = "
WITH gone AS (
    DELETE FROM antiphon_handled AS h
     WHERE shard <> 0
       AND NOT EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.pid = h.shard)
    RETURNING consumer, topic, kind, done, duplicates
)
INSERT INTO antiphon_handled AS h (consumer, topic, kind, shard, done, duplicates)
SELECT consumer, topic, kind, 0, sum(done)::bigint, sum(duplicates)::bigint
  FROM gone GROUP BY consumer, topic, kind ORDER BY consumer, topic, kind
ON CONFLICT (consumer, topic, kind, shard) DO UPDATE
   SET done = h.done + excluded.done, duplicates = h.duplicates + excluded.duplicates";

const HANDLED: &str = "
SELECT consumer, topic, kind, sum(done)::bigint, sum(duplicates)::bigint FROM antiphon_handled
 GROUP BY consumer, topic, kind ORDER BY consumer, topic, kind";

/// Durable before any table is dropped.
const MOVE_HORIZON: &str = "
UPDATE antiphon_horizon SET id = $1
 WHERE id < $1 AND set_config('synchronous_commit', 'on', true) = 'on'";

impl InboxStore for PostgresStore {
    async fn enter(
        &self,
        connection: &mut Connection,
        consumer: &str,
        messages: &[&Message],
    ) -> Result<Vec<InboxEntry>, StoreError> {
        let now = self.now();
        // In ascending order, as every transaction does: nobody waits in a circle.
        let mut days: BTreeMap<i64, Vec<&Message>> = BTreeMap::new();
        for message in messages {
            if let Some(day) = day_of_id(message.id, now) {
                days.entry(day).or_default().push(message);
            }
        }
        let mut new: HashSet<MessageId> = HashSet::with_capacity(messages.len());
        let mut horizon = None;
        for (day, of_day) in days {
            // A day before the horizon may have no table any more, and must get none.
            if !self.is_recent(day) {
                let first = read_horizon(connection).await?;
                horizon = Some(first);
                if of_day.iter().all(|message| message.id < first) {
                    continue;
                }
            }
            new.extend(self.enter_day(connection, consumer, day, &of_day).await?);
        }
        if horizon.is_none() && new.len() < messages.len() {
            horizon = Some(read_horizon(connection).await?);
        }
        let is_beyond = |message: &Message| {
            day_of_id(message.id, now).is_none() || horizon.is_some_and(|first| message.id < first)
        };
        Ok(messages
            .iter()
            .map(|message| {
                if new.remove(&message.id) {
                    InboxEntry::New
                } else if is_beyond(message) {
                    InboxEntry::BeyondHorizon
                } else {
                    InboxEntry::Duplicate
                }
            })
            .collect())
    }

    async fn expire(&self, horizon: Timestamp) -> Result<u64, StoreError> {
        let first = first_id(horizon);
        let mut turn = self.bookkeeping().await?;
        let moved = self
            .answer(
                sqlx::query(MOVE_HORIZON)
                    .bind(Uuid::from_bytes(*first.as_bytes()))
                    .execute(&mut *turn),
            )
            .await;
        turn.ended(moved).map_err(store_error("moving the horizon"))?;
        let mut forgotten = 0;
        for day in self.days_there().await? {
            if day >= day_of(horizon) {
                break;
            }
            forgotten += self.drop_day(day).await?.unwrap_or(0);
        }
        Ok(forgotten)
    }

    async fn handled(&self) -> Result<Vec<HandledCount>, StoreError> {
        let mut turn = self.bookkeeping().await?;
        let folded = self.answer(sqlx::query(FOLD).execute(&mut *turn)).await;
        turn.ended(folded).map_err(store_error("counting handled messages"))?;
        let mut turn = self.bookkeeping().await?;
        let rows = self.answer(sqlx::query(HANDLED).fetch_all(&mut *turn)).await;
        let rows = turn.ended(rows).map_err(store_error("counting handled messages"))?;
        let count = |value: i64| u64::try_from(value).unwrap_or(0);
        Ok(rows
            .iter()
            .map(|row| HandledCount {
                consumer: row.get(0),
                topic: row.get(1),
                kind: row.get(2),
                done: count(row.get(3)),
                duplicates: count(row.get(4)),
            })
            .collect())
    }
}

impl PostgresStore {
    /// Whether a day is hardly ever before the horizon.
    fn is_recent(&self, day: i64) -> bool {
        day >= day_of(self.now()) - 1
    }

    /// Enters messages of one day and answers which are new.
    async fn enter_day(
        &self,
        connection: &mut Connection,
        consumer: &str,
        day: i64,
        messages: &[&Message],
    ) -> Result<Vec<MessageId>, StoreError> {
        self.ensure_day(day).await?;
        let table = table(day);
        let id = |message: &Message| Uuid::from_bytes(*message.id.as_bytes());
        let entered = match messages {
            [one] => {
                sqlx::query_scalar(AssertSqlSafe(format!(
                    enter_one!(" SELECT id FROM entered"),
                    table = table
                )))
                .bind(consumer)
                .bind(id(one))
                .bind(&*one.topic)
                .bind(&*one.kind)
                .fetch_all(&mut **connection)
                .await
            }
            many => {
                sqlx::query_scalar(AssertSqlSafe(format!(enter!(), table = table)))
                    .bind(consumer)
                    .bind(many.iter().map(|message| id(message)).collect::<Vec<_>>())
                    .bind(many.iter().map(|message| message.topic.clone()).collect::<Vec<_>>())
                    .bind(many.iter().map(|message| message.kind.clone()).collect::<Vec<_>>())
                    .fetch_all(&mut **connection)
                    .await
            }
        };
        let entered: Vec<Uuid> = entered.map_err(|error| self.not_entered(error))?;
        Ok(entered.into_iter().map(|id| MessageId::from_bytes(id.into_bytes())).collect())
    }

    fn not_entered(&self, error: sqlx::Error) -> StoreError {
        match state(&error) {
            // Another process has just dropped it: the horizon has moved.
            State::NoTable => {
                self.days().forget();
                StoreError::Busy(error.into())
            }
            _ => store_error("entering the inbox")(error),
        }
    }

    /// Enters a message and, if it is new, notes a command at the barrier. `None` when the message
    /// is of a day that may be forgotten: nothing was done then.
    pub(super) async fn enter_with_command(
        &self,
        connection: &mut Connection,
        consumer: &str,
        message: &Message,
        command: &BarrierKey,
        now: Timestamp,
    ) -> Result<Option<(InboxEntry, bool)>, StoreError> {
        let Some(day) = day_of_id(message.id, self.now()).filter(|day| self.is_recent(*day)) else {
            return Ok(None);
        };
        self.ensure_day(day).await?;
        let statement = format!(
            enter_one!(
                ", noted AS (
                    INSERT INTO antiphon_barrier (saga, step, side, at, blocked)
                    SELECT $5::uuid, $6::text, $7::integer, $8::bigint, false FROM entered
                    ON CONFLICT DO NOTHING RETURNING side)
                 SELECT EXISTS (SELECT FROM entered), EXISTS (SELECT FROM noted)"
            ),
            table = table(day)
        );
        let row = sqlx::query(AssertSqlSafe(statement))
            .bind(consumer)
            .bind(Uuid::from_bytes(*message.id.as_bytes()))
            .bind(&*message.topic)
            .bind(&*message.kind)
            .bind(uuid(command.saga))
            .bind(&command.step)
            .bind(side_number(command.side))
            .bind(now.as_micros())
            .fetch_one(&mut **connection)
            .await
            .map_err(|error| self.not_entered(error))?;
        let entry = if row.get(0) {
            InboxEntry::New
        } else if message.id < read_horizon(connection).await? {
            InboxEntry::BeyondHorizon
        } else {
            InboxEntry::Duplicate
        };
        Ok(Some((entry, row.get(1))))
    }
}

async fn read_horizon(connection: &mut Connection) -> Result<MessageId, StoreError> {
    let id: Uuid = sqlx::query_scalar("SELECT id FROM antiphon_horizon")
        .fetch_one(&mut **connection)
        .await
        .map_err(store_error("reading the horizon"))?;
    Ok(MessageId::from_bytes(id.into_bytes()))
}
