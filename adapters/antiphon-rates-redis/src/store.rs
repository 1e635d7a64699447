//! The port of rate limits, over the connection.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_config::without_login;
use antiphon_core::{BoxError, BoxFuture};
use antiphon_resilience::{RateSettings, RateStore, Taken};
use tokio::task::AbortHandle;

use crate::connection::{Link, Supervisor, client};
use crate::error::StartError;
use crate::script::TAKE;
use crate::settings::Settings;

/// Where instances share their rate limits, on a Redis server.
///
/// It keeps its connection by itself: while there is none, every question is an error at once.
pub struct RedisRates {
    link: Arc<Link>,
    prefix: String,
    supervisor: AbortHandle,
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
        let client = client(settings)?;
        let link = Arc::new(Link::default());
        let supervisor = Supervisor {
            client,
            url: without_login(&settings.url),
            connect_timeout: settings.connect_timeout.0,
            link: Arc::clone(&link),
        };
        let supervisor = tokio::spawn(supervisor.run()).abort_handle();
        let prefix = format!("{}:rate:", settings.prefix);
        Ok(Self { link, prefix, supervisor })
    }

    /// Whether there is a connection at the moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link.get().is_ok()
    }

    /// Waits until there is a connection. Nobody has to: limits are kept without.
    ///
    /// # Cancel safety
    /// Safe: nothing is done.
    pub async fn connected(&self) {
        self.link.until(true).await;
    }

    /// Waits until there is no connection.
    ///
    /// # Cancel safety
    /// Safe: nothing is done.
    pub async fn disconnected(&self) {
        self.link.until(false).await;
    }

    async fn ask(&self, key: &[u8], rate: RateSettings, wanted: u32) -> Result<Taken, BoxError> {
        let mut connection = self.link.get()?;
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

impl Drop for RedisRates {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl fmt::Debug for RedisRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRates").field("prefix", &self.prefix).finish_non_exhaustive()
    }
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
