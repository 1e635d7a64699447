//! What the server looks at a few times a second, beside the calls: how busy the processor is, the
//! limits that methods have learnt, and what was refused since the last look.

use std::fmt;
use std::time::Duration;

use antiphon_resilience::CpuUse;
use antiphon_resilience::cpu::usage;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::layers::Calls;
use super::metrics::Shed;

/// How often the processor is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// After so many looks the log says what was refused.
const LOOKS_PER_LINE: u32 = 4;

/// Where [`CpuUse`] is read.
pub(super) struct CpuReader(Box<dyn Fn() -> CpuUse + Send + Sync>);

impl CpuReader {
    pub(super) fn new(read: impl Fn() -> CpuUse + Send + Sync + 'static) -> Self {
        Self(Box::new(read))
    }
}

impl Default for CpuReader {
    /// From the system.
    fn default() -> Self {
        Self::new(usage::read)
    }
}

impl fmt::Debug for CpuReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CpuReader")
    }
}

/// Looks, for ever.
pub(super) async fn watch(calls: &Calls, cpu: &CpuReader) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refused = Shed::ALL.map(|why| calls.metrics().shed_so_far(why));
    for look in 1_u32.. {
        looks.tick().await;
        if calls.settings().cpu.is_some() {
            let load = calls.cpu();
            load.note((cpu.0)(), Instant::now());
            calls.metrics().cpu_load.set(load.average());
        }
        for method in calls.methods() {
            method.note_limit();
        }
        if look % LOOKS_PER_LINE == 0 {
            let so_far = Shed::ALL.map(|why| calls.metrics().shed_so_far(why));
            say(&refused, &so_far);
            refused = so_far;
        }
    }
}

/// Writes what was refused in between, if anything was.
fn say(before: &[u64; Shed::ALL.len()], so_far: &[u64; Shed::ALL.len()]) {
    let mut what = String::new();
    for ((why, before), so_far) in Shed::ALL.into_iter().zip(before).zip(so_far) {
        if so_far > before {
            let separator = if what.is_empty() { "" } else { ", " };
            what.push_str(&format!("{separator}{} {}", why.label(), so_far - before));
        }
    }
    if !what.is_empty() {
        tracing::warn!(refused = what, "calls or connections were turned away");
    }
}
