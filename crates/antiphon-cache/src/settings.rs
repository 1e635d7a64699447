//! What can be chosen about a cache, and whether it makes sense.

use std::time::Duration;

use antiphon_config::{ByteSize, HumanDuration, Mistake};
use serde::{Deserialize, Serialize};

use crate::freshness::jittered;

/// The longest time that makes sense for a cache; what is longer is a mistake, and more than clocks bear.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3_600);

/// `[cache.<name>]`: how much is kept, and for how long.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheSettings {
    /// How many entries are kept in memory.
    pub capacity: u64,
    /// How many bytes of values are kept in memory, as far as the cache knows their sizes: see
    /// [`Builder::weigh`](crate::Builder::weigh). An entry costs about 200 bytes besides. At most
    /// 4 GiB per entry count.
    pub bytes_max: ByteSize,
    /// How long a value is fresh, give or take a tenth, so that what was loaded together does not end
    /// together.
    pub ttl: HumanDuration,
    /// How long it is known that there is no value for a key; `0s` not to remember it.
    pub negative_ttl: HumanDuration,
    /// How long after its time a value is still served while a new one is loaded.
    pub stale_while_revalidate: HumanDuration,
    /// How long after its time a value is still served when loading fails.
    pub stale_if_error: HumanDuration,
    /// How long a failed load is not tried again while there is an old value to serve.
    pub retry_pause: HumanDuration,
    /// How long a load may take.
    pub load_timeout: HumanDuration,
    /// How many loads run at a time; more wait.
    pub loads_max: usize,
    /// How long the shared level may take to answer a read; then the value is loaded.
    pub shared_timeout: HumanDuration,
    /// How many keys the filter of existing keys is made for; `0` for no filter.
    pub filter_keys: usize,
    /// How many of the keys that do not exist pass the filter, as a share.
    pub filter_false_rate: f64,
    /// How old the filter gets before it is due to be built anew, without the keys that are gone.
    pub filter_age_max: HumanDuration,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            capacity: 100_000,
            bytes_max: ByteSize::mib(64),
            ttl: HumanDuration::from_secs(60),
            negative_ttl: HumanDuration::from_secs(10),
            stale_while_revalidate: HumanDuration::from_secs(10),
            stale_if_error: HumanDuration::from_secs(60),
            retry_pause: HumanDuration::from_secs(1),
            load_timeout: HumanDuration::from_secs(5),
            loads_max: 256,
            shared_timeout: HumanDuration::from_millis(100),
            filter_keys: 0,
            filter_false_rate: 0.001,
            filter_age_max: HumanDuration::from_secs(3_600),
        }
    }
}

impl CacheSettings {
    /// How long a value is kept after its time.
    pub(crate) fn stale_max(&self) -> Duration {
        self.stale_while_revalidate.0.max(self.stale_if_error.0)
    }

    /// How long an entry can be of use.
    pub(crate) fn kept_max(&self) -> Duration {
        jittered(self.ttl.0.max(self.negative_ttl.0), 1.0) + self.stale_max()
    }

    /// The weight that an entry has at least. With it the one bound on weight that the memory level
    /// knows bounds the number of entries, too.
    pub(crate) fn weight_min(&self) -> u32 {
        let bytes = u64::try_from(self.bytes_max.0).unwrap_or(u64::MAX);
        u32::try_from(bytes.div_ceil(self.capacity.max(1))).unwrap_or(u32::MAX)
    }

    /// What of them does not make sense.
    ///
    /// # Errors
    /// The first setting that does not.
    pub fn check(&self) -> Result<(), Mistake> {
        for (name, is_nothing) in [
            ("capacity", self.capacity == 0),
            ("bytes_max", self.bytes_max.0 == 0),
            ("loads_max", self.loads_max == 0),
        ] {
            if is_nothing {
                return Err(Mistake::new(name, "it must be at least 1"));
            }
        }
        for (name, value) in [
            ("ttl", self.ttl),
            ("retry_pause", self.retry_pause),
            ("load_timeout", self.load_timeout),
            ("shared_timeout", self.shared_timeout),
            ("filter_age_max", self.filter_age_max),
        ] {
            value.at_least(name, Duration::from_millis(1))?;
        }
        for (name, value) in [
            ("ttl", self.ttl),
            ("negative_ttl", self.negative_ttl),
            ("stale_while_revalidate", self.stale_while_revalidate),
            ("stale_if_error", self.stale_if_error),
            ("retry_pause", self.retry_pause),
            ("load_timeout", self.load_timeout),
            ("shared_timeout", self.shared_timeout),
            ("filter_age_max", self.filter_age_max),
        ] {
            if value.0 > LONGEST {
                return Err(Mistake::new(name, format!("{value} is more than a year")));
            }
        }
        if !(1e-9..=0.5).contains(&self.filter_false_rate) {
            let rate = self.filter_false_rate;
            let problem = format!("{rate} is not between 0.000000001 and 0.5");
            return Err(Mistake::new("filter_false_rate", problem));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use antiphon_config::{Settings, Sources};

    use super::*;

    fn problem(change: impl FnOnce(&mut CacheSettings)) -> String {
        let mut settings = CacheSettings::default();
        change(&mut settings);
        settings.check().expect_err("it makes no sense").to_string()
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        assert_eq!(CacheSettings::default().check(), Ok(()));
        assert!(problem(|s| s.ttl = HumanDuration::from_secs(0)).starts_with("ttl: 0s"));
        assert!(problem(|s| s.capacity = 0).contains("capacity"));
        let long = HumanDuration::from_secs(400 * 24 * 3_600);
        assert!(problem(|s| s.stale_if_error = long).starts_with("stale_if_error: 400d"));
        assert!(problem(|s| s.filter_false_rate = 0.0).contains("filter_false_rate: 0"));
        assert!(problem(|s| s.filter_false_rate = f64::NAN).contains("filter_false_rate"));
    }

    #[test]
    fn a_section_names_what_differs_from_the_defaults() {
        let text = "[cache.stock]\ncapacity = 5_000\nttl = '30s'\nfilter_keys = 20_000\n";
        let settings = Settings::load(&Sources::new().text("antiphon.toml", text));
        let settings = settings.expect("settings");
        let caches: BTreeMap<String, CacheSettings> = settings.section("cache").expect("caches");
        let expected = CacheSettings {
            capacity: 5_000,
            ttl: HumanDuration::from_secs(30),
            filter_keys: 20_000,
            ..CacheSettings::default()
        };
        assert_eq!(caches["stock"], expected);
        let wrong =
            Settings::load(&Sources::new().text("antiphon.toml", "[cache.stock]\ntlt = '1s'"));
        let wrong = wrong.expect("settings").section::<BTreeMap<String, CacheSettings>>("cache");
        let wrong = wrong.expect_err("there is no such setting").to_string();
        assert!(wrong.contains("tlt") && wrong.contains("ttl"), "{wrong}");
    }

    #[test]
    fn the_least_weight_bounds_the_number_of_entries() {
        let cases = [(64 << 20, 100_000, 672), (1_000, 10, 100), (10, 1_000, 1)];
        for (bytes, capacity, weight) in cases {
            let bytes_max = ByteSize(bytes);
            let settings = CacheSettings { capacity, bytes_max, ..CacheSettings::default() };
            assert_eq!(settings.weight_min(), weight, "{bytes} in {capacity}");
        }
    }
}
