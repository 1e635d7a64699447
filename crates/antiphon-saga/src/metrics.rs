//! What the coordinator measures. Labels are bounded: types and steps come from the definitions.

use std::fmt;

use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::{Counter, Family, Gauge, Histogram, Registry, SECONDS};

use crate::machine::Turned;
use crate::port::{SagaCount, State};

type Labels<const N: usize> = [(&'static str, String); N];

/// The instruments, one set per process.
#[derive(Clone)]
pub(crate) struct Metrics {
    live: Family<Labels<2>, Gauge>,
    started: Family<Labels<1>, Counter>,
    ended: Family<Labels<2>, Counter>,
    turned_back: Family<Labels<1>, Counter>,
    parked: Family<Labels<1>, Counter>,
    late: Family<Labels<1>, Counter>,
    step: Family<Labels<2>, Histogram, fn() -> Histogram>,
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
            live: Family::default(),
            started: Family::default(),
            ended: Family::default(),
            turned_back: Family::default(),
            parked: Family::default(),
            late: Family::default(),
            step: Family::new_with_constructor(|| Histogram::new(SECONDS)),
        };
        registry.register(
            "saga_live",
            "Sagas that have not ended, by type and state (running, compensating, parked)",
            metrics.live.clone(),
        );
        registry.register(
            "saga_started",
            "Sagas of which the coordinator has heard for the first time",
            metrics.started.clone(),
        );
        registry.register(
            "saga_ended",
            "Sagas that ended, by outcome (completed, compensated)",
            metrics.ended.clone(),
        );
        registry.register(
            "saga_turned_back",
            "Sagas that began to undo what they did",
            metrics.turned_back.clone(),
        );
        registry.register(
            "saga_parked",
            "Times that a saga needed an operator",
            metrics.parked.clone(),
        );
        registry.register(
            "saga_late_inputs",
            "Replies and timers that came too late or twice, and changed nothing",
            metrics.late.clone(),
        );
        registry.register(
            "saga_step_duration_seconds",
            "Time from asking for a step to its being done",
            metrics.step.clone(),
        );
        metrics
    }

    /// Counts a turn that was committed.
    pub(crate) fn turned(&self, kind: &str, turned: &Turned) {
        let labels = [("type", kind.to_owned())];
        if !turned.accepted {
            self.late.get_or_create(&labels).inc();
            return;
        }
        if turned.first {
            self.started.get_or_create(&labels).inc();
        }
        if turned.turned_back.is_some() {
            self.turned_back.get_or_create(&labels).inc();
        }
        if turned.parked.is_some() {
            self.parked.get_or_create(&labels).inc();
        }
        if let Some(state) = turned.ended {
            let labels = [("type", kind.to_owned()), ("outcome", state.name().to_owned())];
            self.ended.get_or_create(&labels).inc();
        }
        for (step, took) in &turned.done {
            let labels = [("type", kind.to_owned()), ("step", (*step).to_owned())];
            self.step.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    /// Shows how many sagas there are; those of `kinds` that are not counted are none.
    pub(crate) fn live(&self, kinds: &[&'static str], counts: &[SagaCount]) {
        for kind in kinds {
            let of_kind = || counts.iter().filter(|count| count.kind == *kind);
            let show = |state: &str, count: u64| {
                let labels = [("type", (*kind).to_owned()), ("state", state.to_owned())];
                self.live.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
            };
            for state in [State::Running, State::Compensating] {
                let moving = of_kind().filter(|count| count.state == state && !count.parked);
                show(state.name(), moving.map(|count| count.count).sum());
            }
            show("parked", of_kind().filter(|count| count.parked).map(|count| count.count).sum());
        }
    }
}
