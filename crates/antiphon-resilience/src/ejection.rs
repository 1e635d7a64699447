//! Instances that fail are left out for some time, then tried by one call.
//!
//! After Envoy's outlier detection and gRFC A50, with what their users found: an instance goes at once
//! when it fails several calls in a row, and at the next sweep when its success rate lies far below
//! that of the others; times are spread at random, so that instances do not come back together; and
//! the one call that tries it holds a lease, so that a call that never ends cannot keep the instance
//! out for ever, though what it says counts however long it takes.
//!
//! [`EjectionSettings`] decides. [`Health`] is what the caller keeps with each instance: atomics, one
//! load for a pick, one addition for an answer. [`Ejector`] changes who is in service, one change at a
//! time, since together no more than a part of the instances may be out.

mod sweep;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Verdict;
use crate::window::micros;
pub use sweep::Counts;

/// When instances are left out, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EjectionSettings {
    /// So many failures in a row put an instance out; 0 means never.
    pub consecutive_failures: u32,
    /// How often success rates are compared; the caller calls [`Ejector::sweep`] so often.
    pub sweep_interval: Duration,
    /// How many standard deviations below the mean a success rate may lie.
    pub deviations_max: f64,
    /// Rates are compared when at least so many instances have enough answers.
    pub instances_min: usize,
    /// How many answers in one interval are enough.
    pub answers_min: u32,
    /// How long an instance is out the first time; the second time in a row twice as long, and so on.
    pub base: Duration,
    /// The longest time out.
    pub max: Duration,
    /// The part of a time out that is taken off at random, in `0.0..=1.0`.
    pub jitter: f64,
    /// The part of the instances that may be out at once. At least one may, whatever the part.
    pub part_max: f64,
    /// The part of the instances that must stay in service: below it balancing trusts nobody's health
    /// and uses all of them. It overrules `part_max`.
    pub panic_threshold: f64,
    /// How long the call that tries an instance may take before another one tries it as well.
    pub probe_lease: Duration,
}

impl Default for EjectionSettings {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            sweep_interval: Duration::from_secs(10),
            deviations_max: 1.9,
            instances_min: 5,
            answers_min: 100,
            base: Duration::from_secs(30),
            max: Duration::from_secs(300),
            jitter: 0.2,
            part_max: 0.5,
            panic_threshold: 0.5,
            probe_lease: Duration::from_secs(10),
        }
    }
}

impl EjectionSettings {
    /// How many of so many instances may be out at once.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of a number of instances is one, too"
    )]
    pub fn ejected_max(&self, instances: usize) -> usize {
        let all = instances as f64;
        let may = (all * self.part_max.clamp(0.0, 1.0)) as usize;
        let without_panic = (all * (1.0 - self.panic_threshold.clamp(0.0, 1.0))) as usize;
        may.max(1).min(without_panic)
    }

    /// How long an instance is out the `times`th time in a row (from 1), `random` in `0.0..=1.0`.
    #[must_use]
    pub fn time_out(&self, times: u32, random: f64) -> Duration {
        let grown = self.base.saturating_mul(times.max(1)).min(self.max);
        grown.mul_f64(1.0 - self.jitter.clamp(0.0, 1.0) * random.clamp(0.0, 1.0))
    }
}

/// How one instance is doing. The caller keeps it as long as it knows the instance.
#[derive(Debug)]
pub struct Health {
    origin: Instant,
    /// Until when it is out, in microseconds after the origin; 0 while it is in service.
    out_until: AtomicU64,
    /// Until when the call that tries it may take; 0 when there is none.
    lease_until: AtomicU64,
    /// How often in a row it was put out; every healthy sweep takes one off.
    times_out: AtomicU32,
    failures_in_a_row: AtomicU32,
    accepted: AtomicU32,
    failed: AtomicU32,
}

/// The right to try an instance that is out by one call.
///
/// It is given back by [`Ejector::end_probe`]. When it is lost, its lease ends by itself.
#[derive(Debug)]
#[must_use = "an instance that is not tried stays out until the lease ends"]
pub struct Probe {
    lease_until: u64,
}

impl Health {
    /// An instance of which nothing is known, in service.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            origin: now,
            out_until: AtomicU64::new(0),
            lease_until: AtomicU64::new(0),
            times_out: AtomicU32::new(0),
            failures_in_a_row: AtomicU32::new(0),
            accepted: AtomicU32::new(0),
            failed: AtomicU32::new(0),
        }
    }

    /// Whether it may be picked like any other.
    #[must_use]
    pub fn in_service(&self) -> bool {
        self.out_until.load(Relaxed) == 0
    }

    /// The instance was connected to anew: it may be another process than the one that failed, and is
    /// in service. How often it was out before is remembered.
    pub fn renew(&self) {
        self.put_in();
    }

    fn since_origin(&self, at: Instant) -> u64 {
        micros(at.saturating_duration_since(self.origin))
    }

    /// Puts it out once more, until at least a microsecond after the origin, since 0 means in.
    fn put_out(&self, settings: &EjectionSettings, now: Instant, random: f64) {
        let times = self.times_out.load(Relaxed).saturating_add(1);
        self.times_out.store(times, Relaxed);
        let time_out = micros(settings.time_out(times, random));
        self.out_until.store(self.since_origin(now).saturating_add(time_out).max(1), Relaxed);
    }

    fn put_in(&self) {
        self.failures_in_a_row.store(0, Relaxed);
        self.accepted.store(0, Relaxed);
        self.failed.store(0, Relaxed);
        self.out_until.store(0, Relaxed);
    }
}

/// Changes which instances of one target are in service.
#[derive(Debug)]
pub struct Ejector {
    settings: EjectionSettings,
    /// Held while it is decided who goes out: what is counted must not change meanwhile.
    deciding: Mutex<()>,
}

impl Ejector {
    /// For one target.
    #[must_use]
    pub fn new(settings: EjectionSettings) -> Self {
        Self { settings, deciding: Mutex::new(()) }
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &EjectionSettings {
        &self.settings
    }

    /// Notes how an attempt at the instance ended. `true` when it should go out: the caller answers
    /// with [`Self::try_eject`].
    ///
    /// Load that it sheds is neither a failure nor a success, in a row or in a rate. Answers that come
    /// while the instance is out are those of calls from before, and are ignored.
    #[must_use = "an instance that should go out stays in service unless try_eject is called"]
    pub fn record(&self, health: &Health, verdict: Verdict) -> bool {
        if !health.in_service() {
            return false;
        }
        match verdict {
            Verdict::Neutral | Verdict::Shed => false,
            Verdict::Accepted => {
                if health.failures_in_a_row.load(Relaxed) != 0 {
                    health.failures_in_a_row.store(0, Relaxed);
                }
                health.accepted.fetch_add(1, Relaxed);
                false
            }
            Verdict::Failed => {
                health.failed.fetch_add(1, Relaxed);
                let in_a_row = health.failures_in_a_row.fetch_add(1, Relaxed).wrapping_add(1);
                let limit = self.settings.consecutive_failures;
                // One that may not go out is asked about again after as many failures more.
                limit != 0 && in_a_row.is_multiple_of(limit)
            }
        }
    }

    /// Puts the instance out, if not too many of `all` instances of the target are out already.
    /// Whether it did.
    pub fn try_eject<'a>(
        &self,
        health: &Health,
        all: impl IntoIterator<Item = &'a Health>,
        now: Instant,
        random: f64,
    ) -> bool {
        let _deciding = self.deciding.lock();
        let (mut instances, mut out) = (0, 0);
        for one in all {
            instances += 1;
            out += usize::from(!one.in_service());
        }
        let may = health.in_service() && out < self.settings.ejected_max(instances);
        if may {
            health.put_out(&self.settings, now, random);
        }
        may
    }

    /// Compares the success rates of all instances since the last sweep, and puts those out that lie
    /// far below the others, the worst first. How many it did.
    ///
    /// To be called every [`EjectionSettings::sweep_interval`]. `random` gives numbers in
    /// `0.0..=1.0`.
    pub fn sweep<'a>(
        &self,
        all: impl IntoIterator<Item = &'a Health>,
        now: Instant,
        mut random: impl FnMut() -> f64,
    ) -> usize {
        let _deciding = self.deciding.lock();
        let all: Vec<_> = all.into_iter().collect();
        let counts: Vec<_> = all.iter().map(|health| health.take_counts()).collect();
        let in_service: Vec<_> = all.iter().map(|health| health.in_service()).collect();
        let out = in_service.iter().filter(|is_in| !**is_in).count();
        let room = self.settings.ejected_max(all.len()).saturating_sub(out);
        let mut outliers = self.settings.outliers(&counts);
        outliers.retain(|index| in_service[*index]);
        outliers.truncate(room);
        for index in &outliers {
            all[*index].put_out(&self.settings, now, random());
        }
        for health in all.iter().filter(|health| health.in_service()) {
            let times = health.times_out.load(Relaxed);
            health.times_out.store(times.saturating_sub(1), Relaxed);
        }
        outliers.len()
    }

    /// The right to send one call to an instance that is out, once its time is over. Only one caller
    /// gets it until it is given back or its lease ends.
    ///
    /// A call that may be tried again elsewhere is the best to send. One that may not gives those a
    /// `head_start`: it gets the right only when nobody took it for that long.
    pub fn try_probe(&self, health: &Health, now: Instant, head_start: Duration) -> Option<Probe> {
        let out_until = health.out_until.load(Relaxed);
        let now_micros = health.since_origin(now);
        let lease = health.lease_until.load(Relaxed);
        let due = out_until.max(lease).saturating_add(micros(head_start));
        if out_until == 0 || now_micros < due {
            return None;
        }
        let lease_until = now_micros.saturating_add(micros(self.settings.probe_lease).max(1));
        let taken = health.lease_until.compare_exchange(lease, lease_until, Relaxed, Relaxed);
        taken.ok().map(|_| Probe { lease_until })
    }

    /// The call that tried the instance has ended. Whether the instance is in service again.
    ///
    /// A failure puts it out for longer; a [`Verdict::Neutral`] end lets the next call try. One that
    /// sheds load works again: the load is that of the others, who need it.
    ///
    /// The lease only bounds how many try at once. What a call says that took longer counts, whoever
    /// has the lease by then, or an instance whose calls take longer than that would never come back,
    /// and one that hangs would never be out for longer. Of several that try, the first to end decides:
    /// after it the instance is in service, or its time is not over.
    #[expect(clippy::needless_pass_by_value, reason = "a probe ends once")]
    pub fn end_probe(
        &self,
        health: &Health,
        probe: Probe,
        verdict: Verdict,
        now: Instant,
        random: f64,
    ) -> bool {
        let _deciding = self.deciding.lock();
        // Where somebody else has the lease by now, that one keeps it.
        let _ = health.lease_until.compare_exchange(probe.lease_until, 0, Relaxed, Relaxed);
        if health.in_service() || health.since_origin(now) < health.out_until.load(Relaxed) {
            return false;
        }
        match verdict {
            Verdict::Accepted | Verdict::Shed => health.put_in(),
            Verdict::Failed => health.put_out(&self.settings, now, random),
            Verdict::Neutral => {}
        }
        health.in_service()
    }
}

#[cfg(test)]
mod tests;
