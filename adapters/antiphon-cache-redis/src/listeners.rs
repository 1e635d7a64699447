//! Who is told what other processes invalidate, and the message that tells it.
//!
//! Before a new connection is used, every cache forgets what it has in memory, since invalidations may
//! have passed it by; and as long as there is none, they know that they hear of nothing.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use antiphon_cache::Listener;
use antiphon_core::BoxError;
use antiphon_redis_client::Owner;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, PushInfo, PushKind, RedisError};

/// The caches of this process that use the level.
pub(crate) struct Listeners {
    /// Which process this is: it knows of its own invalidations.
    process: String,
    /// Where invalidations are told.
    channel: String,
    /// Held while it is said that something is missed or heard again, so that whoever comes in between
    /// is told the last word.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Whether there is a connection that tells what others invalidate.
    hearing: bool,
    by_cache: HashMap<String, Vec<Weak<dyn Listener>>>,
}

impl Known {
    fn all(&self) -> impl Iterator<Item = Arc<dyn Listener>> {
        self.by_cache.values().flatten().filter_map(Weak::upgrade)
    }
}

impl Listeners {
    pub(crate) fn new(channel: String) -> Self {
        let process = format!("{:032x}", fastrand::u128(..));
        Self { process, channel, known: Mutex::default() }
    }

    pub(crate) fn channel(&self) -> &str {
        &self.channel
    }

    pub(crate) fn add(&self, cache: &str, listener: Weak<dyn Listener>) {
        let mut known = self.known.lock();
        if let Some(listener) = listener.upgrade().filter(|_| known.hearing) {
            listener.missed();
        }
        let listeners = known.by_cache.entry(cache.to_owned()).or_default();
        listeners.retain(|known| known.strong_count() > 0);
        listeners.push(listener);
    }

    /// Something was told that cannot be understood.
    fn lost_a_word(&self) {
        let known = self.known.lock();
        // Without a connection there is more to come than this.
        known.all().filter(|_| known.hearing).for_each(|listener| listener.missed());
    }

    /// The message that says that keys of a cache are invalidated.
    pub(crate) fn message(&self, cache: &str, keys: &[String]) -> Result<String, BoxError> {
        Ok(serde_json::to_string(&(&self.process, cache, keys))?)
    }

    fn changed(&self, process: String, cache: String, keys: Vec<String>) {
        if process == self.process {
            return;
        }
        let known = self.known.lock().by_cache.get(&cache).cloned().unwrap_or_default();
        let listeners: Vec<Arc<dyn Listener>> = known.iter().filter_map(Weak::upgrade).collect();
        for listener in listeners {
            keys.iter().for_each(|key| listener.changed(key));
        }
    }
}

impl Owner for Listeners {
    const NAME: &'static str = "cache";

    async fn prepare(&self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        connection.subscribe(&self.channel).await
    }

    /// What others invalidate is told from now on; before, all of them may have missed something.
    fn connected(&self) {
        let mut known = self.known.lock();
        known.hearing = true;
        known.all().for_each(|listener| listener.missed());
    }

    /// Nothing is told any more.
    fn disconnected(&self) {
        let mut known = self.known.lock();
        known.hearing = false;
        known.all().for_each(|listener| listener.deaf());
    }

    fn pushed(&self, push: PushInfo) {
        if push.kind != PushKind::Message {
            return;
        }
        let Some(payload) = push.data.into_iter().nth(1) else { return };
        let payload = Vec::<u8>::from_redis_value(payload).unwrap_or_default();
        match serde_json::from_slice(&payload) {
            Ok((process, cache, keys)) => self.changed(process, cache, keys),
            Err(error) => {
                tracing::warn!(%error, "an invalidation cannot be read; everything is forgotten");
                self.lost_a_word();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Listener for Heard {
        fn changed(&self, key: &str) {
            self.0.lock().push(key.to_owned());
        }

        fn deaf(&self) {
            self.0.lock().push("deaf".to_owned());
        }

        fn missed(&self) {
            self.0.lock().push("missed".to_owned());
        }
    }

    fn listeners() -> Listeners {
        Listeners::new("channel".to_owned())
    }

    fn push(listeners: &Listeners, text: &str) {
        let data = vec![
            Value::BulkString(b"channel".to_vec()),
            Value::BulkString(text.as_bytes().to_vec()),
        ];
        listeners.pushed(PushInfo { kind: PushKind::Message, data });
    }

    #[test]
    fn what_others_invalidate_is_heard_and_what_cannot_be_read_counts_as_missed() {
        let (own, other) = (listeners(), listeners());
        let heard = Arc::new(Heard::default());
        let listener: Arc<dyn Listener> = heard.clone();
        own.add("stock", Arc::downgrade(&listener));
        own.connected();
        let keys = ["a\n\"b".to_owned(), "c".to_owned()];
        push(&own, &other.message("stock", &keys).expect("a message"));
        push(&own, &other.message("prices", &keys).expect("a message"));
        push(&own, &own.message("stock", &keys).expect("a message"));
        push(&own, "something else");
        assert_eq!(*heard.0.lock(), ["missed", "a\n\"b", "c", "missed"]);
    }

    #[test]
    fn whoever_listens_is_told_whether_it_hears() {
        let listeners = listeners();
        let (early, late) = (Arc::new(Heard::default()), Arc::new(Heard::default()));
        let add = |heard: &Arc<Heard>| {
            let listener: Arc<dyn Listener> = Arc::<Heard>::clone(heard);
            listeners.add("stock", Arc::downgrade(&listener));
        };
        add(&early);
        assert!(early.0.lock().is_empty(), "there is no connection yet");
        listeners.connected();
        add(&late);
        listeners.disconnected();
        for heard in [early, late] {
            assert_eq!(*heard.0.lock(), ["missed", "deaf"]);
        }
    }
}
