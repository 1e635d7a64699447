//! `[cache.<name>]`: what a cache keeps; `[cache_level]`: where processes share what they keep.

use std::collections::BTreeMap;

use antiphon_cache::CacheSettings;
use antiphon_config::Settings;
use serde::{Deserialize, Serialize};

use super::RedisUrl;

/// The caches of a process.
#[derive(Clone, Debug)]
pub(crate) struct Caches {
    /// By name; a cache that is not in it has the defaults.
    single: BTreeMap<String, CacheSettings>,
    pub(crate) level: LevelSection,
}

/// `[cache_level]`: the level behind the memory of all caches, which processes share. What only one
/// technology knows stands in a section of its name: `[cache_level.redis]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LevelSection {
    /// Where it is: `redis://host` or `rediss://host`. There is no such level unless set.
    pub(crate) url: Option<RedisUrl>,
    #[cfg(feature = "redis")]
    pub(crate) redis: antiphon_cache_redis::Settings,
}

impl Caches {
    /// Reads both sections.
    ///
    /// # Errors
    /// A setting that cannot be read or makes no sense.
    pub(crate) fn read(settings: &Settings) -> Result<Self, antiphon_config::Error> {
        let single: BTreeMap<String, CacheSettings> = settings.section("cache")?;
        for (name, cache) in &single {
            cache.check().map_err(|mistake| {
                let path = format!("cache.{name}.{}", mistake.setting());
                settings.mistaken(&path, mistake.problem())
            })?;
        }
        Ok(Self { single, level: settings.section("cache_level")? })
    }

    /// What a cache keeps.
    pub(crate) fn of(&self, name: &str) -> CacheSettings {
        self.single.get(name).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use antiphon_config::{HumanDuration, Sources};

    use super::*;

    fn read(text: &str) -> Result<Caches, String> {
        let settings = Settings::load(&Sources::new().text("antiphon.toml", text)).unwrap();
        let caches = Caches::read(&settings).map_err(|error| error.to_string())?;
        settings.finish().map_err(|error| error.to_string())?;
        Ok(caches)
    }

    #[test]
    fn a_cache_has_its_section_or_the_defaults() {
        let caches = read("[cache.stock]\nttl = \"5s\"\n[cache_level]\nurl = \"redis://a:1\"\n");
        let caches = caches.unwrap();
        assert_eq!(caches.of("stock").ttl, HumanDuration::from_secs(5));
        assert_eq!(caches.of("prices"), CacheSettings::default());
        assert_eq!(caches.level.url.unwrap().text(), "redis://a:1");
        assert!(read("").unwrap().level.url.is_none());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("[cache.stock]\ntlt = \"5s\"", "ttl"),
            (
                "[cache.stock]\nttl = \"0s\"",
                "antiphon.toml:2:7: `cache.stock.ttl`: 0s is less than 1ms",
            ),
            (
                "[cache.stock]\ncapacity = 0",
                "antiphon.toml:2:12: `cache.stock.capacity`: it must be",
            ),
            ("[cache]\nttl = \"5s\"", "ttl"),
            ("[cache_level]\nurls = \"redis://a\"", "url"),
            (
                "[cache_level]\nurl = \"memcached://a\"",
                "antiphon.toml:2:7: `cache_level.url`: it begins with `memcached:`",
            ),
            ("[cache_level]\nurl = \"localhost\"", "`cache_level.url`: it is no URL"),
        ] {
            let words = read(text).unwrap_err();
            assert!(words.contains(word), "{text}: {words}");
        }
    }
}
