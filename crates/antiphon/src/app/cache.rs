//! The caches of a process, and the level that it shares with others.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::hash::Hash;
use std::str::FromStr;
use std::sync::Arc;

use antiphon_cache::{Builder, Cache, Codec, SharedLevel};
use antiphon_config::Settings;

use super::App;
use crate::error::{Error, Result};
use crate::settings;

/// What all caches of a process have in common.
pub(super) struct Caches {
    level: Option<Arc<dyn SharedLevel>>,
    /// Of those that were made.
    names: BTreeSet<String>,
}

impl Caches {
    /// Begins to connect to the shared level that the settings name, if they do. A server that is away
    /// keeps nobody from starting: the caches go on without it.
    ///
    /// # Errors
    /// The settings of the level make no sense, or name what this program was built without.
    pub(super) fn open(section: &settings::Caches, settings: &Settings) -> Result<Self> {
        let level = match &section.level.url {
            Some(url) => {
                let level = open_level(url.text(), &section.level);
                let placed = level.map_err(|error| {
                    error.placed(settings, |setting| match setting {
                        "url" => "cache_level.url".to_owned(),
                        other => format!("cache_level.redis.{other}"),
                    })
                });
                Some(placed?)
            }
            None => None,
        };
        Ok(Self { level, names: BTreeSet::new() })
    }
}

#[cfg(feature = "redis")]
fn open_level(url: &str, section: &settings::LevelSection) -> Result<Arc<dyn SharedLevel>> {
    let settings = antiphon_cache_redis::Settings { url: url.to_owned(), ..section.redis.clone() };
    match antiphon_cache_redis::RedisLevel::start(&settings) {
        Ok(level) => Ok(Arc::new(level)),
        Err(error) => Err(Error::mistake(error)),
    }
}

#[cfg(not(feature = "redis"))]
fn open_level(_: &str, _: &settings::LevelSection) -> Result<Arc<dyn SharedLevel>> {
    Err(Error::mistake(
        "cache_level.url names Redis, and this program was built without it: build it with the \
         feature `redis` of the crate `antiphon`",
    ))
}

impl App {
    /// The cache of this name, with the settings of `[cache.<name>]`: in the memory of this process,
    /// and behind that in the level of `[cache_level]` if the settings name one. `codec` turns values
    /// into bytes for it: [`Protobuf`](antiphon_cache::Protobuf) for messages of a contract,
    /// [`Json`](antiphon_cache::Json) for whatever serde knows.
    ///
    /// # Errors
    /// There is a cache of this name already; its settings make no sense.
    pub fn cache<K, V>(&mut self, name: &str, codec: impl Codec<V>) -> Result<Cache<K, V>>
    where
        K: Hash + Eq + Clone + Display + FromStr + Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        let mut builder = self.cache_builder(name)?;
        if let Some(level) = &self.caches.level {
            builder = builder.shared(Arc::clone(level), codec);
        }
        let cache = builder.build(&self.telemetry).map_err(Error::mistake)?;
        if cache.is_shared() {
            self.component(cache.last_words());
        }
        Ok(cache)
    }

    /// The same for a cache with wishes of its own, to be built with [`App::telemetry`]. Unless it is
    /// told otherwise, it is in the memory of this process alone, and its values need no codec.
    ///
    /// # Errors
    /// There is a cache of this name already.
    pub fn cache_builder<K, V>(&mut self, name: &str) -> Result<Builder<K, V>>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        if !self.caches.names.insert(name.to_owned()) {
            return Err(Error::mistake(format!("two caches of the process are called `{name}`")));
        }
        Ok(Cache::builder(name).settings(self.sections.caches.of(name)))
    }
}

impl fmt::Debug for Caches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caches").field("names", &self.names).finish_non_exhaustive()
    }
}
