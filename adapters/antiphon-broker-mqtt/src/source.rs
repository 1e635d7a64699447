//! A member as its consumer sees it.

use std::sync::Arc;

use antiphon_core::BoxFuture;
use antiphon_messaging::{Delivery, Fetched, Settle, Source};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::member::{Member, Mode};
use crate::shelf::Taken;

/// Leaves the group when it is dropped.
pub(crate) struct MqttSource {
    member: Arc<Member>,
    settle: Arc<dyn Settle>,
}

impl MqttSource {
    pub(crate) fn new(member: Arc<Member>) -> Self {
        Self { settle: Arc::<Member>::clone(&member), member }
    }

    /// What there is now, or when to look again at the latest.
    fn look(&self, credits: usize) -> Result<Fetched, Option<Instant>> {
        let mut state = self.member.state.lock();
        if let Some(reason) = &state.lost {
            return Ok(Fetched::Lost(reason.clone()));
        }
        if !state.revoking.is_empty() {
            let lanes = std::mem::take(&mut state.revoking);
            // The keeper sees for itself when nothing is left; the sender need not tell.
            let (done, _) = oneshot::channel();
            return Ok(Fetched::Revoked { lanes, done });
        }
        if credits == 0 {
            return Err(None);
        }
        let taken = state.shelf.take(credits, Instant::now());
        if taken.is_empty() {
            return Err(state.shelf.next_due());
        }
        drop(state);
        Ok(Fetched::Deliveries(taken.into_iter().map(|one| self.delivery(one)).collect()))
    }

    fn delivery(&self, taken: Taken) -> Delivery {
        let Taken { token, lane, attempt, message } = taken;
        Delivery::new(message, attempt, lane, token, Arc::clone(&self.settle))
    }
}

impl Source for MqttSource {
    fn fetch(&mut self, credits: usize) -> BoxFuture<'_, Fetched> {
        Box::pin(async move {
            loop {
                let changed = self.member.fetch.notified();
                let due = match self.look(credits) {
                    Ok(fetched) => return fetched,
                    Err(due) => due,
                };
                match due {
                    None => changed.await,
                    Some(due) => {
                        let _ = tokio::time::timeout_at(due, changed).await;
                    }
                }
            }
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.member.leave(Mode::Closing);
        Box::pin(async move { self.member.gone().await })
    }
}

impl Drop for MqttSource {
    fn drop(&mut self) {
        self.member.leave(Mode::Dropped);
    }
}
