//! `[client]`: how other services are called; `[clients."package.Service"]`: what is different for one.

use std::collections::BTreeMap;

use antiphon_config::{ByteSize, HumanDuration, Settings};
use antiphon_core::Code;
use antiphon_resilience::balance::{BalanceSettings, Policy};
use antiphon_resilience::{
    Backoff, BudgetSettings, BulkheadSettings, EjectionSettings, HedgeSettings, RetryPolicy,
    ThrottleSettings,
};
use antiphon_rpc::ServiceInfo;
use antiphon_rpc::client::{ClientSettings, InvalidTarget, MethodSettings, Target};
use serde::{Deserialize, Serialize};

/// How calls are made: to all services, or to one.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ClientSection {
    /// Where the instances are; without it the service's name is looked up in the registry.
    pub(crate) target: Option<String>,
    connect_timeout: HumanDuration,
    connections_max: usize,
    idle_timeout: HumanDuration,
    keep_alive_interval: HumanDuration,
    keep_alive_timeout: HumanDuration,
    timeout: HumanDuration,
    wait_for_ready: bool,
    message_max: ByteSize,
    /// The most instances that are connected to; all without it.
    subset_size: Option<usize>,
    /// Calls in progress at most.
    calls_max: u32,
    /// Calls that wait for a place at most.
    calls_waiting_max: u32,
    balance: BalanceSection,
    retry: RetrySection,
    hedge: HedgeSection,
    ejection: EjectionSection,
    throttle: ThrottleSection,
    /// By name.
    methods: BTreeMap<String, MethodSection>,
}

/// Which instance takes a call.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct BalanceSection {
    policy: PolicyName,
    /// Where this process runs: instances of the same zone are preferred.
    zone: Option<String>,
    slow_start: HumanDuration,
    /// Of `least_request`: how many are compared.
    choices: u32,
    /// Of `consistent_hash`: how many times the average of calls one instance may have.
    bound: f32,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum PolicyName {
    PeakEwma,
    RoundRobin,
    WeightedRoundRobin,
    LeastRequest,
    ConsistentHash,
}

/// When a call is tried again.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RetrySection {
    attempts_max: u32,
    /// Codes by name, where the contract says that a second call is harmless.
    codes: Vec<String>,
    delay_initial: HumanDuration,
    delay_max: HumanDuration,
    /// Extra attempts per call.
    budget_ratio: f64,
    /// Extra attempts per second that are allowed in any case.
    budget_per_second_min: f64,
}

/// When a second attempt begins beside the first.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct HedgeSection {
    delay: HumanDuration,
    quantile: f64,
    budget_ratio: f64,
}

/// When an instance that fails is set aside.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct EjectionSection {
    consecutive_failures: u32,
    interval: HumanDuration,
    time: HumanDuration,
    time_max: HumanDuration,
    /// The part of the instances that may be set aside at once.
    part_max: f64,
}

/// When calls are held back.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct ThrottleSection {
    k: f64,
    window: HumanDuration,
    drop_max: f64,
}

/// What is different for one method.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct MethodSection {
    timeout: Option<HumanDuration>,
    attempts_max: Option<u32>,
    wait_for_ready: Option<bool>,
    hedge: Option<bool>,
}

impl Default for ClientSection {
    fn default() -> Self {
        let own = ClientSettings::default();
        Self {
            target: None,
            connect_timeout: HumanDuration(own.connect_timeout),
            connections_max: own.connections_max,
            idle_timeout: HumanDuration(own.idle_timeout),
            keep_alive_interval: HumanDuration(own.keep_alive_interval),
            keep_alive_timeout: HumanDuration(own.keep_alive_timeout),
            timeout: HumanDuration(own.timeout),
            wait_for_ready: own.wait_for_ready,
            message_max: ByteSize(own.message_bytes_max),
            subset_size: own.subset_size,
            calls_max: own.bulkhead.in_flight_max,
            calls_waiting_max: own.bulkhead.waiting_max,
            balance: BalanceSection::default(),
            retry: RetrySection::default(),
            hedge: HedgeSection::default(),
            ejection: EjectionSection::default(),
            throttle: ThrottleSection::default(),
            methods: BTreeMap::new(),
        }
    }
}

impl Default for BalanceSection {
    fn default() -> Self {
        let own = BalanceSettings::default();
        Self {
            policy: PolicyName::PeakEwma,
            zone: None,
            slow_start: HumanDuration(own.slow_start),
            choices: 2,
            bound: 1.25,
        }
    }
}

impl Default for RetrySection {
    fn default() -> Self {
        let (own, budget) = (RetryPolicy::default(), BudgetSettings::RETRY);
        Self {
            attempts_max: own.attempts_max,
            codes: vec![Code::Unavailable.name().to_owned()],
            delay_initial: HumanDuration(own.backoff.initial),
            delay_max: HumanDuration(own.backoff.max),
            budget_ratio: budget.ratio,
            budget_per_second_min: budget.per_second_min,
        }
    }
}

impl Default for HedgeSection {
    fn default() -> Self {
        let own = HedgeSettings::default();
        Self {
            delay: HumanDuration(own.delay),
            quantile: own.quantile,
            budget_ratio: own.budget.ratio,
        }
    }
}

impl Default for EjectionSection {
    fn default() -> Self {
        let own = EjectionSettings::default();
        Self {
            consecutive_failures: own.consecutive_failures,
            interval: HumanDuration(own.sweep_interval),
            time: HumanDuration(own.base),
            time_max: HumanDuration(own.max),
            part_max: own.part_max,
        }
    }
}

impl Default for ThrottleSection {
    fn default() -> Self {
        let own = ThrottleSettings::default();
        Self { k: own.k, window: HumanDuration(own.window), drop_max: own.drop_max }
    }
}

/// How each service is called.
#[derive(Clone, Debug)]
pub(crate) struct Clients {
    all: ClientSection,
    /// By the full name of the service.
    single: BTreeMap<String, ClientSection>,
}

impl Clients {
    /// Reads `[client]`, and each `[clients."…"]` laid over it.
    pub(crate) fn read(settings: &Settings) -> Result<Self, antiphon_config::Error> {
        let all: ClientSection = settings.section("client")?;
        let single = settings
            .names("clients")
            .into_iter()
            .map(|service| {
                Ok((service.clone(), settings.section_over("client", "clients", &service)?))
            })
            .collect::<Result<_, antiphon_config::Error>>()?;
        Ok(Self { all, single })
    }

    /// How a service is called.
    pub(crate) fn of(&self, service: &str) -> &ClientSection {
        self.single.get(service).unwrap_or(&self.all)
    }

    /// Refuses what is said of methods that a service does not have. What is said of all services may
    /// name methods that only some of them have.
    ///
    /// # Errors
    /// The name of the setting, and which methods there are.
    pub(crate) fn check_methods(&self, service: &ServiceInfo) -> Result<(), String> {
        let Some(section) = self.single.get(service.name) else { return Ok(()) };
        let known: Vec<&str> = service.methods.iter().map(|method| method.name).collect();
        let has = |name: &str| {
            let own = match name.split_once('/') {
                Some((of, method)) if of == service.name => method,
                Some(_) => return false,
                None => name,
            };
            known.contains(&own)
        };
        let mut own = section.methods.keys().filter(|name| !self.all.methods.contains_key(*name));
        match own.find(|name| !has(name)) {
            None => Ok(()),
            Some(name) => Err(format!(
                "clients.{:?}.methods.{name}: {} has no such method; it has {}",
                service.name,
                service.name,
                known.join(", ")
            )),
        }
    }
}

impl ClientSection {
    /// Where `service` is.
    ///
    /// # Errors
    /// Nobody says it, or the target is none.
    pub(crate) fn target(
        &self,
        service: &str,
        discovery: &antiphon_discovery::Settings,
    ) -> Result<Target, String> {
        let parse = |text: &str| text.parse().map_err(|error: InvalidTarget| error.to_string());
        match &self.target {
            Some(text) => parse(text),
            None if discovery.registry.is_some() => parse(service),
            None => Err(format!(
                "nobody says where {service} is: serve it in this process, or set `target` of \
                 [clients.\"{service}\"] to a target such as static:127.0.0.1:8080, or `registry` of \
                 [discovery]"
            )),
        }
    }

    /// What they are for calls to `service`.
    ///
    /// # Errors
    /// A value that makes no sense, with what would.
    pub(crate) fn settings(&self, service: &str) -> Result<ClientSettings, String> {
        let own = ClientSettings::default();
        let positive = |name: &str, time: HumanDuration| match time.0.is_zero() {
            true => Err(format!("client.{name} must be more than nothing")),
            false => Ok(time.0),
        };
        let part = |name: &str, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(value),
            false => Err(format!("client.{name} must lie between 0 and 1, not {value}")),
        };
        self.check()?;
        let methods = self
            .methods
            .iter()
            .map(|(name, method)| {
                let name =
                    if name.contains('/') { name.clone() } else { format!("{service}/{name}") };
                Ok((name, method.settings()?))
            })
            .collect::<Result<_, String>>()?;
        Ok(ClientSettings {
            connect_timeout: positive("connect_timeout", self.connect_timeout)?,
            connections_max: self.connections_max,
            idle_timeout: positive("idle_timeout", self.idle_timeout)?,
            keep_alive_interval: positive("keep_alive_interval", self.keep_alive_interval)?,
            keep_alive_timeout: positive("keep_alive_timeout", self.keep_alive_timeout)?,
            timeout: positive("timeout", self.timeout)?,
            wait_for_ready: self.wait_for_ready,
            message_bytes_max: self.message_max.0,
            subset_size: self.subset_size,
            balance: BalanceSettings {
                policy: self.balance.policy(),
                zone: self.balance.zone.as_deref().map(Into::into),
                slow_start: self.balance.slow_start.0,
                ..own.balance
            },
            ejection: EjectionSettings {
                consecutive_failures: self.ejection.consecutive_failures,
                sweep_interval: positive("ejection.interval", self.ejection.interval)?,
                base: positive("ejection.time", self.ejection.time)?,
                max: positive("ejection.time_max", self.ejection.time_max)?,
                part_max: part("ejection.part_max", self.ejection.part_max)?,
                ..own.ejection
            },
            retry: self.retry.policy()?,
            budget: BudgetSettings {
                ratio: self.retry.budget_ratio,
                per_second_min: self.retry.budget_per_second_min,
                ..BudgetSettings::RETRY
            },
            hedge: HedgeSettings {
                delay: positive("hedge.delay", self.hedge.delay)?,
                quantile: part("hedge.quantile", self.hedge.quantile)?,
                budget: BudgetSettings {
                    ratio: part("hedge.budget_ratio", self.hedge.budget_ratio)?,
                    ..BudgetSettings::HEDGE
                },
            },
            bulkhead: BulkheadSettings {
                in_flight_max: self.calls_max,
                waiting_max: self.calls_waiting_max,
            },
            throttle: ThrottleSettings {
                k: self.throttle.k,
                window: positive("throttle.window", self.throttle.window)?,
                drop_max: self.throttle.drop_max,
                ..own.throttle
            },
            methods,
        })
    }

    /// What of the numbers makes no sense.
    fn check(&self) -> Result<(), String> {
        if self.throttle.k < 1.0 || !self.throttle.k.is_finite() {
            return Err(format!("client.throttle.k must be at least 1, not {}", self.throttle.k));
        }
        if !(0.0..1.0).contains(&self.throttle.drop_max) {
            let given = self.throttle.drop_max;
            return Err(format!("client.throttle.drop_max must be below 1, not {given}"));
        }
        let budget = [self.retry.budget_ratio, self.retry.budget_per_second_min];
        if !budget.iter().all(|part| part.is_finite() && *part >= 0.0) {
            return Err("client.retry: a budget is a number, and not negative".into());
        }
        if self.balance.bound.is_nan() || self.balance.bound < 1.0 {
            let given = self.balance.bound;
            return Err(format!("client.balance.bound must be at least 1, not {given}"));
        }
        for (name, number) in [
            ("connections_max", Some(self.connections_max)),
            ("message_max", Some(self.message_max.0)),
            ("subset_size", self.subset_size),
            ("calls_max", usize::try_from(self.calls_max).ok()),
            ("balance.choices", usize::try_from(self.balance.choices).ok()),
        ] {
            if number == Some(0) {
                return Err(format!("client.{name} must be at least 1"));
            }
        }
        Ok(())
    }
}

impl BalanceSection {
    const fn policy(&self) -> Policy {
        match self.policy {
            PolicyName::PeakEwma => Policy::PeakEwma,
            PolicyName::RoundRobin => Policy::RoundRobin,
            PolicyName::WeightedRoundRobin => Policy::WeightedRoundRobin,
            PolicyName::LeastRequest => Policy::LeastRequest { choices: self.choices },
            PolicyName::ConsistentHash => Policy::ConsistentHash { bound: self.bound },
        }
    }
}

impl RetrySection {
    fn policy(&self) -> Result<RetryPolicy, String> {
        check_attempts("retry.attempts_max", self.attempts_max)?;
        if self.delay_initial > self.delay_max {
            return Err(format!(
                "client.retry.delay_initial is {}, more than delay_max, {}",
                self.delay_initial, self.delay_max
            ));
        }
        let code = |name: &String| {
            Code::from_name(name).ok_or_else(|| {
                format!("client.retry.codes: {name:?} is no code; write UNAVAILABLE, for example")
            })
        };
        Ok(RetryPolicy {
            attempts_max: self.attempts_max,
            codes: self.codes.iter().map(code).collect::<Result<_, _>>()?,
            backoff: Backoff {
                initial: self.delay_initial.0,
                max: self.delay_max.0,
                ..Backoff::RETRY
            },
        })
    }
}

fn check_attempts(name: &str, given: u32) -> Result<(), String> {
    let most = RetryPolicy::ATTEMPTS_LIMIT;
    match (1..=most).contains(&given) {
        true => Ok(()),
        false => Err(format!("client.{name} must be 1 to {most}, not {given}")),
    }
}

impl MethodSection {
    fn settings(&self) -> Result<MethodSettings, String> {
        if self.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
            return Err("client.methods: a timeout must be more than nothing".into());
        }
        self.attempts_max.map_or(Ok(()), |given| check_attempts("methods: attempts_max", given))?;
        Ok(MethodSettings {
            timeout: self.timeout.map(|HumanDuration(timeout)| timeout),
            attempts_max: self.attempts_max,
            wait_for_ready: self.wait_for_ready,
            hedge: self.hedge,
        })
    }
}

#[cfg(test)]
mod tests;
