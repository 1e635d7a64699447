//! Settling deliveries of a lane: by its owner, and for as long as it is that.

use antiphon_messaging::{Settle, Settled, Settlement, Settling};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Core, State, wake};
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
        if state.over || Instant::now() >= state.lease_until {
            return stale;
        }
        let Some((id, position)) = state.tokens.remove(&token) else { return stale };
        let Some(share) = state.shares.get_mut(&id) else { return stale };
        let lane = share.lane;
        match settlement {
            Settlement::Ack => {
                let crowded = share.queue.len() >= self.read_ahead / 2;
                share.queue.done(position);
                share.frontier.finish(position, share.queue.first());
                state.dirty[lane as usize] = true;
                if crowded || share.queue.is_empty() {
                    self.reading.notify_one();
                }
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
