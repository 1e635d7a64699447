//! One pick.
//!
//! A policy proposes members of the pool until one of them may have the call; nearly always that is
//! the first. Only when it proposes in vain again and again — most of what the roster knew is gone,
//! or this call has tried nearly all — are the candidates gone through one by one.

use std::ptr;

use super::hash::{Numbers, mix};
use super::{Candidate, Load, PickInput, Policy, Roster};

/// Proposals in vain before all are gone through. High enough that slow start keeps its shares when
/// nine of ten instances are new.
const PROPOSALS_MAX: u32 = 16;
/// So many calls no instance minds, whatever the average: else two calls at once would tear a key
/// from its instance when there is nothing else to do.
const BOUND_MIN: u32 = 4;

impl<C: Candidate> Roster<C> {
    /// Which instance the call goes to; `None` when none is connected. The caller says
    /// [`InFlight::begin`](super::InFlight::begin) right away.
    ///
    /// One that was tried already is picked when there is no other: a retry may well succeed there,
    /// and who does not want that, such as a hedge, compares.
    ///
    /// Costs some tens of nanoseconds for any number of instances.
    #[must_use]
    pub fn pick(&self, input: &PickInput<'_, C>) -> Option<&C> {
        let mut numbers = Numbers::new(input.random);
        let numbers = &mut numbers;
        let picked = match self.settings.policy {
            Policy::PeakEwma => self.by_peak_ewma(input, numbers),
            Policy::RoundRobin => self.propose(input, numbers, |_| self.pool.turn()),
            Policy::WeightedRoundRobin => {
                self.propose(input, numbers, |_| self.pool.turn_by_weight())
            }
            Policy::LeastRequest { choices } => self.by_least_request(input, numbers, choices),
            Policy::ConsistentHash { bound } => {
                return self.by_key(input, bound).or_else(|| self.any(input, numbers));
            }
        };
        match picked {
            Some(member) => self.candidates.get(self.pool.candidate(member)),
            None => self.any(input, numbers),
        }
    }

    fn by_peak_ewma(&self, input: &PickInput<'_, C>, numbers: &mut Numbers) -> Option<usize> {
        let now = input.now;
        let unpicked_max = self.settings.unpicked_max;
        let first = self.propose(input, numbers, |numbers| self.pool.draw(numbers))?;
        let second = self.propose(input, numbers, |numbers| self.pool.draw_besides(first, numbers));
        let Some(second) = second.filter(|&second| second != first) else {
            self.load(first)?.picked(now, unpicked_max);
            return Some(first);
        };
        let cost = |member| Some(self.load(member)?.cost(self.pool.share(member), now));
        let (best, other) = if cost(second)?.is_less_than(cost(first)?) {
            (second, first)
        } else {
            (first, second)
        };
        if self.load(other)?.take_due(now, unpicked_max) {
            return Some(other);
        }
        self.load(best)?.picked(now, unpicked_max);
        Some(best)
    }

    fn by_least_request(
        &self,
        input: &PickInput<'_, C>,
        numbers: &mut Numbers,
        choices: u32,
    ) -> Option<usize> {
        // One that refuses or fails at once never has many in flight.
        let load = |member| {
            let load = self.load(member)?;
            let in_flight = load.in_flight() as f32 / self.pool.share(member);
            Some(if load.rests(input.now) { f32::INFINITY } else { in_flight })
        };
        let mut best = self.propose(input, numbers, |numbers| self.pool.draw(numbers))?;
        for _ in 1..choices.clamp(2, 10) {
            let other =
                self.propose(input, numbers, |numbers| self.pool.draw_besides(best, numbers));
            if let Some(other) = other
                && load(other)? < load(best)?
            {
                best = other;
            }
        }
        Some(best)
    }

    fn by_key(&self, input: &PickInput<'_, C>, bound: f32) -> Option<&C> {
        let key = mix(input.key.unwrap_or(input.random));
        let per_weight = input
            .in_flight
            .map_or(f32::INFINITY, |all| bound.max(1.0) * (all as f32 + 1.0) / self.weights as f32);
        let mut first = None;
        for owner in self.ring.as_ref()?.from(key) {
            let candidate = &self.candidates[owner];
            if !self.may_have(candidate, input) {
                continue;
            }
            let in_flight = candidate.load().in_flight();
            let bound = per_weight * candidate.weight().max(1) as f32;
            if in_flight < BOUND_MIN || (in_flight as f32) < bound.ceil() {
                return Some(candidate);
            }
            first = first.or(Some(candidate));
        }
        first
    }

    /// The first member that `next` proposes and that may have the call.
    fn propose(
        &self,
        input: &PickInput<'_, C>,
        numbers: &mut Numbers,
        next: impl Fn(&mut Numbers) -> usize,
    ) -> Option<usize> {
        for _ in 0..PROPOSALS_MAX {
            let member = next(numbers);
            let candidate = self.candidates.get(self.pool.candidate(member))?;
            let starting = self.slow_start.as_ref();
            if self.may_have(candidate, input)
                && starting.is_none_or(|one| one.passes(candidate.load(), input.now, numbers))
            {
                return Some(member);
            }
        }
        None
    }

    /// Anybody, beginning anywhere: the pool before the rest, what was not tried before what was, and
    /// at last an ejected one, since nothing better is there.
    fn any(&self, input: &PickInput<'_, C>, numbers: &mut Numbers) -> Option<&C> {
        let members = self.pool.candidates();
        let from = numbers.below(u32::try_from(members.len()).unwrap_or(u32::MAX)) as usize;
        let (before, after) = members.split_at(from);
        let pool = after.iter().chain(before).map(|&at| &self.candidates[at as usize]);
        let all = self.candidates.len();
        let from = numbers.below(u32::try_from(all).unwrap_or(u32::MAX)) as usize;
        let (before, after) = self.candidates.split_at(from);
        let mut order = pool.chain(after).chain(before);
        let admitted = |one: &&C| self.scope.admits(one.load().standing());
        order
            .clone()
            .find(|one| self.may_have(one, input))
            .or_else(|| order.clone().find(admitted))
            .or_else(|| order.find(|one| one.load().standing() != super::Standing::Away))
    }

    fn may_have(&self, candidate: &C, input: &PickInput<'_, C>) -> bool {
        let load = candidate.load();
        self.scope.admits(load.standing())
            && !input.tried.iter().any(|tried| ptr::eq(tried.load(), load))
    }

    fn load(&self, member: usize) -> Option<&Load> {
        self.candidates.get(self.pool.candidate(member)).map(Candidate::load)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::super::testing::Instance;
    use super::super::{BalanceSettings, InFlight, Standing, stable_hash};
    use super::*;

    const POLICIES: [Policy; 5] = [
        Policy::PeakEwma,
        Policy::RoundRobin,
        Policy::WeightedRoundRobin,
        Policy::LeastRequest { choices: 2 },
        Policy::ConsistentHash { bound: 1.25 },
    ];

    fn roster(policy: Policy, weights: &[u32], now: Instant) -> Roster<Instance> {
        let one = |(at, &weight): (usize, _)| {
            let mut one = Instance::ready(format!("i-{at}"), now);
            one.weight = weight;
            one
        };
        let instances: Vec<_> = weights.iter().enumerate().map(one).collect();
        let settings = BalanceSettings { policy, ..BalanceSettings::default() };
        Roster::new(instances, settings, now, 7)
    }

    /// Who is ever picked.
    fn picked(roster: &Roster<Instance>, tried: &[&Instance], now: Instant) -> BTreeSet<String> {
        // The type of those tried is that of the candidates: tried ones are told by their load.
        let mut seen = BTreeSet::new();
        let by_reference = Roster::new(
            roster.candidates().iter().collect::<Vec<_>>(),
            roster.settings().clone(),
            now,
            7,
        );
        for random in 0..2_000 {
            let input = PickInput { tried, ..PickInput::new(now, random) };
            if let Some(one) = by_reference.pick(&input) {
                seen.insert(one.id().to_owned());
            }
        }
        seen
    }

    fn ids(numbers: &[usize]) -> BTreeSet<String> {
        numbers.iter().map(|number| format!("i-{number}")).collect()
    }

    #[test]
    fn every_policy_picks_only_who_may_have_the_call() {
        let now = Instant::now();
        for policy in POLICIES {
            let roster = roster(policy, &[1, 2, 3, 1, 2], now);
            let all = roster.candidates();
            assert_eq!(picked(&roster, &[], now), ids(&[0, 1, 2, 3, 4]), "{policy:?}");
            all[0].load().set_standing(Standing::Ejected, now);
            all[3].load().set_standing(Standing::Away, now);
            assert_eq!(picked(&roster, &[], now), ids(&[1, 2, 4]), "{policy:?}");
            assert_eq!(picked(&roster, &[&all[1]], now), ids(&[2, 4]), "{policy:?}");
            assert_eq!(picked(&roster, &[&all[1], &all[4]], now), ids(&[2]), "{policy:?}");
            let tried = [&all[1], &all[4], &all[2]];
            assert_eq!(picked(&roster, &tried, now), ids(&[1, 2, 4]), "{policy:?}: none else");
            for one in all {
                one.load().set_standing(Standing::Away, now);
            }
            assert_eq!(picked(&roster, &[], now), ids(&[]), "{policy:?}");
        }
    }

    #[test]
    fn a_roster_made_before_an_instance_went_away_does_not_pick_it() {
        let now = Instant::now();
        for policy in POLICIES {
            let roster = roster(policy, &[1; 50], now);
            let all = roster.candidates();
            all[1..].iter().for_each(|one| _ = one.load().set_standing(Standing::Away, now));
            for random in 0..1_000 {
                let one = roster.pick(&PickInput::new(now, random)).map(Candidate::id);
                assert_eq!(one, Some("i-0"), "{policy:?}");
            }
            all[0].load().set_standing(Standing::Ejected, now);
            let one = roster.pick(&PickInput::new(now, 1)).map(Candidate::id);
            assert_eq!(one, Some("i-0"), "{policy:?}: ejected, and all that is connected");
        }
    }

    #[test]
    fn a_call_that_tried_its_own_zone_goes_to_another() {
        let now = Instant::now();
        let one = |at| {
            let mut one = Instance::ready(format!("i-{at}"), now);
            one.zone = if at < 2 { Some("a") } else { Some("b") };
            one
        };
        let instances: Vec<_> = (0..4).map(one).collect();
        let settings = BalanceSettings { zone: Some("a".into()), ..BalanceSettings::default() };
        let roster = Roster::new(instances, settings, now, 7);
        let all = roster.candidates();
        assert_eq!(picked(&roster, &[], now), ids(&[0, 1]));
        assert_eq!(picked(&roster, &[&all[0]], now), ids(&[1]));
        assert_eq!(picked(&roster, &[&all[0], &all[1]], now), ids(&[2, 3]));
    }

    #[test]
    fn picks_follow_the_weights_within_three_sigma() {
        const PICKS: u32 = 100_000;
        let now = Instant::now();
        let weights = [1, 2, 3, 4, 90];
        let policies =
            [Policy::WeightedRoundRobin, Policy::LeastRequest { choices: 2 }, Policy::PeakEwma];
        for policy in policies {
            let roster = roster(policy, &weights, now);
            // Idle, alike, and none of them due: weights alone decide.
            for one in roster.candidates() {
                InFlight::begin(one, now).answered(now);
                one.load().picked(now, Duration::from_secs(5));
            }
            let mut seen = weights.map(|_| 0.0);
            for random in 0..PICKS {
                let input = PickInput::new(now, random.into());
                let one = roster.pick(&input).expect("all are ready");
                let at = roster.candidates().iter().position(|other| ptr::eq(one, other));
                seen[at.expect("it is one of them")] += 1.0;
            }
            println!("{policy:?} by weights {weights:?}: {seen:?}");
            for (weight, seen) in weights.into_iter().zip(seen) {
                let part = f64::from(weight) / 100.0;
                let (mean, picks) = (f64::from(PICKS) * part, f64::from(PICKS));
                let sigma = (picks * part * (1.0 - part)).sqrt();
                assert!((seen - mean).abs() < 3.0 * sigma, "{policy:?} {weight}: {seen}");
            }
        }
    }

    #[test]
    fn one_after_the_other() {
        let now = Instant::now();
        let roster = roster(Policy::RoundRobin, &[1, 5, 9], now);
        let next = || roster.pick(&PickInput::new(now, 0)).map(Candidate::id);
        let circle = [next(), next(), next()];
        assert_eq!(circle.into_iter().flatten().collect::<BTreeSet<_>>().len(), 3);
        assert_eq!([next(), next(), next()], circle);
    }

    #[test]
    fn of_two_the_one_that_costs_less() {
        let now = Instant::now();
        let milli = Duration::from_millis(1);
        let roster = roster(Policy::PeakEwma, &[1, 1], now);
        let [fast, slow] = roster.candidates() else { unreachable!("there are two") };
        for (one, took) in [(fast, 4 * milli), (slow, 6 * milli)] {
            InFlight::begin(one, now).answered(now + took);
            one.load().picked(now, Duration::from_secs(5));
        }
        let mut calls = Vec::new();
        for random in 0..23_u64 {
            let one = roster.pick(&PickInput::new(now + 10 * milli, random)).expect("ready");
            calls.push(InFlight::begin(one, now));
        }
        // Who takes two thirds of the time has half as many again: one more would be the fifteenth
        // or the tenth, and cost 60 ms either way.
        assert_eq!((fast.load().in_flight(), slow.load().in_flight()), (14, 9));
        drop(calls);
        assert_eq!((fast.load().in_flight(), slow.load().in_flight()), (0, 0));
        // The slow one has not been picked for five seconds.
        let later = now + Duration::from_secs(6);
        fast.load().picked(later, Duration::from_secs(5));
        slow.load().picked(now, Duration::from_secs(5));
        let ids: Vec<_> = (0..3)
            .map(|random| roster.pick(&PickInput::new(later, random)).map(Candidate::id))
            .collect();
        assert_eq!(ids, [Some("i-1"), Some("i-0"), Some("i-0")]);
    }

    #[test]
    fn an_instance_that_sheds_load_gets_few_calls_until_it_answers() {
        const CALLS: u32 = 10_000;
        let milli = Duration::from_millis(1);
        for policy in [Policy::PeakEwma, Policy::LeastRequest { choices: 2 }] {
            let origin = Instant::now();
            let roster = roster(policy, &[1; 5], origin);
            let busy = &roster.candidates()[0];
            // A thousand calls a second; the others answer in a fifth of one, and this one refuses at
            // once.
            let calls_to_it = |from: u32, refuses: bool| {
                let calls = (from..from + CALLS).filter(|&call| {
                    let now = origin + (1_000 + call) * milli;
                    let one = roster.pick(&PickInput::new(now, call.into())).expect("ready");
                    let is_busy = ptr::eq(one, busy);
                    if is_busy && refuses {
                        InFlight::begin(one, now).shed(now, Some(60 * milli));
                    } else {
                        InFlight::begin(one, now - 200 * milli).answered(now);
                    }
                    is_busy
                });
                calls.count()
            };
            let (refused, answered) = (calls_to_it(0, true), calls_to_it(CALLS, false));
            println!("{policy:?}: of {CALLS} calls {refused} while it refuses, then {answered}");
            assert!((5..=20).contains(&refused), "{policy:?}: {refused}");
            assert!((1_000..=3_000).contains(&answered), "{policy:?}: {answered}");
        }
    }

    #[test]
    fn a_key_stays_with_its_instance_until_that_has_more_than_its_bound() {
        let now = Instant::now();
        let roster = roster(Policy::ConsistentHash { bound: 1.25 }, &[1; 5], now);
        let key = Some(stable_hash(b"hot"));
        let pick = |in_flight, random| {
            let input = PickInput { key, in_flight, ..PickInput::new(now, random) };
            roster.pick(&input).expect("all are ready")
        };
        let home = pick(None, 1);
        let mut calls = Vec::new();
        for call in 0..100 {
            assert!(ptr::eq(pick(None, call.into()), home), "without a bound");
            calls.push(InFlight::begin(pick(Some(call), call.into()), now));
        }
        // The hundredth call may go where fewer than 1.25 * 100 / 5 are.
        let most = roster.candidates().iter().map(|one| one.load().in_flight()).max();
        assert_eq!((most, home.load().in_flight()), (Some(25), 25));
        drop(calls);
        assert!(ptr::eq(pick(Some(0), 1), home));
        let few: Vec<_> = (0..4).map(|call| InFlight::begin(pick(Some(call), 1), now)).collect();
        assert!(few.iter().all(|call| ptr::eq(*call.candidate(), home)), "few calls stay together");
    }
}
