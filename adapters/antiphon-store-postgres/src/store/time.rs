//! The database's clock, without asking it each time.
//!
//! All processes decide leases, horizons and timers by one clock. Its time is measured now and then:
//! halfway between asking and the answer, of several questions the one that was answered fastest;
//! in between it goes on with this machine's monotonic clock, which nobody sets.

use std::time::Duration;

use antiphon_core::{Clock, Timestamp};
use parking_lot::RwLock;
use sqlx::PgConnection;
use tokio::time::Instant;

/// How often the clock is measured.
pub(crate) const MEASURE_INTERVAL: Duration = Duration::from_secs(20);
const QUESTIONS: u32 = 4;

#[derive(Debug)]
pub(crate) enum Time {
    /// As the settings say.
    Given(Clock),
    /// The database's.
    Measured(RwLock<Reading>),
}

/// A time and when it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    time: Timestamp,
    at: Instant,
    /// How far off it may be.
    error: Duration,
}

impl Time {
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn new(
        given: Option<Clock>,
        connection: &mut PgConnection,
    ) -> Result<Self, sqlx::Error> {
        Ok(match given {
            Some(clock) => Self::Given(clock),
            None => Self::Measured(RwLock::new(measure(connection).await?)),
        })
    }

    pub(crate) fn now(&self) -> Timestamp {
        match self {
            Self::Given(clock) => clock.now(),
            Self::Measured(reading) => reading.read().at(Instant::now()),
        }
    }

    pub(crate) const fn is_measured(&self) -> bool {
        matches!(self, Self::Measured(_))
    }

    /// Measures again.
    pub(crate) async fn measure(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        if let Self::Measured(reading) = self {
            let fresh = measure(connection).await?;
            let mut reading = reading.write();
            *reading = reading.corrected(fresh);
        }
        Ok(())
    }
}

impl Reading {
    fn at(self, now: Instant) -> Timestamp {
        self.time + now.saturating_duration_since(self.at)
    }

    /// What a fresh measurement makes of what was known: one that took long, on a busy machine,
    /// moves the clock no further than it may be off.
    fn corrected(self, fresh: Self) -> Self {
        let known = self.at(fresh.at);
        let off = fresh.time.since(known).max(known.since(fresh.time));
        if off <= fresh.error { Self { time: known, ..fresh } } else { fresh }
    }
}

async fn measure(connection: &mut PgConnection) -> Result<Reading, sqlx::Error> {
    let mut best: Option<Reading> = None;
    for _ in 0..QUESTIONS {
        let asked = Instant::now();
        let micros: i64 =
            sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
                .fetch_one(&mut *connection)
                .await?;
        let error = asked.elapsed() / 2;
        if best.is_none_or(|best| error < best.error) {
            let (time, at) = (Timestamp::from_micros(micros), asked + error);
            best = Some(Reading { time, at, error });
        }
    }
    best.ok_or(sqlx::Error::RowNotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(millis: i64, at: Instant, error: u64) -> Reading {
        Reading { time: Timestamp::from_millis(millis), at, error: Duration::from_millis(error) }
    }

    #[test]
    fn a_reading_goes_on_with_the_machines_clock() {
        let at = Instant::now();
        let read = reading(1_000, at, 1);
        assert_eq!(read.at(at + Duration::from_millis(250)), Timestamp::from_millis(1_250));
    }

    #[test]
    fn a_measurement_corrects_by_more_than_its_own_error_only() {
        let at = Instant::now();
        let later = at + Duration::from_secs(10);
        let known = reading(1_000, at, 1);
        let within = known.corrected(reading(11_040, later, 50));
        assert_eq!(within.at(later), Timestamp::from_millis(11_000));
        let beyond = known.corrected(reading(11_040, later, 30));
        assert_eq!(beyond.at(later), Timestamp::from_millis(11_040));
        let back = known.corrected(reading(10_900, later, 30));
        assert_eq!(back.at(later), Timestamp::from_millis(10_900));
    }
}
