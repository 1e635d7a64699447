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
        let (best, other) =
            if cost(second)? < cost(first)? { (second, first) } else { (first, second) };
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
        let load = |member| Some(self.load(member)?.in_flight() as f32 / self.pool.share(member));
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
