//! Calls while the registry is away, comes back empty, and says that there is nobody.
//!
//! Everything is what runs in production, with its default settings: servers and connections on
//! loopback, the keeper, the registrations. Only the registry is one in memory, and the client's clock
//! is moved by hand: a second at a time, with calls in each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxFuture;
use antiphon_discovery::{
    Answers, Discovery, Entry, Held, Instance, Registrar, Registration, RegistrationSettings,
    RegistryError, Resolver, Settings as DiscoverySettings, Standing,
};
use antiphon_rpc::client::{Channel, ClientSettings, targets};
use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::Exposition;
use tokio::sync::watch;
use tokio::time::{Instant, advance};

use crate::support::{Clock, GET, PUT, Running, breathe, call, moving, server_settings, start};

const SECOND: Duration = Duration::from_secs(1);

/// A registry in memory. Entries live as long as it remembers them.
#[derive(Clone)]
struct Registry(watch::Sender<State>);

#[derive(Clone, Default)]
struct State {
    /// Whether it answers at all.
    is_up: bool,
    /// Whether it takes registrations.
    takes_entries: bool,
    entries: BTreeMap<String, Instance>,
    /// Grows with every change of the entries.
    version: u64,
}

impl Registry {
    fn new() -> Self {
        Self(watch::Sender::new(State { is_up: true, takes_entries: true, ..State::default() }))
    }

    fn entries(&self) -> usize {
        self.0.borrow().entries.len()
    }

    fn stop(&self) {
        self.0.send_modify(|state| state.is_up = false);
    }

    /// It is there again, and has forgotten everything.
    fn restart_empty(&self, takes_entries: bool) {
        self.0.send_modify(|state| {
            state.entries.clear();
            state.version += 1;
            state.is_up = true;
            state.takes_entries = takes_entries;
        });
    }

    fn take_entries(&self) {
        self.0.send_modify(|state| state.takes_entries = true);
    }
}

fn away() -> RegistryError {
    RegistryError::silent("the registry does not answer")
}

struct Told {
    state: watch::Receiver<State>,
    seen: Option<u64>,
}

impl Resolver for Registry {
    fn watch(&self, _name: &str) -> Box<dyn Answers> {
        Box::new(Told { state: self.0.subscribe(), seen: None })
    }
}

impl Answers for Told {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, RegistryError>> {
        Box::pin(async move {
            loop {
                let state = self.state.borrow_and_update().clone();
                if !state.is_up {
                    self.seen = None;
                    return Err(away());
                }
                if self.seen != Some(state.version) {
                    self.seen = Some(state.version);
                    return Ok(state.entries.into_values().collect());
                }
                self.state.changed().await.unwrap();
            }
        })
    }

    fn look_again(&mut self) {
        self.seen = None;
    }
}

impl Registrar for Registry {
    fn entry(&self, _service: &str) -> Box<dyn Entry> {
        Box::new(Place(self.0.clone(), None))
    }
}

struct Place(watch::Sender<State>, Option<String>);

impl Entry for Place {
    fn hold<'a>(
        &'a mut self,
        instance: &'a Instance,
        held: &'a Held,
    ) -> BoxFuture<'a, RegistryError> {
        Box::pin(async move {
            let address = instance.address.to_string();
            let mut state = self.0.subscribe();
            let written = self.0.send_if_modified(|state| {
                let may = state.is_up && state.takes_entries;
                if may {
                    state.entries.insert(address.clone(), instance.clone());
                    state.version += 1;
                }
                may
            });
            if !written {
                return away();
            }
            self.1 = Some(address.clone());
            held.yes();
            loop {
                state.changed().await.unwrap();
                let state = state.borrow_and_update();
                if !state.is_up {
                    return away();
                }
                if !state.entries.contains_key(&address) {
                    return RegistryError::lost("the registry does not know it");
                }
            }
        })
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        if let Some(address) = self.1.take() {
            self.0.send_modify(|state| {
                state.entries.remove(&address);
                state.version += 1;
            });
        }
        Box::pin(std::future::ready(Ok(())))
    }
}

/// What callers saw.
#[derive(Debug, Default)]
struct Seen {
    calls: usize,
    failed: Vec<String>,
    by_instance: BTreeMap<String, usize>,
}

/// Five registered instances, and a client that finds them.
struct World {
    registry: Registry,
    _instances: Vec<Running>,
    registrations: Vec<Registration>,
    channel: Channel,
    telemetry: Telemetry,
    seen: Seen,
}

impl World {
    async fn begin(settings: DiscoverySettings) -> Self {
        let registry = Registry::new();
        let telemetry = Telemetry::new();
        let (mut instances, mut registrations) = (Vec::new(), Vec::new());
        for number in 0..5 {
            let running = start(&format!("i-{number}"), server_settings()).await;
            let instance = Instance::new(running.gate.address().to_string().parse().unwrap());
            registrations.push(Registration::start_recorded(
                &registry,
                "fleet",
                instance,
                RegistrationSettings::default(),
                &telemetry,
            ));
            instances.push(running);
        }
        for registration in &registrations {
            moving(registration.held()).await;
        }
        let discovery = Discovery::new(settings)
            .with("memory", Arc::new(registry.clone()))
            .recorded(&telemetry);
        let target = "memory:///fleet".parse().unwrap();
        let channel =
            Channel::new(&target, ClientSettings::default(), &discovery, &telemetry).unwrap();
        let seen = Seen::default();
        let mut world =
            Self { registry, _instances: instances, registrations, channel, telemetry, seen };
        while world.ready() < 5 {
            world.calls().await;
            world.pass(SECOND / 1_000).await;
        }
        world
    }

    fn ready(&self) -> usize {
        let target = targets(&self.telemetry).remove(0);
        target.instances.iter().filter(|instance| instance.state == "ready").count()
    }

    fn held(&self) -> usize {
        let held = |one: &&Registration| matches!(one.standing(), Standing::Held);
        self.registrations.iter().filter(held).count()
    }

    /// Ten calls at once, half of which nobody may do twice.
    async fn calls(&mut self) {
        let calls = (0..10).map(|number| call(&self.channel, if number < 5 { GET } else { PUT }));
        let ended = moving(futures_util::future::join_all(calls)).await;
        for outcome in ended {
            self.seen.calls += 1;
            match outcome {
                Ok(name) => *self.seen.by_instance.entry(name).or_default() += 1,
                Err(status) => {
                    let cause = std::error::Error::source(&status).map(ToString::to_string);
                    self.seen.failed.push(format!("{status}: {cause:?}"));
                }
            }
        }
    }

    /// Lets time pass, with everything that is due then.
    async fn pass(&self, time: Duration) {
        advance(time).await;
        breathe().await;
    }

    /// Seconds, with calls in each of them.
    async fn seconds(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.calls().await;
            self.pass(SECOND).await;
        }
    }

    fn metric(&self, series: &str) -> f64 {
        let metrics = self.telemetry.metrics(Exposition::OpenMetrics);
        let value = metrics.lines().find_map(|line| line.strip_prefix(series));
        value.unwrap_or_else(|| panic!("{series} in {metrics}")).trim().parse().unwrap()
    }

    fn of_target(&self, name: &str) -> f64 {
        self.metric(&format!("discovery_{name}{{server_address=\"memory:///fleet\"}}"))
    }
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_without_the_registry_and_one_that_forgot_everything_fail_no_call() {
    let _clock = Clock::hold();
    let mut world = World::begin(DiscoverySettings::default()).await;
    let changes = world.of_target("changes_total");
    world.seen = Seen::default();

    world.registry.stop();
    world.seconds(600).await;
    assert_eq!((world.of_target("answers"), world.held()), (0.0, 0));
    assert!(world.of_target("agreed_age_seconds") >= 600.0);
    let served = world.seen.by_instance.len();
    assert_eq!(served, 5, "all of them are called: {:?}", world.seen.by_instance);

    // For some time it says that there is nobody.
    world.registry.restart_empty(false);
    world.seconds(20).await;
    assert_eq!((world.of_target("answers"), world.of_target("doubting")), (1.0, 1.0));
    assert_eq!(world.registry.entries(), 0);

    world.registry.take_entries();
    let begun = Instant::now();
    while world.held() < 5 {
        world.seconds(1).await;
        assert!(begun.elapsed() < 20 * SECOND, "{} are registered", world.held());
    }
    let back = begun.elapsed();
    world.seconds(60).await;

    let Seen { calls, failed, by_instance } = &world.seen;
    println!(
        "{calls} calls while the registry was away for ten minutes, empty for 20 s, and after it: {} \
         failed; all five registered again after {} s; calls by instance: {by_instance:?}",
        failed.len(),
        back.as_secs(),
    );
    assert!(failed.is_empty(), "{} failed, the first: {}", failed.len(), failed[0]);
    assert!(*calls > 6_800);
    assert_eq!((world.registry.entries(), world.held(), world.ready()), (5, 5, 5));
    assert_eq!(world.of_target("instances"), 5.0);
    assert_eq!(world.of_target("doubting"), 0.0);
    assert_eq!(world.of_target("changes_total"), changes, "callers were never disturbed");
    assert_eq!(world.metric("discovery_registrations{service=\"fleet\",state=\"held\"}"), 5.0);
}

/// That the test above could fail.
#[tokio::test(start_paused = true)]
async fn a_client_that_believes_everything_fails_where_nobody_is_named() {
    let _clock = Clock::hold();
    let credulous = DiscoverySettings {
        empty_grace: antiphon_config::HumanDuration(Duration::ZERO),
        confirmations: 0,
        ..DiscoverySettings::default()
    };
    let mut world = World::begin(credulous).await;
    world.registry.stop();
    world.seconds(30).await;
    assert!(world.seen.failed.is_empty(), "{:?}", world.seen.failed);
    world.registry.restart_empty(false);
    world.seconds(20).await;
    assert!(!world.seen.failed.is_empty());
    assert_eq!(world.of_target("instances"), 0.0);
}
