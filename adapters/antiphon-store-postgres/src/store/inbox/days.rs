//! The tables of the inbox: one per day, by the time in the ids.
//!
//! An id belongs to one day for ever, so its table is the only place where it can be. A day is
//! forgotten by dropping its table, which costs the same however full it is, and locks nothing that
//! anybody still writes to. (One partitioned table would be locked as a whole for that.)
//!
//! A table is made when the first id of its day comes, in a transaction of its own under a lock, and
//! the next days' ahead. An id from further in the future than clocks may differ belongs to no day:
//! a wrong clock or a forged id must not make tables.

use std::collections::BTreeSet;
use std::time::Duration;

use antiphon_core::{MessageId, Timestamp};
use antiphon_outbox::{Store, StoreError};
use parking_lot::Mutex;
use sqlx::AssertSqlSafe;

use crate::error::{State, state, store_error};
use crate::store::PostgresStore;

const DAY_MILLIS: i64 = 86_400_000;
/// How far the clock of whoever made a message may be ahead of the database's.
const AHEAD_MAX: Duration = Duration::from_secs(2 * 86_400);
/// The advisory lock of whoever makes tables of the inbox: "inbx" twice.
const LOCK: i64 = 0x696e_6278_696e_6278;

/// The number of a day, counted from the Unix epoch.
pub(super) type Day = i64;

/// The days whose tables are known to be there.
#[derive(Debug, Default)]
pub(crate) struct Days(Mutex<BTreeSet<Day>>);

impl Days {
    fn has(&self, day: Day) -> bool {
        self.0.lock().contains(&day)
    }

    fn add(&self, days: impl IntoIterator<Item = Day>) {
        self.0.lock().extend(days);
    }

    fn remove(&self, day: Day) {
        self.0.lock().remove(&day);
    }

    /// Something is not as it was known.
    pub(super) fn forget(&self) {
        self.0.lock().clear();
    }
}

pub(super) fn day_of(time: Timestamp) -> Day {
    time.as_millis().div_euclid(DAY_MILLIS)
}

/// The day to which an id belongs; `None` for one that is remembered nowhere.
pub(super) fn day_of_id(id: MessageId, now: Timestamp) -> Option<Day> {
    id.made_at().filter(|made| *made <= now + AHEAD_MAX).map(day_of)
}

/// The smallest id that a message made at `time` can have.
pub(super) fn first_id(time: Timestamp) -> MessageId {
    let millis = u64::try_from(time.as_millis()).unwrap_or(0);
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    MessageId::from_bytes(bytes)
}

pub(super) fn table(day: Day) -> String {
    format!("antiphon_inbox_{day}")
}

impl PostgresStore {
    /// Makes sure that the table of a day is there, and those of the days after today.
    pub(super) async fn ensure_day(&self, day: Day) -> Result<(), StoreError> {
        if self.days().has(day) {
            return Ok(());
        }
        let today = day_of(self.now());
        let wanted: BTreeSet<Day> = [day, today, today + 1].into();
        let there = self.days_there().await?;
        let missing: Vec<Day> = wanted.iter().copied().filter(|day| !there.contains(day)).collect();
        if !missing.is_empty() {
            self.make_days(&missing).await?;
        }
        self.days().add(wanted);
        self.days().add(there);
        Ok(())
    }

    /// The days whose tables are there, in order.
    pub(super) async fn days_there(&self) -> Result<Vec<Day>, StoreError> {
        let mut turn = self.bookkeeping().await?;
        let names = self.answer(sqlx::query_scalar(
            "SELECT relname::text FROM pg_class
              WHERE relname LIKE 'antiphon\\_inbox\\_%' AND relkind = 'r' AND pg_table_is_visible(oid)",
        )
        .fetch_all(&mut *turn)).await;
        let names: Vec<String> =
            turn.ended(names).map_err(store_error("listing the tables of the inbox"))?;
        let mut days: Vec<Day> =
            names.iter().filter_map(|name| name.rsplit('_').next()?.parse().ok()).collect();
        days.sort_unstable();
        Ok(days)
    }

    async fn make_days(&self, days: &[Day]) -> Result<(), StoreError> {
        let mut statements = format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK});");
        for day in days {
            let table = table(*day);
            // Rows are never changed: there is nothing to vacuum before the table is dropped.
            statements.push_str(&format!(
                "CREATE TABLE IF NOT EXISTS {table} (
                     id uuid NOT NULL,
                     consumer text COLLATE \"C\" NOT NULL,
                     PRIMARY KEY (id, consumer)
                 ) WITH (autovacuum_vacuum_insert_threshold = -1);"
            ));
        }
        statements.push_str("COMMIT");
        let mut turn = self.bookkeeping().await?;
        let made = self.answer(sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *turn)).await;
        match made {
            Ok(_) => turn.done(),
            // The transaction is open still, and ends with its connection.
            Err(error) => {
                turn.discard();
                return Err(store_error("making a table of the inbox")(error));
            }
        }
        Ok(())
    }

    /// Drops the table of a day and answers how many entries it had. `None` when a transaction
    /// still uses it: it goes the next time.
    pub(super) async fn drop_day(&self, day: Day) -> Result<Option<u64>, StoreError> {
        let table = table(day);
        let mut turn = self.bookkeeping().await?;
        let count = count(&mut turn, &table).await;
        let count = match count {
            Ok(count) => count,
            Err(error) => {
                let gone = state(&error) == State::NoTable;
                let answer = turn.ended(Err(error));
                return if gone { Ok(Some(0)) } else { answer.map_err(store_error("counting")) };
            }
        };
        let statements = format!(
            "BEGIN; SET LOCAL lock_timeout = '200ms'; DROP TABLE IF EXISTS {table}; COMMIT"
        );
        match sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *turn).await {
            Ok(_) => {
                turn.done();
                self.days().remove(day);
                Ok(Some(count))
            }
            Err(error) => {
                turn.discard();
                if state(&error) == State::Busy {
                    return Ok(None);
                }
                Err(store_error("forgetting inbox entries")(error))
            }
        }
    }
}

/// How many entries a table has: exactly while counting is cheap, else as the server estimates.
async fn count(connection: &mut sqlx::PgConnection, table: &str) -> Result<u64, sqlx::Error> {
    const PAGES_MAX: i64 = 20_000;
    let (pages, estimate): (i64, f32) = sqlx::query_as(
        "SELECT pg_relation_size(oid) / 8192, reltuples FROM pg_class WHERE oid = to_regclass($1)",
    )
    .bind(table)
    .fetch_optional(&mut *connection)
    .await?
    .unwrap_or((0, 0.0));
    if pages > PAGES_MAX && estimate > 0.0 {
        return Ok(estimate as u64);
    }
    let statement = format!("SELECT count(*) FROM {table}");
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(statement))
        .persistent(false)
        .fetch_one(connection)
        .await?;
    Ok(u64::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_id_of_a_time_is_not_above_any_id_made_then() {
        let now = Timestamp::from_millis(1_700_000_000_123);
        assert!(first_id(now) <= MessageId::new(now));
        assert!(first_id(now) > MessageId::new(Timestamp::from_millis(1_700_000_000_122)));
    }

    #[test]
    fn an_id_belongs_to_the_day_it_was_made_on() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let made = |millis| MessageId::new(Timestamp::from_millis(millis));
        assert_eq!(day_of_id(made(19_675 * DAY_MILLIS), now), Some(19_675));
        assert_eq!(day_of_id(made(19_676 * DAY_MILLIS - 1), now), Some(19_675));
        assert_eq!(day_of_id(MessageId::from_bytes([0x44; 16]), now), None);
        let ahead = |days: i64| day_of_id(made(now.as_millis() + days * DAY_MILLIS), now);
        assert_eq!((ahead(1), ahead(3)), (Some(19_676), None));
    }
}
