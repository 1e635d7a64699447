//! What discovery counts and shows: by target that is watched, and by service that this process
//! registers. Both come from settings and contracts, so there are few.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::{
    Collector, ConstGauge, Counter, DescriptorEncoder, EncodeMetric, Family, MetricType, Registry,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Standing;
use crate::watch::Shared;

/// The label of a target: the same as that of the client's metrics.
const TARGET: &str = "server_address";
/// The label of a service that this process registers.
const SERVICE: &str = "service";

type By = [(&'static str, Arc<str>); 1];

#[derive(Clone)]
struct Instruments {
    changes: Family<By, Counter>,
    failures: Family<By, Counter>,
    registration_failures: Family<By, Counter>,
    shown: Shown,
}

impl Instruments {
    fn of(telemetry: &Telemetry) -> Self {
        telemetry.instruments(Self::register)
    }

    fn register(registry: &mut Registry) -> Self {
        let instruments = Self {
            changes: Family::default(),
            failures: Family::default(),
            registration_failures: Family::default(),
            shown: Shown::default(),
        };
        registry.register(
            "discovery_changes",
            "How often the instances of a target became others, the first ones included",
            instruments.changes.clone(),
        );
        registry.register(
            "discovery_failures",
            "Times that a registry could not be asked, or refused",
            instruments.failures.clone(),
        );
        registry.register(
            "discovery_registration_failures",
            "Times that this process could not be registered, or was so no longer",
            instruments.registration_failures.clone(),
        );
        registry.register_collector(Box::new(instruments.shown.clone()));
        instruments
    }
}

/// What is counted of one target. Counted for nobody by default.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counted {
    /// Another set was made known.
    pub(crate) changes: Counter,
    /// The registry was asked in vain.
    pub(crate) failures: Counter,
}

/// Counts for a target, and shows how it stands for as long as it is watched.
pub(crate) fn watched(telemetry: &Telemetry, target: &str, shared: &Arc<Shared>) -> Counted {
    let instruments = Instruments::of(telemetry);
    let target: Arc<str> = target.into();
    let shown = (Arc::clone(&target), Arc::downgrade(shared));
    instruments.shown.0.lock().watches.push(shown);
    let labels = [(TARGET, target)];
    Counted {
        changes: instruments.changes.get_or_create(&labels),
        failures: instruments.failures.get_or_create(&labels),
    }
}

/// Counts the failures of a registration, and shows how it stands until it is over.
pub(crate) fn registered(
    telemetry: &Telemetry,
    service: &str,
    standing: watch::Receiver<Standing>,
) -> Counter {
    let instruments = Instruments::of(telemetry);
    let service: Arc<str> = service.into();
    instruments.shown.0.lock().registrations.push((Arc::clone(&service), standing));
    instruments.registration_failures.get_or_create(&[(SERVICE, service)])
}

/// What there is to show.
#[derive(Clone, Debug, Default)]
struct Shown(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    watches: Vec<(Arc<str>, Weak<Shared>)>,
    registrations: Vec<(Arc<str>, watch::Receiver<Standing>)>,
}

/// How a target stands. Where it is watched more than once, as it is while settings change: how the
/// watch stands that fares worst.
#[derive(Clone, Copy, Debug)]
struct Target {
    instances: usize,
    age_seconds: Option<f64>,
    answers: bool,
    doubting: bool,
}

impl Target {
    fn of(shared: &Shared, now: Instant) -> Self {
        let trust = shared.trust();
        let age = trust.agreed.map(|at| now.saturating_duration_since(at).as_secs_f64());
        Self {
            instances: shared.instances(),
            age_seconds: age,
            answers: trust.trouble.is_none() && age.is_some(),
            doubting: trust.doubting,
        }
    }

    fn or_worse(self, other: Self) -> Self {
        let oldest = |one: f64| other.age_seconds.map(|other| one.max(other));
        Self {
            instances: self.instances.min(other.instances),
            age_seconds: self.age_seconds.and_then(oldest),
            answers: self.answers && other.answers,
            doubting: self.doubting || other.doubting,
        }
    }
}

impl Shown {
    fn targets(&self) -> BTreeMap<Arc<str>, Target> {
        let now = Instant::now();
        let mut inner = self.0.lock();
        inner.watches.retain(|(_, shared)| shared.strong_count() > 0);
        let mut targets = BTreeMap::<Arc<str>, Target>::new();
        for (name, shared) in &inner.watches {
            let Some(shared) = shared.upgrade() else { continue };
            let target = Target::of(&shared, now);
            targets
                .entry(Arc::clone(name))
                .and_modify(|known| *known = known.or_worse(target))
                .or_insert(target);
        }
        targets
    }

    /// By service how many instances others can see, and how many they cannot.
    fn registrations(&self) -> BTreeMap<Arc<str>, [u32; 2]> {
        let mut inner = self.0.lock();
        inner.registrations.retain(|(_, standing)| {
            standing.has_changed().is_ok() && !matches!(*standing.borrow(), Standing::Over { .. })
        });
        let mut services = BTreeMap::<Arc<str>, [u32; 2]>::new();
        for (service, standing) in &inner.registrations {
            let is_held = matches!(*standing.borrow(), Standing::Held);
            services.entry(Arc::clone(service)).or_default()[usize::from(!is_held)] += 1;
        }
        services
    }
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let targets = self.targets();
        let mut gauges = |name, help, value: &dyn Fn(&Target) -> Option<f64>| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (target, stands) in &targets {
                if let Some(value) = value(stands) {
                    let labels = [(TARGET, &**target)];
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
            Ok::<(), fmt::Error>(())
        };
        let flag = |is_so: bool| Some(f64::from(u8::from(is_so)));
        gauges("discovery_instances", "Instances of a target that are known", &|target| {
            Some(target.instances as f64)
        })?;
        gauges(
            "discovery_agreed_age_seconds",
            "How long ago the registry last agreed with the instances that are known",
            &|target| target.age_seconds,
        )?;
        gauges(
            "discovery_answers",
            "Whether the registry answered when it was last asked",
            &|target| flag(target.answers),
        )?;
        gauges(
            "discovery_doubting",
            "Whether instances are kept that the registry does not name any more",
            &|target| flag(target.doubting),
        )?;
        let mut family = encoder.encode_descriptor(
            "discovery_registrations",
            "Instances of this process by whether others can find them",
            None,
            MetricType::Gauge,
        )?;
        for (service, counts) in self.registrations() {
            for (state, count) in ["held", "missing"].into_iter().zip(counts) {
                let labels = [(SERVICE, &*service), ("state", state)];
                ConstGauge::new(f64::from(count)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
