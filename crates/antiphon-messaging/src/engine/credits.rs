//! How many deliveries are held and not settled, in all and of each lane.
//!
//! What is held is bounded by the credits. Lanes that others take over are given up when nothing of
//! them is held any more.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

/// Lanes that others take over.
#[derive(Debug)]
struct Revoked {
    lanes: Vec<u32>,
    /// Dropped when nothing of them is held.
    _done: oneshot::Sender<()>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Credits {
    max: usize,
    held: usize,
    lanes: BTreeMap<u32, usize>,
    revoked: Vec<Revoked>,
}

impl Credits {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, held: 0, lanes: BTreeMap::new(), revoked: Vec::new() }
    }

    /// How many deliveries are held.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// How many more may be.
    pub(crate) fn left(&self) -> usize {
        self.max.saturating_sub(self.held)
    }

    /// How many free ones make it worth asking the broker for more.
    pub(crate) fn worthwhile(&self) -> usize {
        (self.max / 4).max(1)
    }

    /// A delivery of this lane has come in.
    pub(crate) fn take(&mut self, lane: u32) {
        self.held += 1;
        *self.lanes.entry(lane).or_default() += 1;
    }

    /// A delivery of this lane is settled.
    pub(crate) fn give(&mut self, lane: u32) {
        self.held = self.held.saturating_sub(1);
        let Some(count) = self.lanes.get_mut(&lane) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 && !self.revoked.is_empty() {
            let lanes = &self.lanes;
            self.revoked.retain(|revoked| holds_any(lanes, &revoked.lanes));
        }
    }

    /// Drops `done` when nothing of these lanes is held: now, or later.
    pub(crate) fn revoke(&mut self, lanes: Vec<u32>, done: oneshot::Sender<()>) {
        if holds_any(&self.lanes, &lanes) {
            self.revoked.push(Revoked { lanes, _done: done });
        }
    }
}

fn holds_any(held: &BTreeMap<u32, usize>, lanes: &[u32]) -> bool {
    lanes.iter().any(|lane| held.get(lane).is_some_and(|count| *count > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_are_taken_and_given_back() {
        let mut credits = Credits::new(3);
        (0..4).for_each(|lane| credits.take(lane));
        assert_eq!((credits.held(), credits.left()), (4, 0));
        credits.give(1);
        credits.give(2);
        assert_eq!((credits.held(), credits.left()), (2, 1));
    }

    #[test]
    fn a_revoked_lane_is_given_up_with_its_last_delivery() {
        let mut credits = Credits::new(9);
        [7, 7, 8].into_iter().for_each(|lane| credits.take(lane));
        let (done, _waits) = oneshot::channel::<()>();
        credits.revoke(vec![7, 9], done);
        credits.give(8);
        credits.give(7);
        assert_eq!(credits.revoked.len(), 1);
        credits.give(7);
        assert!(credits.revoked.is_empty());

        let (done, mut at_once) = oneshot::channel::<()>();
        credits.revoke(vec![7], done);
        assert!(
            at_once.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed)
        );
    }
}
