//! The database's clock, as this process sees it.
//!
//! All processes of a service decide about leases, timers and horizons by one clock. Asking for it
//! each time would cost a round trip, so it is asked for now and then, and goes on with this
//! machine's monotonic clock in between, which nobody sets.

use std::time::Duration;

use antiphon_core::{Clock, Timestamp};
use parking_lot::Mutex;
use sqlx::MySqlConnection;
use tokio::time::Instant;

/// How often the database's clock is looked at again.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(30);

/// How often it is asked at a time; the quickest answer is the most exact one.
const LOOKS: usize = 3;

/// Where a store has its time from.
#[derive(Debug)]
pub(crate) enum Time {
    /// A clock that was given.
    Given(Clock),
    /// The database's clock, when it was looked at last.
    Database(Mutex<Look>),
}

/// What the database's clock showed at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    shown: Timestamp,
    at: Instant,
}

impl Look {
    fn now(self) -> Timestamp {
        self.shown + self.at.elapsed()
    }
}

impl Time {
    /// Looks at the database's clock, unless another one was given.
    pub(crate) async fn of(
        given: Option<Clock>,
        connection: &mut MySqlConnection,
    ) -> Result<Self, sqlx::Error> {
        Ok(match given {
            Some(clock) => Self::Given(clock),
            None => Self::Database(Mutex::new(look(connection).await?)),
        })
    }

    /// What time it is.
    pub(crate) fn now(&self) -> Timestamp {
        match self {
            Self::Given(clock) => clock.now(),
            Self::Database(look) => look.lock().now(),
        }
    }

    /// Whether it must be looked at now and then.
    pub(crate) const fn is_databases(&self) -> bool {
        matches!(self, Self::Database(_))
    }

    /// Takes in what the database's clock shows now.
    pub(crate) fn set(&self, new: Look) {
        let Self::Database(look) = self else { return };
        let mut look = look.lock();
        let (before, after) = (look.now(), new.now());
        let drift = before.since(after).max(after.since(before));
        if drift > Duration::from_secs(1) {
            tracing::warn!(?drift, "the database's clock or this machine's has jumped");
        }
        *look = new;
    }
}

/// Asks the database what time it is. What it shows is taken to be from the middle of the wait.
pub(crate) async fn look(connection: &mut MySqlConnection) -> Result<Look, sqlx::Error> {
    let mut best: Option<(Duration, Look)> = None;
    for _ in 0..LOOKS {
        let asked = Instant::now();
        let micros: i64 =
            sqlx::query_scalar("SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))")
                .fetch_one(&mut *connection)
                .await?;
        let waited = asked.elapsed();
        if best.is_none_or(|(shortest, _)| waited < shortest) {
            let look = Look { shown: Timestamp::from_micros(micros), at: asked + waited / 2 };
            best = Some((waited, look));
        }
    }
    best.map(|(_, look)| look).ok_or(sqlx::Error::RowNotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_goes_on_between_two_looks_and_is_set_by_each() {
        let look = |millis| Look { shown: Timestamp::from_millis(millis), at: Instant::now() };
        let time = Time::Database(Mutex::new(look(5_000)));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(time.now(), Timestamp::from_millis(7_000));
        time.set(look(9_000));
        assert_eq!(time.now(), Timestamp::from_millis(9_000));
        assert!(time.is_databases());
    }
}
