//! Clears away what was deleted from the outbox.
//!
//! A row that is deleted stays in the table until it is vacuumed. The server looks once a minute
//! whether that is due, which at tens of thousands of messages per second is a gigabyte late. So
//! whoever removes rows vacuums after so many of them: the table stays in memory, and reading a lane
//! from its beginning stays cheap. Two do not vacuum at once, and nobody does for more than a small
//! part of the time: while an old transaction is open, there is little that can be cleared away.
//!
//! While one that writes is open in another database, nothing can be cleared away either as long as
//! any statement runs in this one: such a vacuum is tried again a few times, for a better moment.
//!
//! While one is open anywhere on the server, in another database even, the server uses no page of an
//! index again that was emptied (before PostgreSQL 16). Positions only grow, so the index would, too,
//! and each vacuum reads all of it. So an index that has become large beside its table is made anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use antiphon_outbox::StoreError;
use sqlx::AssertSqlSafe;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::error::store_error;
use crate::pool::Pool;

/// So many rows are cleared away together.
const ROWS: usize = 20_000;
/// The wait after vacuuming, as a multiple of how long it took.
const REST: u32 = 10;
const REST_MIN: Duration = Duration::from_millis(200);

/// So often it is tried in a row.
const TRIES: usize = 5;
const TRY_WAIT: Duration = Duration::from_millis(20);

/// Indexes that are smaller are left as they are.
const INDEX_BYTES: i64 = 32 * 1_024 * 1_024;

/// Freed pages are kept for the next rows, not given back to the file system: that would lock the
/// table. The counters are few rows that each removal changes.
const VACUUM: &str = "
VACUUM (SKIP_LOCKED, TRUNCATE off, INDEX_CLEANUP on)
    antiphon_outbox, antiphon_outbox_delayed, antiphon_sent";

/// Deleted rows, as far as the server knows.
const LEFT: &str = "SELECT pg_stat_get_dead_tuples('antiphon_outbox'::regclass)";

/// Of rows that are there, the indexes take a small part of what the table takes.
const SWOLLEN: &str = "
SELECT oid::regclass::text FROM pg_class
 WHERE oid IN ('antiphon_outbox'::regclass, 'antiphon_outbox_delayed'::regclass)
   AND pg_indexes_size(oid) + pg_indexes_size(reltoastrelid)
       > greatest($1, pg_table_size(oid) / 2)";

/// Transactions have locked the table only while they commit, and wait as long as this takes. When
/// it gets no lock at once, the next time will do.
const REBUILD: &str = "SET LOCAL lock_timeout = '100ms'; REINDEX TABLE ";

#[derive(Debug, Default)]
pub(crate) struct Cleaner {
    rows: AtomicUsize,
    due: Notify,
}

impl Cleaner {
    /// So many rows were deleted.
    pub(crate) fn removed(&self, rows: usize) {
        if self.rows.fetch_add(rows, Ordering::AcqRel) + rows >= ROWS {
            self.due.notify_one();
        }
    }

    /// Works for ever.
    pub(super) async fn run(self: Arc<Self>, pool: Arc<Pool>) {
        loop {
            self.due.notified().await;
            if self.rows.swap(0, Ordering::AcqRel) < ROWS {
                continue;
            }
            let begun = Instant::now();
            if let Err(error) = clear(&pool).await {
                tracing::debug!(%error, "the outbox was not vacuumed; the server will do it");
            }
            if let Err(error) = rebuild(&pool).await {
                tracing::debug!(%error, "an index of the outbox is larger than it must be");
            }
            sleep((begun.elapsed() * REST).max(REST_MIN)).await;
        }
    }
}

async fn clear(pool: &Arc<Pool>) -> Result<(), StoreError> {
    for _ in 0..TRIES {
        vacuum(pool).await?;
        let mut turn = pool.checkout().await?;
        let left = sqlx::query_scalar(LEFT).fetch_one(&mut *turn).await;
        let left: i64 = turn.ended(left).map_err(store_error("counting deleted rows"))?;
        if usize::try_from(left).is_ok_and(|left| left < ROWS) {
            break;
        }
        sleep(TRY_WAIT).await;
    }
    Ok(())
}

async fn vacuum(pool: &Arc<Pool>) -> Result<(), StoreError> {
    let mut turn = pool.checkout().await?;
    let vacuumed = sqlx::raw_sql(VACUUM).execute(&mut *turn).await;
    turn.ended(vacuumed).map(drop).map_err(store_error("vacuuming"))
}

async fn rebuild(pool: &Arc<Pool>) -> Result<(), StoreError> {
    let mut turn = pool.checkout().await?;
    let swollen = sqlx::query_scalar(SWOLLEN).bind(INDEX_BYTES).fetch_all(&mut *turn).await;
    let swollen: Vec<String> = turn.ended(swollen).map_err(store_error("measuring indexes"))?;
    for table in swollen {
        let mut turn = pool.checkout().await?;
        let rebuild = AssertSqlSafe(format!("{REBUILD}{table}"));
        let rebuilt = sqlx::raw_sql(rebuild).execute(&mut *turn).await;
        turn.ended(rebuilt).map_err(store_error("making an index anew"))?;
    }
    Ok(())
}
