//! The instances of one target at one moment, and who of them is picked from.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::hash::Numbers;
use super::pool::Pool;
use super::ring::Ring;
use super::{BalanceSettings, Candidate, Load, Policy, Standing};

/// The share of an instance that has just become ready, where others are older.
const SHARE_MIN: f32 = 0.1;
/// Slow start needs others to carry the rest.
const SLOW_START_MEMBERS_MIN: usize = 3;

/// Who is picked from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Ready instances of the client's own zone.
    OwnZone,
    /// All ready instances.
    AllZones,
    /// Fewer of the connected instances are ready than [`BalanceSettings::usable_min`]: ejected ones
    /// are picked, too. When most instances fail the cause is hardly in them, and the few that are
    /// left would not stand the load of all.
    Panic,
}

/// The instances of a target at one moment.
///
/// Immutable but for the turn of the round robin. When instances come or go the caller makes a new
/// one, when a standing changes a [refreshed](Self::refreshed) one; both cost a few microseconds per
/// thousand instances, and a ring some hundred. Until then a pick skips whom it finds not to be ready.
#[derive(Debug)]
pub struct Roster<C> {
    pub(super) candidates: Arc<[C]>,
    pub(super) settings: BalanceSettings,
    pub(super) scope: Scope,
    pub(super) pool: Pool,
    pub(super) slow_start: Option<SlowStart>,
    /// With [`Policy::ConsistentHash`] only.
    pub(super) ring: Option<Arc<Ring>>,
    /// All weights of the pool.
    pub(super) weights: u64,
}

impl<C: Candidate> Roster<C> {
    /// Of these instances, as they are at `now`. `random` is a fresh random number, so that clients
    /// that start together do not go round together.
    #[must_use]
    pub fn new(
        candidates: impl Into<Arc<[C]>>,
        settings: BalanceSettings,
        now: Instant,
        random: u64,
    ) -> Self {
        let candidates = candidates.into();
        let keyed = matches!(settings.policy, Policy::ConsistentHash { .. });
        let ring = keyed.then(|| Arc::new(Ring::new(&candidates)));
        Self::with_ring(candidates, settings, ring, now, random)
    }

    /// The same instances with their standings of `now`; keys stay where they are.
    #[must_use]
    pub fn refreshed(&self, now: Instant, random: u64) -> Self {
        let candidates = Arc::clone(&self.candidates);
        Self::with_ring(candidates, self.settings.clone(), self.ring.clone(), now, random)
    }

    fn with_ring(
        candidates: Arc<[C]>,
        settings: BalanceSettings,
        ring: Option<Arc<Ring>>,
        now: Instant,
        random: u64,
    ) -> Self {
        let zone = settings.zone.as_deref().filter(|_| ring.is_none());
        let scope = scope(&candidates, zone, settings.usable_min);
        let members: Vec<_> = (0_u32..)
            .zip(candidates.iter())
            .filter(|(_, candidate)| scope.admits(candidate.load().standing()))
            .filter(|(_, candidate)| scope != Scope::OwnZone || candidate.zone() == zone)
            .map(|(at, candidate)| (at, candidate.weight().max(1)))
            .collect();
        let ages = members.iter().map(|&(at, _)| candidates[at as usize].load().ready_for(now));
        Self {
            scope,
            slow_start: SlowStart::new(ages, settings.slow_start, now),
            weights: members.iter().map(|&(_, weight)| u64::from(weight)).sum(),
            pool: Pool::new(&members, random),
            ring,
            candidates,
            settings,
        }
    }

    /// All instances, whatever their standing.
    #[must_use]
    pub fn candidates(&self) -> &[C] {
        &self.candidates
    }

    /// What it was made with.
    #[must_use]
    pub fn settings(&self) -> &BalanceSettings {
        &self.settings
    }

    /// Who is picked from.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// How many are picked from.
    #[must_use]
    pub fn usable(&self) -> usize {
        self.pool.len()
    }
}

impl Scope {
    /// Whether an instance of this standing may be picked.
    pub(super) fn admits(self, standing: Standing) -> bool {
        standing == Standing::Ready || (self == Self::Panic && standing == Standing::Ejected)
    }
}

/// Decides who is picked from.
fn scope<C: Candidate>(candidates: &[C], zone: Option<&str>, usable_min: f64) -> Scope {
    let count = |which: &dyn Fn(&C) -> bool| candidates.iter().filter(|one| which(one)).count();
    let enough = |ready: usize, of: usize| ready > 0 && ready as f64 >= usable_min * of as f64;
    let is_ready = |one: &C| one.load().standing() == Standing::Ready;
    let connected = count(&|one| one.load().standing() != Standing::Away);
    if connected > 0 && !enough(count(&is_ready), connected) {
        return Scope::Panic;
    }
    let is_near = |one: &C| zone.is_some() && one.zone() == zone;
    if enough(count(&|one| is_near(one) && is_ready(one)), count(&is_near)) {
        return Scope::OwnZone;
    }
    Scope::AllZones
}

/// Instances that became ready lately have less than their share: their caches are cold, and their
/// connections few. After Envoy's slow start mode, with a linear rise.
#[derive(Debug)]
pub(super) struct SlowStart {
    length: Duration,
    built: Instant,
    /// How long the oldest had been ready then. Where all are equally new each has the same share as
    /// the others, which is the whole.
    oldest: Duration,
    /// When the youngest has its whole share.
    until: Instant,
}

impl SlowStart {
    fn new(
        ages: impl ExactSizeIterator<Item = Duration> + Clone,
        length: Duration,
        now: Instant,
    ) -> Option<Self> {
        if ages.len() < SLOW_START_MEMBERS_MIN {
            return None;
        }
        let (youngest, oldest) = (ages.clone().min()?, ages.max()?);
        let rest = length.checked_sub(youngest).filter(|rest| !rest.is_zero())?;
        Some(Self { length, built: now, oldest, until: now + rest })
    }

    /// Whether this draw of the instance counts.
    pub(super) fn passes(&self, load: &Load, now: Instant, numbers: &mut Numbers) -> bool {
        if now >= self.until {
            return true;
        }
        let oldest = self.oldest + now.saturating_duration_since(self.built);
        let share = self.share(load.ready_for(now)) / self.share(oldest);
        share >= 1.0 || numbers.unit() < share
    }

    fn share(&self, age: Duration) -> f32 {
        (age.as_secs_f32() / self.length.as_secs_f32()).clamp(SHARE_MIN, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Instance;
    use super::super::{InFlight, PickInput};
    use super::*;
    use Standing::{Away, Ejected, Ready};

    const OWN: Option<&str> = Some("a");

    fn instances(standings: &[(Standing, Option<&'static str>)], now: Instant) -> Vec<Instance> {
        let one = |(at, &(standing, zone)): (usize, &(Standing, _))| {
            let mut one = Instance::ready(format!("i-{at}"), now);
            one.load().set_standing(standing, now);
            one.zone = zone;
            one
        };
        standings.iter().enumerate().map(one).collect()
    }

    fn settings() -> BalanceSettings {
        BalanceSettings { zone: Some("a".into()), ..BalanceSettings::default() }
    }

    #[test]
    fn who_is_picked_from() {
        let far = Some("b");
        let cases: [(&str, &[_], _, _); 10] = [
            ("nobody is known", &[], Scope::AllZones, 0),
            ("nobody is connected", &[(Away, OWN), (Away, far)], Scope::AllZones, 0),
            ("all are well", &[(Ready, OWN), (Ready, OWN), (Ready, far)], Scope::OwnZone, 2),
            ("half of the zone is", &[(Ready, OWN), (Away, OWN), (Ready, far)], Scope::OwnZone, 1),
            (
                "less than half of the zone is",
                &[(Ready, OWN), (Away, OWN), (Away, OWN), (Ready, far)],
                Scope::AllZones,
                2,
            ),
            ("nobody is near", &[(Ready, far), (Ready, None)], Scope::AllZones, 2),
            ("half are ejected", &[(Ready, far), (Ejected, far)], Scope::AllZones, 1),
            (
                "more than half are ejected",
                &[(Ready, OWN), (Ejected, OWN), (Ejected, far), (Away, far)],
                Scope::Panic,
                3,
            ),
            ("the only one is ejected", &[(Ejected, OWN)], Scope::Panic, 1),
            (
                "many are not connected, which ejecting did not do",
                &[(Ready, far), (Ready, far), (Ejected, far), (Away, far), (Away, far)],
                Scope::AllZones,
                2,
            ),
        ];
        let now = Instant::now();
        for (name, standings, scope, usable) in cases {
            let roster = Roster::new(instances(standings, now), settings(), now, 7);
            assert_eq!((roster.scope(), roster.usable()), (scope, usable), "{name}");
        }
    }

    #[test]
    fn a_refreshed_roster_knows_the_standings_of_now() {
        let now = Instant::now();
        let all = instances(&[(Ready, OWN), (Ready, OWN), (Ready, OWN)], now);
        let roster = Roster::new(all, settings(), now, 7);
        for one in &roster.candidates()[1..] {
            assert!(one.load().set_standing(Ejected, now));
        }
        assert_eq!((roster.scope(), roster.usable()), (Scope::OwnZone, 3));
        let roster = roster.refreshed(now, 7);
        assert_eq!((roster.scope(), roster.usable()), (Scope::Panic, 3));
        for one in roster.candidates() {
            one.load().set_standing(Away, now);
        }
        assert_eq!(roster.refreshed(now, 7).usable(), 0);
    }

    /// Which part of the picks a new instance has among others that have been there for `before`.
    fn share_of_a_new_one(others: usize, before: Duration, age: Duration) -> f64 {
        const PICKS: u64 = 20_000;
        let origin = Instant::now();
        let mut all = instances(&vec![(Ready, None); others], origin);
        let born = origin + before;
        all.push(Instance::ready("new", born));
        let policy = Policy::LeastRequest { choices: 2 };
        let settings = BalanceSettings { policy, ..BalanceSettings::default() };
        let roster = Roster::new(all, settings, born, 7);
        let picks = (0..PICKS).filter(|&random| {
            let input = PickInput::new(born + age, random);
            let call = InFlight::begin(roster.pick(&input).expect("one is ready"), born);
            call.candidate().id() == "new"
        });
        picks.count() as f64 / PICKS as f64
    }

    #[test]
    fn a_new_instance_gets_its_share_over_ten_seconds() {
        let seconds = Duration::from_secs;
        let minute = seconds(60);
        // Of four old ones and a new one, whose share is between a tenth and the whole of theirs.
        for (age, part) in [(0, 0.1), (1, 0.1), (5, 0.5), (9, 0.9), (10, 1.0), (60, 1.0)] {
            let share = share_of_a_new_one(4, minute, seconds(age));
            let expected = part / (4.0 + part);
            println!("{age} s old: {:.1} % of the picks", 100.0 * share);
            assert!((share - expected).abs() < 0.02, "{age} s: {share} instead of {expected}");
        }
        let all_new = share_of_a_new_one(4, Duration::ZERO, seconds(1));
        assert!((all_new - 0.2).abs() < 0.02, "{all_new}");
        let nearly_as_new = share_of_a_new_one(4, seconds(4), seconds(4));
        assert!((nearly_as_new - 0.5 / 4.5).abs() < 0.02, "{nearly_as_new}");
        let of_two = share_of_a_new_one(1, minute, Duration::ZERO);
        assert!((of_two - 0.5).abs() < 0.02, "{of_two}");
    }
}
