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
        let mut after = Afterwards::default();
        let mut state = self.state.lock();
        let answers = batch
            .into_iter()
            .map(|(token, settlement)| {
                self.settle_one(&mut state, token, settlement, now, &mut after)
            })
            .collect();
        for (lane, ids) in after.acks {
            if let Some(link) = &state.lanes[index(lane)].link {
                link.ack(ids);
            }
        }
        drop(state);
        if after.fetch {
            self.fetch.notify_one();
        }
        if after.keep {
            self.keep.notify_one();
        }
        answers
    }
}

/// What is to be done when all is settled.
#[derive(Debug, Default)]
struct Afterwards {
    /// Packets to acknowledge, by lane.
    acks: Vec<(u32, Vec<u16>)>,
    /// There is something to fetch.
    fetch: bool,
    /// The keeper may have waited for this.
    keep: bool,
}

impl Afterwards {
    fn acks(&mut self, lane: u32) -> &mut Vec<u16> {
        let known = self.acks.iter().position(|(one, _)| *one == lane);
        let at = known.unwrap_or_else(|| {
            self.acks.push((lane, Vec::new()));
            self.acks.len() - 1
        });
        &mut self.acks[at].1
    }
}

impl Member {
    fn settle_one(
        &self,
        state: &mut State,
        token: u64,
        settlement: Settlement,
        now: Instant,
        after: &mut Afterwards,
    ) -> Settling {
        const STALE: Settling = Settling::Done(Settled::Stale);
        let Some(control) = state.control.clone().filter(|_| state.mode != Mode::Dropped) else {
            return STALE;
        };
        let (lane, settling) = match settlement {
            Settlement::Ack => {
                let Some(done) = state.shelf.finish(token) else { return STALE };
                let lane = done.lane;
                state.lanes[index(lane)].acks.done(done.packet, after.acks(lane));
                if let Some(id) = done.noted {
                    self.forget_tries(&control, lane, id);
                }
                (lane, Settling::Done(Settled::Sent))
            }
            Settlement::Retry { after: wait, attempts } if wait <= RETRY_DELAY_MAX => {
                let back = state.shelf.give_back(token, wait, attempts, now);
                let Some((lane, id, made)) = back else { return STALE };
                after.fetch = true;
                if attempts == 0 && wait.is_zero() {
                    (lane, Settling::Done(Settled::Confirmed))
                } else {
                    (lane, self.note_tries(&control, lane, id, made, wait))
                }
            }
            other => {
                let back = state.shelf.give_back(token, Duration::ZERO, 0, now);
                let Some((lane, ..)) = back else { return STALE };
                after.fetch = true;
                // What is not possible here comes again as if nothing had been said.
                let released = other == Settlement::Release;
                (lane, if released { Settling::Done(Settled::Confirmed) } else { STALE })
            }
        };
        // The keeper waits for the last one of a lane that is given up.
        after.keep |= state.mode != Mode::Joined || state.shelf.is_paused(lane);
        settling
    }
}

fn index(lane: u32) -> usize {
    usize::try_from(lane).unwrap_or(usize::MAX)
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
