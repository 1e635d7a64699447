//! Settling: an acknowledgement goes to the broker, everything else stays here.

use std::collections::VecDeque;
use std::time::Duration;

use antiphon_messaging::{Settle, Settled, Settlement, Settling};
use tokio::time::Instant;

use crate::member::{Member, Mode, State};

/// The longest retry that a member waits for: what waits takes up room in the window of its lane.
pub(crate) const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

/// The acknowledgements of one connection, and the order in which they may go.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    in_order: bool,
    /// Packet ids in the order of receipt, and whether each is done.
    open: VecDeque<(u16, bool)>,
}

impl Acks {
    pub(crate) const fn new(in_order: bool) -> Self {
        Self { in_order, open: VecDeque::new() }
    }

    /// A packet has come.
    pub(crate) fn came(&mut self, id: u16) {
        if self.in_order {
            self.open.push_back((id, false));
        }
    }

    /// A packet is done: which may be acknowledged now?
    pub(crate) fn done(&mut self, id: u16, may_go: &mut Vec<u16>) {
        if !self.in_order {
            may_go.push(id);
            return;
        }
        if let Some(one) = self.open.iter_mut().find(|(open, done)| *open == id && !*done) {
            one.1 = true;
        }
        while let Some((id, true)) = self.open.front() {
            may_go.push(*id);
            self.open.pop_front();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.open.clear();
    }
}

impl Settle for Member {
    fn settle(&self, token: u64, settlement: Settlement) -> Settling {
        let mut answers = self.settle_batch(vec![(token, settlement)]);
        answers.pop().unwrap_or(Settling::Done(Settled::Stale))
    }

    fn settle_batch(&self, batch: Vec<(u64, Settlement)>) -> Vec<Settling> {
        let now = Instant::now();
        let mut wake = Wake::default();
        let mut acks: Vec<(u32, Vec<u16>)> = Vec::new();
        let mut state = self.state.lock();
        let answers = batch
            .into_iter()
            .map(|(token, settlement)| {
                Settling::Done(state.settle(token, settlement, now, &mut acks, &mut wake))
            })
            .collect();
        for (lane, ids) in acks {
            let lane = usize::try_from(lane).unwrap_or(usize::MAX);
            if let Some(link) = state.lanes.get(lane).and_then(|lane| lane.link.as_ref()) {
                link.ack(ids);
            }
        }
        drop(state);
        if wake.fetch {
            self.fetch.notify_one();
        }
        if wake.keep {
            self.keep.notify_one();
        }
        answers
    }
}

/// Who has something to do afterwards.
#[derive(Clone, Copy, Debug, Default)]
struct Wake {
    fetch: bool,
    keep: bool,
}

impl State {
    fn settle(
        &mut self,
        token: u64,
        settlement: Settlement,
        now: Instant,
        acks: &mut Vec<(u32, Vec<u16>)>,
        wake: &mut Wake,
    ) -> Settled {
        if self.lost.is_some() || self.mode == Mode::Dropped {
            return Settled::Stale;
        }
        let (lane, settled) = match settlement {
            Settlement::Ack => {
                let Some((lane, id)) = self.shelf.finish(token) else { return Settled::Stale };
                let index = acks.iter().position(|(one, _)| *one == lane).unwrap_or_else(|| {
                    acks.push((lane, Vec::new()));
                    acks.len() - 1
                });
                let at = usize::try_from(lane).unwrap_or(usize::MAX);
                self.lanes[at].acks.done(id, &mut acks[index].1);
                (lane, Settled::Sent)
            }
            other => {
                let (after, attempts, settled) = match other {
                    Settlement::Retry { after, attempts } if after <= RETRY_DELAY_MAX => {
                        (after, attempts, Settled::Confirmed)
                    }
                    Settlement::Release => (Duration::ZERO, 0, Settled::Confirmed),
                    // Not possible here: it comes again as if it had not been tried.
                    _ => (Duration::ZERO, 0, Settled::Stale),
                };
                let Some(lane) = self.shelf.give_back(token, after, attempts, now) else {
                    return Settled::Stale;
                };
                wake.fetch = true;
                (lane, settled)
            }
        };
        // The keeper waits for the last one of a lane that is given up.
        wake.keep |= self.mode != Mode::Joined || self.shelf.is_paused(lane);
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acked(in_order: bool, came: &[u16], done: &[u16]) -> Vec<u16> {
        let mut acks = Acks::new(in_order);
        came.iter().for_each(|id| acks.came(*id));
        let mut may_go = Vec::new();
        done.iter().for_each(|id| acks.done(*id, &mut may_go));
        may_go
    }

    #[test]
    fn acknowledgements_go_as_settled_or_as_received() {
        assert_eq!(acked(false, &[1, 2, 3], &[3, 1]), [3, 1]);
        assert_eq!(acked(true, &[1, 2, 3], &[3]), [0_u16; 0]);
        assert_eq!(acked(true, &[1, 2, 3], &[3, 1]), [1]);
        assert_eq!(acked(true, &[1, 2, 3], &[3, 1, 2]), [1, 2, 3]);
        // Packet ids come again.
        assert_eq!(acked(true, &[1, 1], &[1, 1]), [1, 1]);
    }
}
