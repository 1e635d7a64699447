//! Clears away what was deleted from the outbox.
//!
//! A row that is deleted stays in the table until it is vacuumed. The server looks once a minute
//! whether that is due, which at tens of thousands of messages per second is a gigabyte late. So
//! whoever removes rows vacuums after so many of them: the table stays in memory, and reading a lane
//! from its beginning stays cheap. Two do not vacuum at once, and nobody does for more than a small
//! part of the time: while an old transaction is open, there is little that can be cleared away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use antiphon_outbox::StoreError;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::error::store_error;
use crate::pool::Pool;

/// So many rows are cleared away together.
const ROWS: usize = 20_000;
/// The wait after vacuuming, as a multiple of how long it took.
const REST: u32 = 10;
const REST_MIN: Duration = Duration::from_millis(200);

/// Freed pages are kept for the next rows, not given back to the file system: that would lock the
/// table.
const VACUUM: &str =
    "VACUUM (SKIP_LOCKED, TRUNCATE off, INDEX_CLEANUP on) antiphon_outbox, antiphon_outbox_delayed";

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
            if let Err(error) = vacuum(&pool).await {
                tracing::debug!(%error, "the outbox was not vacuumed; the server will do it");
            }
            sleep((begun.elapsed() * REST).max(REST_MIN)).await;
        }
    }
}

async fn vacuum(pool: &Arc<Pool>) -> Result<(), StoreError> {
    let mut turn = pool.checkout().await?;
    let vacuumed = sqlx::raw_sql(VACUUM).execute(&mut *turn).await;
    turn.ended(vacuumed).map(drop).map_err(store_error("vacuuming"))
}
