//! Settling deliveries of a lane: by its owner, and for as long as it is that.

use antiphon_messaging::{Settle, Settled, Settlement, Settling};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Core, SEQUENCE_BITS, State, wake};
use crate::broker::RETRY_DELAY_MAX;

impl Settle for Core {
    fn settle(&self, token: u64, settlement: Settlement) -> Settling {
        let mut state = self.state.lock();
        let settled = self.settle_one(&mut state, token, settlement);
        self.ring_if_idle(&state);
        settled
    }

    fn settle_batch(&self, batch: Vec<(u64, Settlement)>) -> Vec<Settling> {
        let mut state = self.state.lock();
        let settled = batch
            .into_iter()
            .map(|(token, settlement)| self.settle_one(&mut state, token, settlement))
            .collect();
        self.ring_if_idle(&state);
        settled
    }
}

impl Core {
    fn settle_one(&self, state: &mut State, token: u64, settlement: Settlement) -> Settling {
        let stale = Settling::Done(Settled::Stale);
        let id = u32::try_from(token >> SEQUENCE_BITS).unwrap_or(u32::MAX);
        let position = token & ((1 << SEQUENCE_BITS) - 1);
        if state.over {
            return stale;
        }
        let Some(share) = state.shares.get_mut(&id).filter(|share| share.queue.is_out(position))
        else {
            return stale;
        };
        let lane = share.lane;
        match settlement {
            Settlement::Ack => {
                share.queue.done(position);
                share.frontier.finish(position, share.queue.first());
                state.dirty[lane as usize] = true;
                Settling::Done(Settled::Sent)
            }
            Settlement::Retry { after, attempts } if after <= RETRY_DELAY_MAX => {
                let total = share.queue.attempts(position).unwrap_or(0).saturating_add(attempts);
                share.queue.wait(position, Instant::now() + after, total);
                wake(state);
                if attempts == 0 {
                    return Settling::Done(Settled::Sent);
                }
                let (answer, written) = oneshot::channel();
                state.dirty[lane as usize] = true;
                state.writing.push((lane, answer));
                self.bell.notify_one();
                Settling::Wait(Box::pin(async move { written.await.unwrap_or(Settled::Stale) }))
            }
            Settlement::Release => {
                share.queue.give_back(position);
                wake(state);
                Settling::Done(Settled::Sent)
            }
            Settlement::Retry { .. } | Settlement::Dead(_) => {
                share.queue.give_back(position);
                wake(state);
                stale
            }
        }
    }
}
