//! Which lanes this instance works on: leases are renewed well before they end, and lanes move
//! between the instances until each has its fair share.

use antiphon_messaging::LANES;
use tokio::time::Instant;

use super::{Action, Engine};
use crate::port::{Lease, StoreError};
use crate::relay::lane::Lane;

/// How many lanes each of `instances` should hold: all lanes are held, nobody holds two more than
/// another.
fn fair_share(instances: u32) -> usize {
    LANES.div_ceil(instances.max(1)) as usize
}

impl Engine {
    pub(super) fn next_lease_change(&self) -> Instant {
        if !self.is_draining && self.lanes.len() < self.share {
            self.tend_at.min(self.acquire_at)
        } else {
            self.tend_at
        }
    }

    pub(super) fn lease_action(&mut self, now: Instant) -> Option<Action> {
        if self.is_changing_leases {
            return None;
        }
        let action = if self.tend_at <= now {
            Action::Tend(self.leases())
        } else {
            self.hand_over().or_else(|| self.take_over(now))?
        };
        self.is_changing_leases = true;
        Some(action)
    }

    /// Every lease that is held.
    pub(in crate::relay) fn leases(&self) -> Vec<Lease> {
        self.lanes.values().map(|lane| lane.lease().clone()).collect()
    }

    /// Lanes above the fair share go to the others, once nothing of them is under way.
    fn hand_over(&mut self) -> Option<Action> {
        let ready: Vec<u32> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.is_retiring() && lane.is_idle())
            .map(|(number, _)| *number)
            .collect();
        let leases: Vec<_> = ready
            .iter()
            .filter_map(|number| self.lanes.remove(number))
            .map(|lane| lane.lease().clone())
            .collect();
        (!leases.is_empty()).then_some(Action::Release(leases))
    }

    fn take_over(&mut self, now: Instant) -> Option<Action> {
        let missing = self.share.saturating_sub(self.lanes.len());
        if missing == 0 || self.is_draining || self.acquire_at > now {
            return None;
        }
        self.acquire_at = now + self.settings.lease_ttl / 12;
        Some(Action::Acquire(u32::try_from(missing).unwrap_or(LANES)))
    }

    /// Answers whether tending succeeded. `asked_at` is when the store was asked.
    pub(in crate::relay) fn on_tended(
        &mut self,
        held: &[Lease],
        asked_at: Instant,
        answer: Result<(Vec<Lease>, u32), StoreError>,
        now: Instant,
    ) -> Result<(), StoreError> {
        self.is_changing_leases = false;
        let (renewed, instances) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.tend_at = now + self.settings.lease_ttl / 12;
                return Err(error);
            }
        };
        self.tend_at = asked_at + self.settings.lease_ttl / 3;
        let until = self.valid_until(asked_at);
        for lease in held {
            match renewed.iter().find(|new| new.lane == lease.lane && new.token == lease.token) {
                Some(new) => {
                    if let Some(lane) = self.lane_of(lease) {
                        lane.renew(new.clone(), until);
                    }
                }
                None => self.lose(lease),
            }
        }
        self.share = fair_share(instances);
        let surplus = self.lanes.len().saturating_sub(self.share);
        self.lanes.values_mut().rev().take(surplus).for_each(Lane::retire);
        Ok(())
    }

    fn valid_until(&self, asked_at: Instant) -> Instant {
        asked_at + self.settings.lease_ttl.saturating_sub(self.settings.lease_margin)
    }

    /// Answers whether the store could be asked.
    pub(in crate::relay) fn on_acquired(
        &mut self,
        asked_at: Instant,
        answer: Result<Vec<Lease>, StoreError>,
        now: Instant,
    ) -> Result<(), StoreError> {
        self.is_changing_leases = false;
        let until = self.valid_until(asked_at);
        for lease in answer? {
            self.lanes.insert(lease.lane, Lane::new(lease, until, now));
        }
        Ok(())
    }

    pub(in crate::relay) fn on_released(&mut self) {
        self.is_changing_leases = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_is_held_and_the_shares_are_even() {
        for instances in 0..40 {
            let share = fair_share(instances);
            let holders = instances.max(1) as usize;
            assert!(share * holders >= LANES as usize, "{instances} instances");
            assert!((share - 1) * holders < LANES as usize, "{instances} instances");
        }
    }
}
