//! That the faults bit: what the services noticed, from their metrics, and what the proxies counted.

use std::collections::BTreeMap;
use std::fmt;

use antiphon_testing::proxy::Counts;

use crate::plan::{Event, Fault, Side};

/// Metrics of all processes, over all their starts.
#[derive(Debug, Default)]
pub struct Metrics {
    /// By process, start and series: the last value that was seen.
    last: BTreeMap<(String, u64, String), f64>,
}

impl Metrics {
    /// Notes what a process says now. Counters begin at zero with each start.
    pub fn note(&mut self, process: &str, start: u64, text: &str) {
        for (series, value) in read(text) {
            self.last.insert((process.to_owned(), start, series.to_owned()), value);
        }
    }

    /// A counter, added up over everything.
    #[must_use]
    pub fn total(&self, name: &str) -> u64 {
        let series = self.last.iter().filter(|((.., series), _)| is(series, name));
        whole(series.map(|(_, value)| *value).sum())
    }

    /// A figure that is kept in the databases: the largest of each series, added up. Several instances
    /// say the same.
    #[must_use]
    pub fn kept(&self, name: &str) -> u64 {
        let mut largest: BTreeMap<&str, f64> = BTreeMap::new();
        for ((.., series), value) in self.last.iter().filter(|((.., series), _)| is(series, name)) {
            let entry = largest.entry(series).or_default();
            *entry = entry.max(*value);
        }
        whole(largest.values().sum())
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts are whole")]
fn whole(value: f64) -> u64 {
    value.max(0.0).round() as u64
}

/// Whether a series is of the metric.
fn is(series: &str, name: &str) -> bool {
    series.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
}

/// Series and values in what `/metrics` says.
fn read(text: &str) -> impl Iterator<Item = (&str, f64)> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        Some((series, value.parse().ok()?))
    })
}

/// One thing that must have happened, or the run shows nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bite {
    /// What.
    pub what: &'static str,
    /// How often.
    pub count: u64,
    /// Whether the run is void without it.
    pub needed: bool,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Happened<'a> {
    /// What was planned, and came.
    pub events: &'a [Event],
    /// What the proxies counted, by side.
    pub counts: [Option<Counts>; 2],
    /// How many connections there were before anything went wrong.
    pub connections_before: u64,
    /// Connections that a database server ended.
    pub killed_connections: u64,
    /// Full disks.
    pub filled: u64,
}

/// Lists what bit. What was planned must have bitten.
#[must_use]
pub fn bites(metrics: &Metrics, happened: &Happened<'_>) -> Vec<Bite> {
    let planned = |wanted: fn(&Fault) -> bool| happened.events.iter().any(|e| wanted(&e.fault));
    let duplicates = metrics.kept("ledger_duplicate_messages");
    let stale = metrics.total("messaging_stale_settlements_total");
    let resent = metrics.total("outbox_resent_total");
    let lost = metrics.total("outbox_lease_losses_total");
    let sources = metrics.total("messaging_lost_sources_total");
    let proxies = happened.counts.iter().flatten();
    let connections: u64 = proxies.clone().map(|counts| counts.connections).sum();
    let reconnects = connections.saturating_sub(happened.connections_before);
    let network: u64 = proxies.map(Counts::bites).sum();
    let servers = happened.counts.iter().flatten().count() > 0;
    vec![
        // Killed processes take the last moments of their counters with them; the ledgers do not.
        Bite { what: "redeliveries noticed", count: duplicates + stale, needed: true },
        Bite { what: "suppressed duplicates", count: duplicates, needed: true },
        Bite {
            what: "lease losses",
            count: lost + stale,
            needed: planned(|fault| matches!(fault, Fault::Pause { .. })),
        },
        Bite { what: "messages sent again", count: resent, needed: false },
        Bite { what: "subscriptions that ended", count: sources, needed: false },
        Bite { what: "reconnects", count: reconnects, needed: servers },
        Bite {
            what: "network faults that bit",
            count: network,
            needed: planned(|fault| matches!(fault, Fault::Network { .. })),
        },
        Bite {
            what: "connections that the database ended",
            count: happened.killed_connections,
            needed: planned(|fault| *fault == Fault::Disconnect(Side::Store)),
        },
        Bite {
            what: "full disks",
            count: happened.filled,
            needed: planned(|fault| matches!(fault, Fault::Fill(_))),
        },
    ]
}

/// What makes the run void.
pub fn void(bites: &[Bite]) -> impl Iterator<Item = &Bite> {
    bites.iter().filter(|bite| bite.needed && bite.count == 0)
}

impl fmt::Display for Bite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.count, self.needed) {
            (0, true) => "  VOID: it should have happened",
            _ => "",
        };
        write!(f, "{:>8}  {}{verdict}", self.count, self.what)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn metrics() -> Metrics {
        let mut metrics = Metrics::default();
        metrics.note("a", 1, "# HELP x\noutbox_resent_total{service=\"a\"} 3\n");
        metrics.note("a", 1, "outbox_resent_total{service=\"a\"} 5\noutbox_resent_total_x 9\n");
        metrics.note("a", 2, "outbox_resent_total{service=\"a\"} 1\n");
        metrics.note("a", 2, "ledger_duplicate_messages{group=\"g\"} 7\n");
        metrics.note("twin", 1, "ledger_duplicate_messages{group=\"g\"} 6\n");
        metrics
    }

    #[test]
    fn counters_add_up_over_starts_and_kept_figures_do_not() {
        let metrics = metrics();
        assert_eq!(metrics.total("outbox_resent_total"), 6);
        assert_eq!(metrics.kept("ledger_duplicate_messages"), 7);
        assert_eq!(metrics.total("nothing"), 0);
    }

    #[test]
    fn a_planned_fault_that_did_not_bite_makes_the_run_void() {
        let events = [Event {
            at: Duration::ZERO,
            lasts: Duration::from_secs(9),
            fault: Fault::Pause { role: 0 },
        }];
        let happened = Happened { events: &events, ..Happened::default() };
        let bites = bites(&metrics(), &happened);
        let void: Vec<&str> = void(&bites).map(|bite| bite.what).collect();
        assert_eq!(void, ["lease losses"]);
    }

    #[test]
    fn what_was_not_planned_need_not_bite() {
        let bites = bites(&metrics(), &Happened::default());
        assert_eq!(void(&bites).count(), 0);
        let servers = Happened { counts: [Some(Counts::default()), None], ..Happened::default() };
        let bites = super::bites(&metrics(), &servers);
        assert_eq!(void(&bites).map(|bite| bite.what).collect::<Vec<_>>(), ["reconnects"]);
    }
}
