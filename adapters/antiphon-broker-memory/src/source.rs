//! A member's end of a group: fetching, settling, leaving.

use std::sync::Arc;

use antiphon_core::BoxFuture;
use antiphon_messaging::{Delivery, Fetched, Settle, Settled, Settlement, Settling, Source};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::broker::Shared;
use crate::group::MemberId;
use crate::state::GroupId;

/// Leaves the group when it is dropped.
struct Membership {
    shared: Arc<Shared>,
    group: GroupId,
    member: MemberId,
    notify: Arc<Notify>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.shared.state.lock().group(self.group).leave(self.member, Instant::now());
    }
}

pub(crate) struct MemorySource {
    membership: Membership,
    settler: Arc<dyn Settle>,
}

/// What looking for messages found.
enum Look {
    Found(Fetched),
    /// Nothing; look again at this moment at the latest.
    Nothing(Option<Instant>),
}

impl MemorySource {
    pub(crate) fn new(
        shared: Arc<Shared>,
        group: GroupId,
        member: MemberId,
        notify: Arc<Notify>,
    ) -> Self {
        let settler = Arc::new(Settler { shared: Arc::clone(&shared), group });
        Self { membership: Membership { shared, group, member, notify }, settler }
    }

    fn look(&self, credits: usize) -> Look {
        let Membership { shared, group: id, member, .. } = &self.membership;
        let mut state = shared.state.lock();
        let revoked = state.group(*id).revoked(*member);
        if !revoked.is_empty() {
            // The lanes go over when nothing of them is in flight, which says as much as `done`.
            let (done, _) = oneshot::channel();
            return Look::Found(Fetched::Revoked { lanes: revoked, done });
        }
        if credits == 0 {
            return Look::Nothing(None);
        }
        let now = Instant::now();
        state.advance(now);
        state.wake();
        let group = state.group(*id);
        group.advance(now);
        let taken = group.take(*member, credits);
        if taken.is_empty() {
            let due = group.next_due();
            return Look::Nothing(due.into_iter().chain(state.next_due()).min());
        }
        drop(state);
        shared.room.notify_waiters();
        let deliveries = taken.into_iter().map(|taken| {
            let settle = Arc::clone(&self.settler);
            Delivery::new(taken.message, taken.attempt, taken.lane, taken.token, settle)
        });
        Look::Found(Fetched::Deliveries(deliveries.collect()))
    }
}

impl Source for MemorySource {
    fn fetch(&mut self, credits: usize) -> BoxFuture<'_, Fetched> {
        Box::pin(async move {
            loop {
                let due = match self.look(credits) {
                    Look::Found(fetched) => return fetched,
                    Look::Nothing(due) => due,
                };
                // A bell that rings in between is remembered: `notify_one` leaves a permit.
                let bell = self.membership.notify.notified();
                match due {
                    None => bell.await,
                    Some(due) => tokio::select! {
                        biased;
                        () = bell => {}
                        () = tokio::time::sleep_until(due) => {}
                    },
                }
            }
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        let Membership { shared, group, member, .. } = &self.membership;
        shared.state.lock().group(*group).close(*member, Instant::now());
        Box::pin(async move {
            let Membership { shared, group, member, notify } = &self.membership;
            while !shared.state.lock().group(*group).is_done(*member) {
                notify.notified().await;
            }
        })
    }
}

/// Settles for the members of a group; whoever is gone has no tokens any more.
struct Settler {
    shared: Arc<Shared>,
    group: GroupId,
}

impl Settle for Settler {
    fn settle(&self, token: u64, settlement: Settlement) -> Settling {
        let settled = self.settle_batch(vec![(token, settlement)]);
        settled.into_iter().next().unwrap_or(Settling::Done(Settled::Stale))
    }

    fn settle_batch(&self, batch: Vec<(u64, Settlement)>) -> Vec<Settling> {
        let (now, wall) = (Instant::now(), self.shared.clock.now());
        let acks_only = batch.iter().all(|(_, settlement)| *settlement == Settlement::Ack);
        let mut state = self.shared.state.lock();
        let group = state.group(self.group);
        let settled = batch
            .into_iter()
            .map(|(token, settlement)| Settling::Done(group.settle(token, settlement, now, wall)))
            .collect();
        if !acks_only {
            // Something may have become available, or due earlier than the sleepers know.
            group.wake();
        }
        settled
    }
}
