//! The port of rate limits, over the connection.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_config::without_login;
use antiphon_core::{BoxError, BoxFuture};
use antiphon_redis_client::{Connection, Owner, StartError};
use antiphon_resilience::{RateSettings, RateStore, Taken};
use redis::ProtocolVersion;

use crate::script::TAKE;
use crate::settings::Settings;

/// Where instances share their rate limits, on a Redis server.
///
/// It keeps its connection by itself: while there is none, every question is an error at once.
pub struct RedisRates {
    connection: Connection,
    prefix: String,
}

impl RedisRates {
    /// Begins to connect. The server may be away: the store is, until it is there.
    ///
    /// # Errors
    /// The settings cannot work, whatever the server does.
    ///
    /// # Panics
    /// Outside a Tokio runtime. The connection lives on the one that this is called on.
    pub fn start(settings: &Settings) -> Result<Self, StartError> {
        settings.check().map_err(StartError::Settings)?;
        let client = settings.server().client(ProtocolVersion::RESP3)?;
        let url = without_login(&settings.url);
        let connection =
            Connection::keep(client, url, settings.connect_timeout.0, Arc::new(Limits));
        Ok(Self { connection, prefix: format!("{}:rate:", settings.prefix) })
    }

    /// Whether there is a connection at the moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection.get().is_ok()
    }

    /// Waits until there is a connection. Nobody has to: limits are kept without.
    ///
    /// # Cancel safety
    /// Safe: nothing is done.
    pub async fn connected(&self) {
        self.connection.until(true).await;
    }

    /// Waits until there is no connection.
    ///
    /// # Cancel safety
    /// Safe: nothing is done.
    pub async fn disconnected(&self) {
        self.connection.until(false).await;
    }

    async fn ask(&self, key: &[u8], rate: RateSettings, wanted: u32) -> Result<Taken, BoxError> {
        let mut connection = self.connection.get()?;
        let name = [self.prefix.as_bytes(), key].concat();
        let mut take = TAKE.key(name);
        take.arg(interval_micros(rate)).arg(rate.burst.max(1)).arg(wanted);
        let (granted, wait): (u32, u64) = take.invoke_async(&mut connection).await?;
        Ok(Taken { granted, wait: Duration::from_micros(wait) })
    }
}

impl RateStore for RedisRates {
    fn take<'a>(
        &'a self,
        key: &'a [u8],
        rate: RateSettings,
        wanted: u32,
    ) -> BoxFuture<'a, Result<Taken, BoxError>> {
        Box::pin(self.ask(key, rate, wanted))
    }
}

impl fmt::Debug for RedisRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRates").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Whose connection it is.
struct Limits;

impl Owner for Limits {
    const NAME: &'static str = "shared rate limits";
}

/// The time between two calls of a steady stream, to the nanosecond.
fn interval_micros(rate: RateSettings) -> String {
    let nanos = rate.interval().as_nanos();
    format!("{}.{:03}", nanos / 1_000, nanos % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_exact_to_the_nanosecond() {
        let text = |per_second| interval_micros(RateSettings { per_second, burst: 1 });
        assert_eq!(text(10.0), "100000.000");
        assert_eq!(text(3.0), "333333.333");
        assert_eq!(text(8_000_000.0), "0.125");
        assert_eq!(text(f64::INFINITY), "0.001");
        assert_eq!(text(0.0), "31536000000000.000");
    }
}
