//! What the consumer engine measures.
//!
//! Names follow OpenTelemetry's messaging conventions in Prometheus form. Labels are bounded: groups
//! and kinds come from the contract, and a group that meets too many kinds calls the rest `other`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::{Counter, Family, Gauge, Histogram, Registry, SECONDS};

type Labels<const N: usize> = [(&'static str, String); N];

/// The families, one set per process.
#[derive(Clone)]
pub(crate) struct Metrics {
    duration: Family<Labels<3>, Histogram, fn() -> Histogram>,
    consumed: Family<Labels<2>, Counter>,
    retries: Family<Labels<3>, Counter>,
    dead: Family<Labels<3>, Counter>,
    ignored: Family<Labels<1>, Counter>,
    stale: Family<Labels<1>, Counter>,
    lost: Family<Labels<1>, Counter>,
    in_flight: Family<Labels<1>, Gauge>,
    credits: Family<Labels<1>, Gauge>,
    parked: Family<Labels<1>, Gauge>,
    sent: Family<Labels<2>, Counter>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    pub(crate) fn of(telemetry: &Telemetry) -> Self {
        telemetry.instruments(Self::register)
    }

    fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            duration: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            consumed: Family::default(),
            retries: Family::default(),
            dead: Family::default(),
            ignored: Family::default(),
            stale: Family::default(),
            lost: Family::default(),
            in_flight: Family::default(),
            credits: Family::default(),
            parked: Family::default(),
            sent: Family::default(),
        };
        registry.register(
            "messaging_process_duration_seconds",
            "Time to handle a message once, by outcome (ack, retry, dead)",
            metrics.duration.clone(),
        );
        registry.register(
            "messaging_client_consumed_messages",
            "Messages delivered to a group of this process",
            metrics.consumed.clone(),
        );
        registry.register(
            "messaging_client_sent_messages",
            "Messages given to the broker, by outcome",
            metrics.sent.clone(),
        );
        registry.register(
            "messaging_retries",
            "Failed attempts that are made again, by where they wait (here, broker, parked)",
            metrics.retries.clone(),
        );
        registry.register(
            "messaging_dead_letters",
            "Messages that became dead letters, by reason",
            metrics.dead.clone(),
        );
        registry.register(
            "messaging_ignored_messages",
            "Messages of kinds that the group does not handle",
            metrics.ignored.clone(),
        );
        registry.register(
            "messaging_stale_settlements",
            "Settlements that came too late; each means one more delivery",
            metrics.stale.clone(),
        );
        registry.register(
            "messaging_lost_sources",
            "Subscriptions that the broker ended",
            metrics.lost.clone(),
        );
        registry.register(
            "messaging_in_flight_messages",
            "Messages that are held and not settled",
            metrics.in_flight.clone(),
        );
        registry.register(
            "messaging_credits",
            "How many messages more would be taken",
            metrics.credits.clone(),
        );
        registry.register(
            "messaging_parked_keys",
            "Keys that wait for the retry of one of their messages",
            metrics.parked.clone(),
        );
        metrics
    }

    /// Counts messages given to the broker.
    pub(crate) fn sent(&self, topic: &str, outcome: &'static str, count: u64) {
        let labels = [("topic", topic.to_owned()), ("outcome", outcome.to_owned())];
        self.sent.get_or_create(&labels).inc_by(count);
    }

    pub(crate) fn group(&self, group: &str) -> GroupMetrics {
        let labels = [("group", group.to_owned())];
        GroupMetrics {
            metrics: self.clone(),
            group: group.into(),
            ignored: self.ignored.get_or_create(&labels).clone(),
            stale: self.stale.get_or_create(&labels).clone(),
            lost: self.lost.get_or_create(&labels).clone(),
            in_flight: self.in_flight.get_or_create(&labels).clone(),
            credits: self.credits.get_or_create(&labels).clone(),
            parked: self.parked.get_or_create(&labels).clone(),
        }
    }
}

/// The instruments of one group, looked up once.
#[derive(Clone, Debug)]
pub(crate) struct GroupMetrics {
    metrics: Metrics,
    group: Arc<str>,
    pub(crate) ignored: Counter,
    pub(crate) stale: Counter,
    pub(crate) lost: Counter,
    pub(crate) in_flight: Gauge,
    pub(crate) credits: Gauge,
    pub(crate) parked: Gauge,
}

impl GroupMetrics {
    pub(crate) fn kind(&self, kind: &str) -> KindMetrics {
        let group = || ("group", self.group.to_string());
        let kind_label = || ("kind", kind.to_owned());
        let duration = |outcome: &str| {
            let labels = [group(), kind_label(), ("outcome", outcome.to_owned())];
            self.metrics.duration.get_or_create(&labels).clone()
        };
        let retries = |place: &str| {
            let labels = [group(), kind_label(), ("place", place.to_owned())];
            self.metrics.retries.get_or_create(&labels).clone()
        };
        KindMetrics {
            consumed: self.metrics.consumed.get_or_create(&[group(), kind_label()]).clone(),
            acked: duration("ack"),
            retried: duration("retry"),
            died: duration("dead"),
            retries_here: retries("here"),
            retries_broker: retries("broker"),
            retries_parked: retries("parked"),
        }
    }

    /// Counts a dead letter. Rare enough to look the counter up.
    pub(crate) fn dead(&self, kind: &str, code: &str) {
        let labels = [
            ("group", self.group.to_string()),
            ("kind", kind.to_owned()),
            ("code", code.to_owned()),
        ];
        self.metrics.dead.get_or_create(&labels).inc();
    }
}

/// The instruments of one kind of message in one group, looked up once.
#[derive(Clone, Debug)]
pub(crate) struct KindMetrics {
    pub(crate) consumed: Counter,
    acked: Histogram,
    retried: Histogram,
    died: Histogram,
    pub(crate) retries_here: Counter,
    pub(crate) retries_broker: Counter,
    pub(crate) retries_parked: Counter,
}

impl KindMetrics {
    pub(crate) fn acked(&self, took: Duration) {
        self.acked.observe(took.as_secs_f64());
    }

    pub(crate) fn retried(&self, took: Duration) {
        self.retried.observe(took.as_secs_f64());
    }

    pub(crate) fn died(&self, took: Duration) {
        self.died.observe(took.as_secs_f64());
    }
}
