//! `[server]`: where calls are answered, and the limits.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use antiphon_config::{ByteSize, HumanDuration, Mistake};
use antiphon_rpc::server::{CpuSettings, HeaderName, RateRule, RateSettings, ServerSettings};
use serde::{Deserialize, Serialize};

use super::RedisUrl;

/// `[server]`: where calls are answered, and the limits.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServerSection {
    pub(crate) listen: SocketAddr,
    workers: usize,
    connections_max: usize,
    connections_per_address_max: usize,
    sniff_timeout: HumanDuration,
    header_timeout: HumanDuration,
    idle_timeout: HumanDuration,
    body_idle_timeout: HumanDuration,
    write_timeout: HumanDuration,
    connection_age_max: HumanDuration,
    connection_age_grace: HumanDuration,
    keep_alive_interval: HumanDuration,
    keep_alive_timeout: HumanDuration,
    header_max: ByteSize,
    body_max: ByteSize,
    message_max: ByteSize,
    streams_max: u32,
    calls_max: u32,
    /// Whether unary methods get no more calls than keep the processor busy, once it is.
    cpu_guard: bool,
    /// The part of the processor time above which it is.
    cpu_threshold: Part,
    /// Whether no client gets more than its share of a method that is nearly full.
    fair_shares: bool,
    /// The header that says which client a call is of; without it the address of the peer does.
    client_header: Option<Header>,
    /// Whether callers are believed that their calls are critical.
    trust_priority: bool,
    timeout_default: HumanDuration,
    timeout_max: HumanDuration,
    slow_call: HumanDuration,
    lame_duck: HumanDuration,
    /// The origins whose pages may open WebSockets, besides the server's own.
    websocket_origins: Vec<String>,
    /// How often methods (`package.Service/Method`) and services may be called.
    rate_limits: BTreeMap<String, RateSection>,
    /// Where instances share those of them that are shared.
    pub(crate) shared_rates: SharedRatesSection,
}

impl Default for ServerSection {
    fn default() -> Self {
        let own = ServerSettings::default();
        Self {
            listen: own.listen,
            workers: own.workers,
            connections_max: own.connections_max,
            connections_per_address_max: own.connections_per_address_max,
            sniff_timeout: HumanDuration(own.sniff_timeout),
            header_timeout: HumanDuration(own.header_timeout),
            idle_timeout: HumanDuration(own.idle_timeout),
            body_idle_timeout: HumanDuration(own.body_idle_timeout),
            write_timeout: HumanDuration(own.write_timeout),
            connection_age_max: HumanDuration(own.connection_age_max),
            connection_age_grace: HumanDuration(own.connection_age_grace),
            keep_alive_interval: HumanDuration(own.keep_alive_interval),
            keep_alive_timeout: HumanDuration(own.keep_alive_timeout),
            header_max: ByteSize(usize::try_from(own.header_bytes_max).unwrap_or(usize::MAX)),
            body_max: ByteSize(own.body_bytes_max),
            message_max: ByteSize(own.message_bytes_max),
            streams_max: own.streams_max,
            calls_max: own.calls_max,
            cpu_guard: own.cpu.is_some(),
            cpu_threshold: Part(own.cpu.unwrap_or_default().threshold),
            fair_shares: own.fair_shares,
            client_header: None,
            trust_priority: own.trust_priority,
            timeout_default: HumanDuration(own.timeouts.default),
            timeout_max: HumanDuration(own.timeouts.max),
            slow_call: HumanDuration(own.slow_call),
            lame_duck: HumanDuration(own.lame_duck),
            websocket_origins: own.rest.origins,
            rate_limits: BTreeMap::new(),
            shared_rates: SharedRatesSection::default(),
        }
    }
}

impl ServerSection {
    /// Whether any rate limit is one that instances share.
    pub(crate) fn shares_rates(&self) -> bool {
        self.rate_limits.values().any(|limit| limit.shared)
    }

    /// What of it makes no sense in a process that ends `within` so much time.
    pub(crate) fn check(&self, within: HumanDuration) -> Result<(), Mistake> {
        for (setting, count) in [
            ("connections_max", self.connections_max),
            ("connections_per_address_max", self.connections_per_address_max),
            ("streams_max", self.streams_max as usize),
            ("calls_max", self.calls_max as usize),
            ("header_max", self.header_max.0),
            ("body_max", self.body_max.0),
            ("message_max", self.message_max.0),
        ] {
            if count == 0 {
                return Err(Mistake::new(setting, "it must be at least 1"));
            }
        }
        for (setting, time) in [
            ("sniff_timeout", self.sniff_timeout),
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
            ("body_idle_timeout", self.body_idle_timeout),
            ("write_timeout", self.write_timeout),
            ("connection_age_max", self.connection_age_max),
            ("keep_alive_interval", self.keep_alive_interval),
            ("keep_alive_timeout", self.keep_alive_timeout),
            ("timeout_default", self.timeout_default),
            ("timeout_max", self.timeout_max),
        ] {
            time.at_least(setting, Duration::from_millis(1))?;
        }
        if self.timeout_default > self.timeout_max {
            let problem =
                format!("{} is more than timeout_max, {}", self.timeout_default, self.timeout_max);
            return Err(Mistake::new("timeout_default", problem));
        }
        if self.lame_duck >= within {
            let problem = format!(
                "{} is no less than shutdown.within, {within}: nothing could be drained",
                self.lame_duck
            );
            return Err(Mistake::new("lame_duck", problem));
        }
        Ok(())
    }
}

impl From<&ServerSection> for ServerSettings {
    fn from(section: &ServerSection) -> Self {
        let mut settings = Self {
            listen: section.listen,
            workers: section.workers,
            connections_max: section.connections_max,
            connections_per_address_max: section.connections_per_address_max,
            sniff_timeout: section.sniff_timeout.0,
            header_timeout: section.header_timeout.0,
            idle_timeout: section.idle_timeout.0,
            body_idle_timeout: section.body_idle_timeout.0,
            write_timeout: section.write_timeout.0,
            connection_age_max: section.connection_age_max.0,
            connection_age_grace: section.connection_age_grace.0,
            keep_alive_interval: section.keep_alive_interval.0,
            keep_alive_timeout: section.keep_alive_timeout.0,
            header_bytes_max: u32::try_from(section.header_max.0).unwrap_or(u32::MAX),
            body_bytes_max: section.body_max.0,
            message_bytes_max: section.message_max.0,
            streams_max: section.streams_max,
            calls_max: section.calls_max,
            cpu: section.cpu_guard.then(|| CpuSettings {
                threshold: section.cpu_threshold.0,
                ..CpuSettings::default()
            }),
            fair_shares: section.fair_shares,
            client_header: section.client_header.as_ref().map(|header| header.0.clone()),
            trust_priority: section.trust_priority,
            rate_limits: section.rate_limits.iter().map(RateSection::rule).collect(),
            slow_call: section.slow_call.0,
            lame_duck: section.lame_duck.0,
            ..Self::default()
        };
        settings.timeouts.default = section.timeout_default.0;
        settings.timeouts.max = section.timeout_max.0;
        settings.rest.origins.clone_from(&section.websocket_origins);
        settings
    }
}

/// `[server.rate_limits."package.Service/Method"]`: how often it may be called.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RateSection {
    per_second: PerSecond,
    /// Calls that may come at once after a pause; those of a second when not given.
    #[serde(default)]
    burst: Option<Burst>,
    /// Whether each client has this for itself, or all have it together.
    #[serde(default)]
    per_client: bool,
    /// Whether all instances have this together, or each for itself.
    #[serde(default)]
    shared: bool,
}

impl RateSection {
    fn rule((name, section): (&String, &Self)) -> (String, RateRule) {
        let per_second = section.per_second.0;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "more than 0, and what is too large allows everything"
        )]
        let burst = section.burst.map_or(per_second.ceil() as u32, |burst| burst.0);
        let rate = RateSettings { per_second, burst };
        let (per_client, shared) = (section.per_client, section.shared);
        (name.clone(), RateRule { rate, per_client, shared })
    }
}

/// `[server.shared_rates]`: where instances share their rate limits. What only one technology knows
/// stands in a section of its name: `[server.shared_rates.redis]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SharedRatesSection {
    /// `redis://host` or `rediss://host`. Limits cannot be shared unless set.
    pub(crate) url: Option<RedisUrl>,
    /// How long a call may wait for the store; then the instance decides alone.
    pub(crate) timeout: Patience,
    #[cfg(feature = "redis")]
    pub(crate) redis: antiphon_rates_redis::Settings,
}

impl Default for SharedRatesSection {
    fn default() -> Self {
        Self {
            url: None,
            timeout: Patience(HumanDuration::from_millis(20)),
            #[cfg(feature = "redis")]
            redis: antiphon_rates_redis::Settings::default(),
        }
    }
}

/// How long a call may wait: more than nothing, and no more than a second.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(try_from = "HumanDuration", into = "HumanDuration")]
pub(crate) struct Patience(pub(crate) HumanDuration);

impl TryFrom<HumanDuration> for Patience {
    type Error = &'static str;

    fn try_from(time: HumanDuration) -> Result<Self, Self::Error> {
        let fits = time >= HumanDuration::from_millis(1) && time <= HumanDuration::from_secs(1);
        fits.then_some(Self(time)).ok_or("expected a time from 1ms to 1s: calls wait for it")
    }
}

impl From<Patience> for HumanDuration {
    fn from(patience: Patience) -> Self {
        patience.0
    }
}

/// A part of a whole, more than 0 and at most 1.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(try_from = "f64")]
struct Part(f64);

impl TryFrom<f64> for Part {
    type Error = &'static str;

    fn try_from(part: f64) -> Result<Self, Self::Error> {
        let fits = part > 0.0 && part <= 1.0;
        fits.then_some(Self(part)).ok_or("expected a part of 1 such as 0.8, more than 0")
    }
}

/// Calls per second, more than 0.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(try_from = "f64")]
struct PerSecond(f64);

impl TryFrom<f64> for PerSecond {
    type Error = &'static str;

    fn try_from(rate: f64) -> Result<Self, Self::Error> {
        let fits = rate > 0.0 && rate.is_finite();
        fits.then_some(Self(rate)).ok_or("expected calls per second such as 50 or 0.5, more than 0")
    }
}

/// Calls at once, at least one.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(try_from = "u32")]
struct Burst(u32);

impl TryFrom<u32> for Burst {
    type Error = &'static str;

    fn try_from(calls: u32) -> Result<Self, Self::Error> {
        (calls > 0)
            .then_some(Self(calls))
            .ok_or("expected at least 1 call: a burst of 0 lets none in")
    }
}

/// The name of a header.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
struct Header(HeaderName);

impl TryFrom<String> for Header {
    type Error = String;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let header = HeaderName::try_from(&name);
        header.map(Self).map_err(|_| format!("{name:?} cannot be the name of a header"))
    }
}

impl From<Header> for String {
    fn from(header: Header) -> Self {
        header.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use antiphon_config::{Settings, Sources};

    use super::*;

    fn read(text: &str) -> Result<ServerSettings, String> {
        let sources = Sources::new().text("antiphon.toml", text);
        let settings = Settings::load(&sources).map_err(|error| error.to_string())?;
        let section: ServerSection = settings.section("server").map_err(|e| e.to_string())?;
        Ok(ServerSettings::from(&section))
    }

    #[test]
    fn what_is_not_said_is_as_the_server_has_it() {
        assert_eq!(read("").unwrap(), ServerSettings::default());
    }

    #[test]
    fn limits_are_read() {
        let settings = read(
            r#"
            [server]
            calls_max = 500
            cpu_threshold = 0.9
            fair_shares = false
            client_header = "X-Tenant"
            trust_priority = false

            [server.rate_limits."shop.orders.v1.OrderService"]
            per_second = 12.5

            [server.rate_limits."shop.orders.v1.OrderService/PlaceOrder"]
            per_second = 50
            burst = 7
            per_client = true
            shared = true
            "#,
        )
        .unwrap();
        let cpu = CpuSettings { threshold: 0.9, ..CpuSettings::default() };
        assert_eq!((settings.calls_max, settings.cpu), (500, Some(cpu)));
        assert_eq!((settings.fair_shares, settings.trust_priority), (false, false));
        assert_eq!(settings.client_header.unwrap(), "x-tenant");
        let rule = |per_second, burst, per_client, shared| RateRule {
            rate: RateSettings { per_second, burst },
            per_client,
            shared,
        };
        let limits: Vec<_> = settings.rate_limits.into_values().collect();
        assert_eq!(limits, [rule(12.5, 13, false, false), rule(50.0, 7, true, true)]);
        assert_eq!(read("[server]\ncpu_guard = false").unwrap().cpu, None);
    }

    #[test]
    fn every_mistake_is_said_with_its_place() {
        let limit = |text: &str| format!("[server.rate_limits.\"a.B/C\"]\n{text}");
        let shared = |text: &str| format!("[server.shared_rates]\n{text}");
        for (text, place, what) in [
            ("[server]\ncpu_threshold = 80".to_owned(), "cpu_threshold", "a part of 1 such as 0.8"),
            (
                "[server]\nclient_header = \"x y\"".to_owned(),
                "client_header",
                "the name of a header",
            ),
            (limit("per_second = 0"), "per_second", "more than 0"),
            (limit("per_second = 5\nburst = 0"), "burst", "at least 1 call"),
            (limit("burst = 5"), "rate_limits", "per_second"),
            (limit("per_second = 5\nper_minute = 5"), "per_minute", "per_client"),
            (limit("per_second = 5\nshared = \"yes\""), "shared", "true or false"),
            (shared("timeout = \"0ms\""), "timeout", "from 1ms to 1s"),
            (shared("timeout = \"1m\""), "timeout", "from 1ms to 1s"),
            (shared("urls = \"redis://a\""), "urls", "url"),
            (shared("url = \"memcached://a\""), ".url", "begins with `memcached:`"),
            (shared("url = \"a\""), ".url", "is no URL"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(place) && error.contains(what), "{error}");
            assert!(error.contains("antiphon.toml"), "{error}");
        }
    }

    #[test]
    fn where_limits_are_shared_is_read() {
        let section = |text: &str| {
            let settings = Settings::load(&Sources::new().text("antiphon.toml", text)).unwrap();
            settings.section::<ServerSection>("server").unwrap().shared_rates
        };
        let own = section("");
        assert_eq!((own.url, own.timeout.0), (None, HumanDuration::from_millis(20)));
        let given = section("[server.shared_rates]\nurl = \"rediss://a\"\ntimeout = \"5ms\"");
        assert_eq!(given.url.as_ref().map(RedisUrl::text), Some("rediss://a"));
        assert_eq!(given.timeout.0, HumanDuration::from_millis(5));
    }

    #[test]
    fn times_and_sizes_are_read() {
        let settings = read("[server]\nlame_duck = \"3s\"\nbody_max = \"2MiB\"").unwrap();
        assert_eq!(settings.lame_duck, Duration::from_secs(3));
        assert_eq!(settings.body_bytes_max, 2 * 1024 * 1024);
    }
}
