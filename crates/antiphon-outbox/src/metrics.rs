//! What can be measured of the relay and the inbox.

use std::sync::atomic::AtomicU64;

use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::{Counter, Family, Gauge, Registry};

use crate::port::{HandledCount, SentCount};

type Labels<const N: usize> = [(&'static str, String); N];
type Seconds = Gauge<f64, AtomicU64>;

/// The families of all relays of a process.
#[derive(Clone)]
struct RelayFamilies {
    backlog: Family<Labels<1>, Gauge>,
    oldest: Family<Labels<1>, Seconds>,
    lanes: Family<Labels<1>, Gauge>,
    published: Family<Labels<1>, Counter>,
    resent: Family<Labels<1>, Counter>,
    failed: Family<Labels<1>, Counter>,
    buried: Family<Labels<1>, Counter>,
    leases_lost: Family<Labels<1>, Counter>,
}

impl RelayFamilies {
    fn register(registry: &mut Registry) -> Self {
        let families = Self {
            backlog: Family::default(),
            oldest: Family::default(),
            lanes: Family::default(),
            published: Family::default(),
            resent: Family::default(),
            failed: Family::default(),
            buried: Family::default(),
            leases_lost: Family::default(),
        };
        let mut counter = |name: &str, help: &str, family: &Family<Labels<1>, Counter>| {
            registry.register(name, help, family.clone());
        };
        counter("outbox_published", "Messages that the broker confirmed", &families.published);
        counter("outbox_resent", "Messages handed to the broker again", &families.resent);
        counter("outbox_failed", "Messages that the broker did not confirm", &families.failed);
        counter("outbox_buried", "Messages that the broker refused for good", &families.buried);
        counter(
            "outbox_lease_losses",
            "Lanes that were lost to another instance",
            &families.leases_lost,
        );
        registry.register(
            "outbox_backlog_messages",
            "Committed messages that are not published yet",
            families.backlog.clone(),
        );
        registry.register(
            "outbox_oldest_seconds",
            "How long the oldest of them has waited",
            families.oldest.clone(),
        );
        registry.register(
            "outbox_lanes",
            "Lanes of the outbox that this instance publishes",
            families.lanes.clone(),
        );
        families
    }
}

/// The instruments of one relay.
#[derive(Clone)]
pub(crate) struct RelayMetrics {
    pub(crate) backlog: Gauge,
    pub(crate) oldest: Seconds,
    pub(crate) lanes: Gauge,
    pub(crate) published: Counter,
    pub(crate) resent: Counter,
    pub(crate) failed: Counter,
    pub(crate) buried: Counter,
    pub(crate) leases_lost: Counter,
}

impl RelayMetrics {
    /// Those of the relay of `service`.
    pub(crate) fn of(telemetry: &Telemetry, service: &str) -> Self {
        let families = telemetry.instruments(RelayFamilies::register);
        let labels = [("service", service.to_owned())];
        Self {
            backlog: families.backlog.get_or_create(&labels),
            oldest: families.oldest.get_or_create(&labels),
            lanes: families.lanes.get_or_create(&labels),
            published: families.published.get_or_create(&labels),
            resent: families.resent.get_or_create(&labels),
            failed: families.failed.get_or_create(&labels),
            buried: families.buried.get_or_create(&labels),
            leases_lost: families.leases_lost.get_or_create(&labels),
        }
    }
}

/// What the databases of this process say for the ledger. Totals since a database exists, so gauges
/// that are set, not counters that start over with the process.
#[derive(Clone)]
pub(crate) struct LedgerMetrics {
    committed: Family<Labels<2>, Gauge>,
    waiting: Family<Labels<2>, Gauge>,
    buried: Family<Labels<2>, Gauge>,
    done: Family<Labels<3>, Gauge>,
    duplicates: Family<Labels<3>, Gauge>,
}

impl LedgerMetrics {
    pub(crate) fn of(telemetry: &Telemetry) -> Self {
        telemetry.instruments(Self::register)
    }

    fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            committed: Family::default(),
            waiting: Family::default(),
            buried: Family::default(),
            done: Family::default(),
            duplicates: Family::default(),
        };
        let sent = [
            ("ledger_committed_messages", "Messages ever committed", &metrics.committed),
            ("ledger_waiting_messages", "Of those, not published yet", &metrics.waiting),
            ("ledger_buried_messages", "Of those, refused by the broker", &metrics.buried),
        ];
        for (name, help, family) in sent {
            registry.register(name, help, family.clone());
        }
        let handled = [
            ("ledger_done_messages", "Messages that took effect", &metrics.done),
            ("ledger_duplicate_messages", "Repetitions suppressed", &metrics.duplicates),
        ];
        for (name, help, family) in handled {
            registry.register(name, help, family.clone());
        }
        metrics
    }

    pub(crate) fn sent(&self, counts: &[SentCount]) {
        for count in counts {
            let labels = [("topic", count.topic.clone()), ("kind", count.kind.clone())];
            self.committed.get_or_create(&labels).set(clamp(count.committed));
            self.waiting.get_or_create(&labels).set(clamp(count.waiting));
            self.buried.get_or_create(&labels).set(clamp(count.buried));
        }
    }

    pub(crate) fn handled(&self, counts: &[HandledCount]) {
        for count in counts {
            let labels = [
                ("group", count.consumer.clone()),
                ("topic", count.topic.clone()),
                ("kind", count.kind.clone()),
            ];
            self.done.get_or_create(&labels).set(clamp(count.done));
            self.duplicates.get_or_create(&labels).set(clamp(count.duplicates));
        }
    }
}

impl std::fmt::Debug for LedgerMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LedgerMetrics")
    }
}

fn clamp(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
