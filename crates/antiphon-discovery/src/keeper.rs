//! Which answers of a registry are believed.
//!
//! Registries fail in ways that look like answers: one that was restarted without its data knows
//! nobody, one whose clients could not renew their leases loses all of them at once, a name server
//! answers with half of the records. Callers lose more by believing that than by calling an instance
//! that is gone, which their balancer notices with the first call. So the last good set is kept, and
//! what would take much away has to prove itself:
//!
//! * An error changes nothing.
//! * An empty answer is believed when the registry still says so after a grace time.
//! * Whatever is missing from the answers after an outage has the same grace time to come back. Who was
//!   missing before it already has as long as it lasted, so that a registry that is away every now and
//!   then does not keep the dead for ever.
//! * An answer that takes away more than half is believed when the registry, asked again twice, stays
//!   with it. What earlier answers took away within the grace time counts with it: leases that could
//!   not be renewed run out one after the other.
//! * Each instance is doubted for itself: that one has been missing for long says nothing about the next,
//!   and a name server that tells some of its records at a time takes none of them away.
//! * Instances that said they were draining may go at any time: they are expected to.
//!
//! What an answer adds or changes holds at once in every case. The grace is after the panic threshold
//! of Envoy's load balancing and what clients of Eureka call self-preservation.
//!
//! [`Settings::step`] decides; [`Watch`](crate::Watch) is what carries it out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::{Authority, Instance, Snapshot, State};

/// How much an answer must prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a registry must go on saying that there is nobody, and how long after an outage
    /// instances have to come back.
    pub empty_grace: Duration,
    /// How often an answer that takes away more than half must be repeated.
    pub confirmations: u32,
    /// The time between two answers that count as a confirmation of each other.
    pub confirm_interval: Duration,
    /// The least time between two looks that callers ask for.
    pub look_interval_min: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            empty_grace: Duration::from_secs(30),
            confirmations: 2,
            confirm_interval: Duration::from_secs(1),
            look_interval_min: Duration::from_secs(5),
        }
    }
}

/// What is known of one name.
#[derive(Clone, Debug)]
pub struct Known {
    kept: Snapshot,
    /// When the registry last said something that agrees with what is kept.
    agreed: Option<Instant>,
    /// Who is kept though the registry does not name them any more.
    doubts: BTreeMap<Authority, Doubt>,
    /// Who went lately without having said so, and when.
    lost: Vec<(Authority, Instant)>,
    /// Since when tries have failed, if the last one did.
    failing: Option<Instant>,
    /// When callers last made us look.
    looked: Option<Instant>,
    look_at: Option<Instant>,
}

/// That an instance is gone, as the registry says and is not believed yet.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    /// Before this it is not taken away.
    grace_until: Option<Instant>,
    /// How often in a row it was missing, far enough apart.
    said: u32,
    /// When that was last counted.
    counted: Instant,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The registry answered.
    Answer(Vec<Instance>),
    /// It did not.
    Failed,
    /// A caller suspects that the set is out of date.
    Asked,
    /// Time went by.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// Callers get this from now on.
    pub publish: Option<Snapshot>,
    /// The registry is to be asked again now.
    pub look: bool,
    /// When to come back with [`Input::Tick`].
    pub wake: Option<Instant>,
}

impl Known {
    /// Nothing is known yet.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            kept: Snapshot::unknown(),
            agreed: None,
            doubts: BTreeMap::new(),
            lost: Vec::new(),
            failing: None,
            looked: None,
            look_at: None,
        }
    }

    /// What callers have.
    #[must_use]
    pub const fn snapshot(&self) -> &Snapshot {
        &self.kept
    }

    /// When the registry last agreed with what callers have.
    #[must_use]
    pub const fn agreed(&self) -> Option<Instant> {
        self.agreed
    }

    /// Whether callers have instances that the registry does not name any more.
    #[must_use]
    pub fn is_doubting(&self) -> bool {
        !self.doubts.is_empty()
    }

    /// Makes a set what callers have, unless they have it.
    fn adopt(&mut self, instances: Vec<Instance>) -> Option<Snapshot> {
        if self.kept.is_known() && *self.kept.instances == *instances {
            return None;
        }
        self.kept = Snapshot { version: self.kept.version + 1, instances: Arc::from(instances) };
        Some(self.kept.clone())
    }
}

impl Settings {
    /// Decides after `input` at `now`.
    pub fn step(&self, known: &mut Known, input: Input, now: Instant) -> Decision {
        let mut decision = Decision::default();
        match input {
            Input::Answer(instances) => {
                decision.publish = self.answer(known, ordered(instances), now);
            }
            Input::Failed => {
                known.failing.get_or_insert(now);
                // Trying again is up to whoever failed. What was said before has to be said again.
                known.look_at = None;
            }
            Input::Asked => {
                let free = known.looked.map_or(now, |looked| looked + self.look_interval_min);
                let at = free.max(now);
                known.look_at = Some(known.look_at.map_or(at, |planned| planned.min(at)));
            }
            Input::Tick => {}
        }
        if known.look_at.is_some_and(|at| at <= now) {
            known.look_at = None;
            known.looked = Some(now);
            decision.look = true;
        }
        decision.wake = known.look_at;
        decision
    }

    fn answer(&self, known: &mut Known, said: Vec<Instance>, now: Instant) -> Option<Snapshot> {
        let outage = known.failing.take().map(|since| now.saturating_duration_since(since));
        let names: BTreeSet<&Authority> = said.iter().map(|instance| &instance.address).collect();
        let missing: Vec<Instance> = known
            .kept
            .instances
            .iter()
            .filter(|kept| kept.state == State::Serving && !names.contains(&kept.address))
            .cloned()
            .collect();
        known.lost.retain(|(address, at)| {
            now.saturating_duration_since(*at) < self.empty_grace && !names.contains(address)
        });
        known.doubts.retain(|address, _| missing.iter().any(|one| one.address == *address));
        let lost = known.lost.len();
        let many = (missing.len() + lost) * 2 > known.kept.instances.len() + lost;
        let nobody = said.is_empty();
        let doubtful = many || nobody || outage.is_some() || known.is_doubting();
        if doubtful {
            self.doubt(known, &missing, nobody, outage, now);
        }
        // Everybody whose doubt is over goes; all who are missing, where there is none.
        let must_confirm = many || nobody;
        known.doubts.retain(|_, doubt| {
            doubt.grace(now).is_some() || (must_confirm && doubt.said <= self.confirmations)
        });
        let (stay, gone): (Vec<Instance>, Vec<Instance>) =
            missing.into_iter().partition(|one| known.doubts.contains_key(&one.address));
        let settled = doubtful && !gone.is_empty();
        known.lost.extend(gone.into_iter().map(|instance| (instance.address, now)));
        known.look_at = known.doubts.values().map(|doubt| self.next_look(doubt, now)).min();
        if !known.is_doubting() {
            known.agreed = Some(now);
            if settled {
                // What was confirmed is settled, and no reason to doubt what comes after it.
                known.lost.clear();
            }
        }
        known.adopt(ordered(said.into_iter().chain(stay).collect()))
    }

    /// Doubts that those who are missing are gone, or counts that it was said once more.
    fn doubt(
        &self,
        known: &mut Known,
        missing: &[Instance],
        nobody: bool,
        outage: Option<Duration>,
        now: Instant,
    ) {
        let grace = now + self.empty_grace;
        // Who goes while others have time to come back has it, too.
        let others = known.doubts.values().filter_map(|doubt| doubt.grace_until).max();
        for instance in missing {
            let new = Doubt { grace_until: others, said: 0, counted: now };
            let before = known.doubts.contains_key(&instance.address);
            let doubt = known.doubts.entry(instance.address.clone()).or_insert(new);
            match outage {
                Some(outage) if before => {
                    let again = now + outage.min(self.empty_grace);
                    doubt.grace_until = doubt.grace_until.max(Some(again));
                    doubt.said = 0;
                }
                Some(_) => doubt.grace_until = Some(grace),
                None if nobody && !before => doubt.grace_until = Some(grace),
                None if nobody => doubt.grace_until = doubt.grace_until.or(Some(grace)),
                None => {}
            }
            let apart = now.saturating_duration_since(doubt.counted) >= self.confirm_interval;
            if doubt.said == 0 || apart {
                doubt.said += 1;
                doubt.counted = now;
            }
        }
    }

    fn next_look(&self, doubt: &Doubt, now: Instant) -> Instant {
        match doubt.grace(now) {
            Some(until) if doubt.said > self.confirmations => until,
            _ => doubt.counted + self.confirm_interval,
        }
    }
}

impl Doubt {
    /// Until when the instance has time to come back, if that is not over.
    fn grace(&self, now: Instant) -> Option<Instant> {
        self.grace_until.filter(|until| now < *until)
    }
}

/// By address, each address once: the last one counts.
fn ordered(mut instances: Vec<Instance>) -> Vec<Instance> {
    instances.reverse();
    instances.sort_by(|a, b| a.address.cmp(&b.address));
    instances.dedup_by(|a, b| a.address == b.address);
    instances
}

#[cfg(test)]
mod tests;
