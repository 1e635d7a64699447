//! What is known of every target of the process: for `/debug/targets` and for metrics by instance.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::{
    Collector, ConstGauge, DescriptorEncoder, EncodeMetric, MetricType,
};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use super::instance::State;
use super::policy::PolicyValue;
use super::remote::Remote;

/// A target, as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct TargetReport {
    /// As configured.
    pub target: String,
    /// The part of the calls that is held back, 0 to 1.
    pub held_back: f64,
    /// How long ago the registry last agreed with the set of instances; nothing before its first
    /// answer.
    pub agreed_seconds_ago: Option<f64>,
    /// Whether there are instances that the registry does not name any more.
    pub doubting: bool,
    /// Why the registry could not be asked the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// What holds for the calls of each method.
    pub methods: Vec<MethodReport>,
    /// The instances that this client connects to.
    pub instances: Vec<InstanceReport>,
}

/// What holds for the calls of a method.
#[derive(Clone, Debug, Serialize)]
pub struct MethodReport {
    /// `package.Service/Method`.
    pub method: &'static str,
    /// Value by value, and who said so.
    pub policy: Vec<PolicyValue>,
}

/// An instance, as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct InstanceReport {
    /// Its address.
    pub address: String,
    /// Its zone, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Its weight.
    pub weight: u32,
    /// `idle`, `connecting`, `ready`, `backing_off` or `draining`.
    pub state: &'static str,
    /// Whether it is set aside because it failed.
    pub set_aside: bool,
    /// Open connections.
    pub connections: usize,
    /// Calls under way.
    pub in_flight: u32,
    /// Calls given to it since the process knows it.
    pub picked: u64,
    /// How long it takes to answer, in seconds: the peak, which decays.
    pub latency_seconds: f64,
    /// Why it cannot be connected to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// All targets of the process.
#[derive(Clone, Debug, Default)]
struct Targets(Arc<Mutex<Vec<Weak<Remote>>>>);

impl Targets {
    fn of(telemetry: &Telemetry) -> Self {
        telemetry.instruments(|registry| {
            let targets = Self::default();
            registry.register_collector(Box::new(targets.clone()));
            targets
        })
    }

    fn report(&self) -> Vec<TargetReport> {
        let mut remotes = self.0.lock();
        remotes.retain(|remote| remote.strong_count() > 0);
        let remotes: Vec<_> = remotes.iter().filter_map(Weak::upgrade).collect();
        remotes.iter().map(|remote| remote.report()).collect()
    }
}

/// Remembers a target for the reports, for as long as it is used.
pub(super) fn remember(telemetry: &Telemetry, remote: &Arc<Remote>) {
    Targets::of(telemetry).0.lock().push(Arc::downgrade(remote));
}

/// What is known of every target that this process calls.
#[must_use]
pub fn targets(telemetry: &Telemetry) -> Vec<TargetReport> {
    Targets::of(telemetry).report()
}

impl Remote {
    fn report(&self) -> TargetReport {
        let now = Instant::now();
        let instances = self.pool.instances();
        let trust = self.pool.trust();
        TargetReport {
            target: self.target().to_string(),
            held_back: self.throttle.drop_part(now),
            agreed_seconds_ago: trust.agreed.map(|at| now.duration_since(at).as_secs_f64()),
            doubting: trust.doubting,
            trouble: trust.trouble.as_deref().map(str::to_owned),
            methods: self.explain(),
            instances: instances.iter().map(|instance| instance.report(now)).collect(),
        }
    }
}

/// Instances by target and address. One that several channels lead to is there once, with what they do
/// together: two samples with the same labels would spoil the metrics of the whole process.
fn by_labels(targets: Vec<TargetReport>) -> BTreeMap<(String, String), InstanceReport> {
    let mut instances = BTreeMap::<_, InstanceReport>::new();
    for target in targets {
        for one in target.instances {
            let labels = (target.target.clone(), one.address.clone());
            let Some(known) = instances.get_mut(&labels) else {
                instances.insert(labels, one);
                continue;
            };
            known.in_flight += one.in_flight;
            known.picked += one.picked;
            known.latency_seconds = known.latency_seconds.max(one.latency_seconds);
            known.set_aside |= one.set_aside;
            if one.state == State::Ready.name() {
                known.state = one.state;
            }
        }
    }
    instances
}

impl Collector for Targets {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let instances = by_labels(self.report());
        let mut gauges = |name, help, value: &dyn Fn(&InstanceReport) -> f64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for ((target, address), instance) in &instances {
                let labels = [
                    ("server_address", target.as_str()),
                    ("instance", address.as_str()),
                    ("state", instance.state),
                ];
                ConstGauge::new(value(instance)).encode(family.encode_family(&labels)?)?;
            }
            Ok::<(), fmt::Error>(())
        };
        gauges("rpc_client_instance_in_flight", "Calls under way at an instance", &|one| {
            f64::from(one.in_flight)
        })?;
        gauges(
            "rpc_client_instance_latency_seconds",
            "How long an instance takes to answer, its decaying peak",
            &|one| one.latency_seconds,
        )?;
        gauges(
            "rpc_client_instance_set_aside",
            "Whether an instance is set aside because it failed",
            &|one| f64::from(u8::from(one.set_aside)),
        )?;
        gauges(
            "rpc_client_instance_picked",
            "Calls given to an instance since it is known",
            &|one| one.picked as f64,
        )
    }
}
