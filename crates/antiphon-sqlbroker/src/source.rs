//! The port's [`Source`] of a [`Member`].

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxFuture;
use antiphon_messaging::{Fetched, Source};

use tokio::time::Instant;

use crate::keeper;
use crate::log::Log;
use crate::member::{Member, State};

/// How long a consumer that asks for nothing keeps its claim to a share of the lanes.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// While it lives, the consumer is asking for messages.
struct Asking<'a, L: Log>(&'a Member<L>);

impl<'a, L: Log> Asking<'a, L> {
    fn new(member: &'a Member<L>) -> Self {
        member.state.lock().asking = true;
        Self(member)
    }
}

impl<L: Log> Drop for Asking<'_, L> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.asking = false;
        state.asked_at = Instant::now();
    }
}

impl State {
    /// Whether the consumer has not wanted anything for a while.
    pub(crate) fn is_idle(&self) -> bool {
        !self.asking && self.asked_at.elapsed() >= IDLE_AFTER
    }
}

/// The port's view of a [`Member`]; leaves the group when it is dropped.
pub(crate) struct MemberSource<L: Log>(pub(crate) Arc<Member<L>>);

impl<L: Log> Source for MemberSource<L> {
    fn fetch(&mut self, credits: usize) -> BoxFuture<'_, Fetched> {
        Box::pin(async move {
            let _asking = (credits > 0).then(|| Asking::new(&self.0));
            loop {
                {
                    let mut state = self.0.state.lock();
                    if let Some(reason) = &state.lost {
                        return Fetched::Lost(reason.clone());
                    }
                    if let Some((lanes, done)) = state.revoked.pop_front() {
                        return Fetched::Revoked { lanes, done };
                    }
                    if credits > 0 {
                        let deliveries = self.0.take(&mut state, credits);
                        self.0.ask(&mut state, credits);
                        if !deliveries.is_empty() {
                            return Fetched::Deliveries(deliveries);
                        }
                    }
                }
                self.0.wake.notified().await;
            }
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        let mut state = self.0.state.lock();
        state.closing = true;
        let lanes: Vec<u32> = state.share.lanes().map(|(number, _)| number).collect();
        for lane in &lanes {
            state.share.stop(*lane);
        }
        keeper::release_idle(&self.0, &mut state, lanes);
        drop(state);
        Box::pin(async move {
            loop {
                {
                    let state = self.0.state.lock();
                    if state.share.held() == 0 || state.lost.is_some() {
                        break;
                    }
                }
                self.0.wake.notified().await;
            }
            if let Some(left) = self.0.leave() {
                // Whether it was written or not, nobody holds anything any more.
                drop(left.get().await);
            }
        })
    }
}

impl<L: Log> Drop for MemberSource<L> {
    fn drop(&mut self) {
        drop(self.0.leave());
    }
}
