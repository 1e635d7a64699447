//! The port of the cache, over the connection.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use antiphon_cache::{Age, Found, Lease, Listener, Record, SharedLevel};
use antiphon_config::without_login;
use antiphon_core::{BoxError, BoxFuture};
use antiphon_redis_client::{Connection, StartError};
use bytes::Bytes;
use redis::{ProtocolVersion, Value};

use crate::listeners::Listeners;
use crate::scripts::{FILL, INVALIDATE, READ};
use crate::settings::Settings;

/// A level that caches of several processes share, on a Redis server.
///
/// It keeps its connection by itself: while there is none, every question is an error at once.
pub struct RedisLevel {
    connection: Connection,
    listeners: Arc<Listeners>,
    prefix: String,
    lease_ms: u64,
}

impl RedisLevel {
    /// Begins to connect. The server may be away: the level is, until it is there.
    ///
    /// # Errors
    /// The settings cannot work, whatever the server does.
    ///
    /// # Panics
    /// Outside a Tokio runtime. The connection lives on the one that this is called on.
    pub fn start(settings: &Settings) -> Result<Self, StartError> {
        settings.check().map_err(StartError::Settings)?;
        let client = settings.server().client(ProtocolVersion::RESP3)?;
        let channel = format!("{}:cache-invalidations", settings.prefix);
        let listeners = Arc::new(Listeners::new(channel));
        let url = without_login(&settings.url);
        let timeout = settings.connect_timeout.0;
        let connection = Connection::keep(client, url, timeout, Arc::clone(&listeners));
        let prefix = format!("{}:cache:", settings.prefix);
        Ok(Self { connection, listeners, prefix, lease_ms: millis(settings.lease.0) })
    }

    /// Whether there is a connection at the moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection.get().is_ok()
    }

    /// Waits until there is a connection. Nobody has to: a cache goes on without.
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

    fn name(&self, cache: &str, key: &str) -> String {
        format!("{}{cache}:{key}", self.prefix)
    }

    async fn look_up(&self, cache: &str, key: &str) -> Result<Found, BoxError> {
        let mut connection = self.connection.get()?;
        let offered = format!("{:032x}", fastrand::u128(..));
        let mut read = READ.key(self.name(cache, key));
        read.arg(offered).arg(self.lease_ms);
        let answer: Vec<Value> = read.invoke_async(&mut connection).await?;
        found(answer)
    }

    async fn store(
        &self,
        cache: &str,
        key: &str,
        lease: &Lease,
        record: Record,
    ) -> Result<bool, BoxError> {
        let mut connection = self.connection.get()?;
        let stale = millis(record.stale);
        let life = millis(record.fresh).saturating_add(stale).max(1);
        let mut fill = FILL.key(self.name(cache, key));
        fill.arg(&lease.0).arg(life).arg(stale);
        if let Some(value) = &record.value {
            fill.arg(&value[..]);
        }
        Ok(fill.invoke_async(&mut connection).await?)
    }

    async fn remove(&self, cache: &str, keys: &[String]) -> Result<(), BoxError> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection.get()?;
        let message = self.listeners.message(cache, keys)?;
        let mut invalidate = INVALIDATE.prepare_invoke();
        for key in keys {
            invalidate.key(self.name(cache, key));
        }
        invalidate.arg(self.listeners.channel()).arg(message);
        Ok(invalidate.invoke_async(&mut connection).await?)
    }
}

impl SharedLevel for RedisLevel {
    fn read<'a>(&'a self, cache: &'a str, key: &'a str) -> BoxFuture<'a, Result<Found, BoxError>> {
        Box::pin(self.look_up(cache, key))
    }

    fn fill<'a>(
        &'a self,
        cache: &'a str,
        key: &'a str,
        lease: &'a Lease,
        record: Record,
    ) -> BoxFuture<'a, Result<bool, BoxError>> {
        Box::pin(self.store(cache, key, lease, record))
    }

    fn invalidate<'a>(
        &'a self,
        cache: &'a str,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(self.remove(cache, keys))
    }

    fn listen(&self, cache: &str, listener: Weak<dyn Listener>) {
        // Without a connection it misses something, and is told so when there is one.
        self.listeners.add(cache, listener);
    }
}

impl fmt::Debug for RedisLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLevel").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// What the answer of [`READ`] says.
fn found(answer: Vec<Value>) -> Result<Found, BoxError> {
    let mut parts = answer.into_iter();
    let lease = parts.next().ok_or("the server's answer is empty")?;
    let lease = Lease(redis::from_redis_value(lease)?);
    let (Some(life), Some(stale)) = (parts.next(), parts.next()) else {
        return Ok(Found { lease, stored: None });
    };
    let life: i64 = redis::from_redis_value(life)?;
    let stale: i64 = redis::from_redis_value(stale)?;
    let value: Option<Vec<u8>> = parts.next().map(redis::from_redis_value).transpose()?.flatten();
    Ok(Found { lease, stored: Some((value.map(Bytes::from), age(life, stale))) })
}

/// How old something is that lives for so long yet, the last `stale` of it without being fresh.
fn age(life_ms: i64, stale_ms: i64) -> Age {
    let fresh_ms = life_ms.saturating_sub(stale_ms);
    let time = Duration::from_millis(fresh_ms.unsigned_abs());
    if fresh_ms > 0 { Age::Fresh(time) } else { Age::Stale(time) }
}

fn millis(duration: Duration) -> u64 {
    // Lua counts in doubles; a year is enough for a cache.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(365 * 24 * 3_600_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_its_life_says_how_old_a_value_is() {
        assert_eq!(age(1_500, 1_000), Age::Fresh(Duration::from_millis(500)));
        assert_eq!(age(1_000, 1_000), Age::Stale(Duration::ZERO));
        assert_eq!(age(400, 1_000), Age::Stale(Duration::from_millis(600)));
    }

    #[test]
    fn answers_are_understood() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let lease = Lease("l".to_owned());
        let nothing = found(vec![text("l")]).expect("an answer");
        assert_eq!(nothing, Found { lease: lease.clone(), stored: None });
        let fresh = Age::Fresh(Duration::from_millis(5));
        let absent = vec![text("l"), Value::Int(5), text("0"), Value::Nil];
        let absent = found(absent).expect("an answer");
        assert_eq!(absent, Found { lease: lease.clone(), stored: Some((None, fresh)) });
        let value = found(vec![text("l"), Value::Int(5), text("0"), text("v")]).expect("an answer");
        assert_eq!(value.stored, Some((Some(Bytes::from_static(b"v")), fresh)));
        assert!(found(Vec::new()).is_err());
    }
}
