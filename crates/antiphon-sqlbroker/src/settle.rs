//! What becomes of deliveries: the port's [`Settle`] of a [`Member`].
//!
//! An acknowledgement is noted in the share and written with the next flush. What must be durable
//! before it is answered (retries, dead letters) is written at once, if the lease still holds; when
//! that fails, the member is lost, and the message, which is still open, comes again.

use std::sync::Arc;

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{DeadReason, Settle, Settled, Settlement, Settling};
use tokio::time::Instant;

use crate::change::{Answer, Change, Outcome, Place, Verdict};
use crate::log::{Broken, Log};
use crate::member::{Member, State};
use crate::share::{At, Bury, Effect, Park};

impl<L: Log> Member<L> {
    /// A row that holds no message becomes a dead letter, so that it blocks nothing.
    pub(crate) fn bury_broken(&self, broken: Broken, token: i64, waited: bool) {
        tracing::error!(
            topic = self.topics[broken.at.topic].name,
            seq = broken.at.seq,
            error = broken.error,
            "a stored message is broken; it becomes a dead letter"
        );
        let reason = DeadReason { code: "decode", error: broken.error, attempts: 0 };
        drop(self.bury(Bury {
            lane: broken.lane,
            token,
            at: broken.at,
            waited,
            key: String::new(),
            // Its own id may be what is broken.
            id: MessageId::derived(self.core.now(), &[&broken.at.seq.to_le_bytes()]),
            reason,
        }));
    }

    pub(crate) fn place(&self, lane: u32, at: At, key: String, waited: bool) -> Place {
        Place {
            group: self.identity.group,
            topic: self.topics[at.topic].id,
            seq: at.seq,
            lane,
            key,
            waited,
        }
    }

    pub(crate) fn park(&self, park: Park) -> Settling {
        let change = Change::Park {
            place: self.place(park.lane, park.at, park.key.clone(), park.waited),
            token: park.token,
            due: park.due,
            attempts: park.attempts,
        };
        self.durably(change, move |state| state.share.parked(&park))
    }

    fn bury(&self, bury: Bury) -> Settling {
        let change = Change::Bury {
            place: self.place(bury.lane, bury.at, bury.key.clone(), bury.waited),
            token: bury.token,
            id: bury.id,
            reason: bury.reason.clone(),
            at: self.core.now(),
        };
        self.durably(change, move |state| state.share.buried(&bury))
    }

    fn settle_claimed(&self, place: Place, verdict: Verdict) -> Settling {
        let (group, core) = (place.group, Arc::downgrade(&self.core));
        let change = Change::Settle { place, owner: self.identity.owner.clone(), verdict };
        let answer = self.core.write(change, move |_| {
            if let Some(core) = core.upgrade() {
                core.regrouped(group, "");
            }
        });
        settling(answer)
    }

    /// Makes a change that is held up by the lease, and answers when it is durable.
    fn durably(&self, change: Change, then: impl FnOnce(&mut State) + Send + 'static) -> Settling {
        let me = self.me.clone();
        let answer = self.core.write(change, move |outcome| {
            let Some(member) = me.upgrade() else { return };
            match outcome {
                Ok(Outcome::Held(true)) => {
                    then(&mut member.state.lock());
                    member.work.notify_one();
                    member.wake.notify_one();
                }
                Ok(_) => member.lose("a lease was lost to another instance".into()),
                // The message is still open: this member, subscribed anew, or another gets it again.
                Err(failure) => member.lose(format!("writing a settlement failed: {failure}")),
            }
        });
        settling(answer)
    }

    fn settle_one(&self, state: &mut State, token: u64, settlement: Settlement) -> Settling {
        let wall = self.core.now();
        match state.share.settle(token, settlement, wall, Instant::now()) {
            Effect::Stale => Settling::Done(Settled::Stale),
            Effect::Noted => Settling::Done(Settled::Sent),
            Effect::Park(park) => self.park(park),
            Effect::Bury(bury) => self.bury(bury),
            Effect::Claimed { lane, at, attempts, id, settlement } => {
                let place = self.place(lane, at, String::new(), true);
                self.settle_claimed(place, verdict(settlement, attempts, id, wall))
            }
        }
    }

    fn settled(&self, wake: bool) {
        self.work.notify_one();
        if wake {
            self.wake.notify_one();
        }
    }
}

fn settling(answer: Answer) -> Settling {
    Settling::Wait(Box::pin(async move {
        match answer.held().await {
            Ok(true) => Settled::Confirmed,
            Ok(false) | Err(_) => Settled::Stale,
        }
    }))
}

fn verdict(settlement: Settlement, attempts: u32, id: MessageId, now: Timestamp) -> Verdict {
    match settlement {
        Settlement::Ack => Verdict::Done,
        Settlement::Release => Verdict::Again { due: Timestamp::EPOCH, attempts },
        Settlement::Retry { after, attempts: made } => {
            Verdict::Again { due: now + after, attempts: attempts.saturating_add(made) }
        }
        Settlement::Dead(reason) => Verdict::Dead { id, reason, at: now },
    }
}

impl<L: Log> Settle for Member<L> {
    fn settle(&self, token: u64, settlement: Settlement) -> Settling {
        let mut state = self.state.lock();
        let again = matches!(settlement, Settlement::Release);
        let settling = self.settle_one(&mut state, token, settlement);
        let wake = again || state.closing;
        drop(state);
        self.settled(wake);
        settling
    }

    fn settle_batch(&self, batch: Vec<(u64, Settlement)>) -> Vec<Settling> {
        let mut state = self.state.lock();
        let again = batch.iter().any(|(_, settlement)| *settlement == Settlement::Release);
        let settlings = batch
            .into_iter()
            .map(|(token, settlement)| self.settle_one(&mut state, token, settlement))
            .collect();
        let wake = again || state.closing;
        drop(state);
        self.settled(wake);
        settlings
    }
}
