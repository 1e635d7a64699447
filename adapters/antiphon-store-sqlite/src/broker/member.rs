//! One member of a group: the driver around its [`Share`], and the port's [`Source`].
//!
//! Reads are asked for by `fetch` and land in the share, so a `fetch` that is given up loses
//! nothing. Settlements are noted in the share; the keeper (`keeper`) writes them down.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use antiphon_core::{BoxFuture, MessageId, Timestamp};
use antiphon_messaging::{
    DeadReason, Delivery, Fetched, Settle, Settled, Settlement, Settling, Source,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::core::Core;
use super::keeper;
use super::rows::{self, Identity, Place, Progress, Verdict, Written};
use super::scan::{self, Broken, Found};
use super::share::{At, Bury, Effect, Park, Scan, Share};
use super::writer::Answer;

/// Messages that are read from one topic at a time, at least and at most.
const READ_MIN: usize = 64;
const READ_MAX: usize = 1_024;

/// A topic of the subscription.
#[derive(Clone, Debug)]
pub(super) struct Topic {
    pub(super) id: i64,
    pub(super) name: String,
    /// The statements that read its log: on from a position, and at one.
    pub(super) scan: String,
    pub(super) one: String,
}

impl Topic {
    pub(super) fn new(id: i64, name: String) -> Self {
        let columns = format!("SELECT seq, lane, id, kind, head, body FROM log_{id}");
        Self {
            id,
            name,
            scan: format!("{columns} WHERE seq > ? ORDER BY seq"),
            one: format!("{columns} WHERE seq = ?"),
        }
    }
}

pub(super) struct Member {
    pub(super) core: Arc<Core>,
    pub(super) identity: Identity,
    pub(super) topics: Arc<[Topic]>,
    pub(super) state: Mutex<State>,
    /// Wakes `fetch` and `close`.
    pub(super) wake: Notify,
    /// Wakes the keeper.
    pub(super) work: Arc<Notify>,
    me: Weak<Self>,
}

pub(super) struct State {
    pub(super) share: Share,
    pub(super) revoked: VecDeque<(Vec<u32>, oneshot::Sender<()>)>,
    pub(super) lost: Option<String>,
    /// The group was left; nothing counts any more.
    pub(super) over: bool,
    /// No new messages are wanted.
    pub(super) closing: bool,
    /// Lanes may have to be shared out anew.
    pub(super) regroup: bool,
    /// Whether the consumer has asked for messages since the last heartbeat, or is asking.
    pub(super) asked: bool,
    asking: bool,
    /// There may be unread messages in the logs.
    pub(super) unread: bool,
    reading: bool,
    limit: usize,
}

impl Member {
    pub(super) fn new(
        core: Arc<Core>,
        identity: Identity,
        topics: Vec<Topic>,
        ordered: bool,
    ) -> Arc<Self> {
        let state = State {
            share: Share::new(ordered, topics.len()),
            revoked: VecDeque::new(),
            lost: None,
            over: false,
            closing: false,
            regroup: true,
            asked: true,
            asking: false,
            unread: true,
            reading: false,
            limit: READ_MIN,
        };
        let member = Arc::new_cyclic(|me| Self {
            core,
            identity,
            topics: topics.into(),
            state: Mutex::new(state),
            wake: Notify::new(),
            work: Arc::new(Notify::new()),
            me: me.clone(),
        });
        member.core.add_member(&member);
        member
    }

    /// There are new messages in these topics.
    pub(super) fn published(&self, topics: &[i64]) {
        if self.identity.topics.iter().any(|topic| topics.contains(topic)) {
            self.changed();
        }
    }

    /// Something may have changed in the database.
    pub(super) fn changed(&self) {
        self.state.lock().unread = true;
        self.wake.notify_one();
    }

    /// Members of a group have come or gone.
    pub(super) fn regrouped(&self, group: i64, but: &str) {
        if self.identity.group == group && self.identity.owner != but {
            self.state.lock().regroup = true;
            self.work.notify_one();
        }
    }

    /// This member cannot go on.
    pub(super) fn lose(&self, reason: String) {
        let mut state = self.state.lock();
        state.lost.get_or_insert(reason);
        drop(state);
        self.wake.notify_one();
    }

    /// Leaves the group at once: what is in the consumer's hands comes again, elsewhere.
    pub(super) fn leave(&self) -> Option<Answer<()>> {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.over, true) {
            return None;
        }
        let lanes: Vec<u32> = state.share.lanes().map(|(number, _)| number).collect();
        let progress = self.progress(&mut state, &lanes, true);
        for lane in lanes {
            state.share.leave(lane);
        }
        drop(state);
        let (identity, core) = (self.identity.clone(), Arc::downgrade(&self.core));
        let (group, owner) = (identity.group, identity.owner.clone());
        let answer = self.core.write(
            move |connection| rows::leave(connection, &identity, &progress),
            move |_| {
                if let Some(core) = core.upgrade() {
                    core.regrouped(group, &owner);
                }
            },
        );
        self.work.notify_one();
        Some(answer)
    }

    /// What has to be written of these lanes: everything, or what was settled.
    pub(super) fn progress(&self, state: &mut State, lanes: &[u32], all: bool) -> Vec<Progress> {
        let mut progress = Vec::new();
        for (number, lane) in state.share.lanes_mut().filter(|(n, _)| lanes.contains(n)) {
            let mut cursors = Vec::new();
            for (topic, cursor) in self.topics.iter().zip(&mut lane.cursors) {
                if cursor.dirty || (all && cursor.written != cursor.position) {
                    cursor.dirty = false;
                    cursor.written = cursor.position;
                    cursors.push(Written {
                        topic: topic.id,
                        position: cursor.position,
                        low: cursor.low(),
                        open: rows::pack(&cursor.open),
                    });
                }
            }
            let done = lane.waiting.done_rows();
            let done: Vec<_> =
                done.into_iter().map(|at| (self.topics[at.topic].id, at.seq)).collect();
            if all || !cursors.is_empty() || !done.is_empty() {
                progress.push(Progress { lane: number, token: lane.token, cursors, done });
            }
        }
        progress
    }

    /// Hands out what is there.
    fn take(&self, state: &mut State, credits: usize) -> Vec<Delivery> {
        let (taken, parked) = state.share.take(credits);
        for park in parked {
            drop(self.park(park));
        }
        let Some(me) = self.me.upgrade() else { return Vec::new() };
        taken
            .into_iter()
            .map(|(token, ready)| {
                let attempt = ready.attempts.saturating_add(1);
                let settle = Arc::clone(&me) as Arc<dyn Settle>;
                Delivery::new(ready.message, attempt, ready.lane, token, settle)
            })
            .collect()
    }

    /// Asks for what is to be read, if anything is and nobody has asked yet.
    fn ask(&self, state: &mut State, credits: usize) {
        state.limit = credits.clamp(READ_MIN, READ_MAX);
        if state.reading || state.share.buffered() >= state.limit {
            return;
        }
        let due = state.share.take_due(self.core.now(), state.limit);
        if !state.unread && due.is_empty() {
            return;
        }
        state.unread = false;
        state.reading = true;
        let (wanted, limit, group) = (state.share.scan(), state.limit, self.identity.group);
        let (me, topics) = (self.me.clone(), Arc::clone(&self.topics));
        self.core.read(move |connection| {
            let found = scan::scan(connection, group, &topics, &wanted, &due, limit);
            let Some(member) = me.upgrade() else { return };
            match found {
                Ok(found) => member.found(&wanted, found),
                Err(error) => member.lose(format!("reading messages failed: {error}")),
            }
        });
    }

    /// What was asked for was read.
    fn found(&self, wanted: &Scan, found: Found) {
        let mut state = self.state.lock();
        state.reading = false;
        for ready in found.due {
            state.share.due(ready);
        }
        for at in found.gone {
            state.share.gone(at);
        }
        if state.share.fits(wanted) {
            state.unread |= found.more;
            for ready in found.ready {
                state.share.read(ready);
            }
            for broken in found.broken {
                if let Some(token) = state.share.read_broken(broken.lane, broken.at) {
                    self.bury_broken(broken, token);
                }
            }
            for (topic, end) in found.ends.into_iter().enumerate() {
                if let Some(end) = end {
                    state.share.scanned(topic, end);
                }
            }
        } else {
            state.unread = true;
        }
        drop(state);
        self.wake.notify_one();
    }

    /// A row that holds no message becomes a dead letter, so that it blocks nothing.
    pub(super) fn bury_broken(&self, broken: Broken, token: i64) {
        tracing::error!(
            topic = self.topics[broken.at.topic].name,
            seq = broken.at.seq,
            error = broken.error,
            "a message in the log is broken; it becomes a dead letter"
        );
        let reason = DeadReason { code: "decode", error: broken.error, attempts: 0 };
        drop(self.bury(Bury {
            lane: broken.lane,
            token,
            at: broken.at,
            waited: false,
            key: String::new(),
            // Its own id may be what is broken.
            id: MessageId::derived(self.core.now(), &[&broken.at.seq.to_le_bytes()]),
            reason,
        }));
    }

    pub(super) fn place(&self, lane: u32, at: At, key: String, waited: bool) -> Place {
        Place {
            group: self.identity.group,
            topic: self.topics[at.topic].id,
            seq: at.seq,
            lane,
            key,
            waited,
        }
    }

    fn park(&self, park: Park) -> Settling {
        let place = self.place(park.lane, park.at, park.key.clone(), park.waited);
        let (token, due, attempts, me) = (park.token, park.due, park.attempts, self.me.clone());
        self.durably(
            move |connection| {
                let held = rows::holds(connection, place.group, place.lane, token)?;
                if held {
                    rows::park(connection, &place, due, attempts)?;
                }
                Ok(held)
            },
            move || {
                if let Some(member) = me.upgrade() {
                    member.state.lock().share.parked(&park);
                    member.work.notify_one();
                    member.wake.notify_one();
                }
            },
        )
    }

    fn bury(&self, bury: Bury) -> Settling {
        let place = self.place(bury.lane, bury.at, bury.key.clone(), bury.waited);
        let (now, me, burying) = (self.core.now(), self.me.clone(), bury.clone());
        self.durably(
            move |connection| {
                let held = rows::holds(connection, place.group, place.lane, burying.token)?;
                if held {
                    rows::bury(connection, &place, burying.id, &burying.reason, now)?;
                }
                Ok(held)
            },
            move || {
                if let Some(member) = me.upgrade() {
                    member.state.lock().share.buried(&bury);
                    member.work.notify_one();
                    member.wake.notify_one();
                }
            },
        )
    }

    fn settle_claimed(&self, place: Place, verdict: Verdict) -> Settling {
        let (owner, core) = (self.identity.owner.clone(), Arc::downgrade(&self.core));
        let group = place.group;
        let answer = self.core.write(
            move |connection| rows::settle_claimed(connection, &place, &owner, &verdict),
            move |_| {
                if let Some(core) = core.upgrade() {
                    core.regrouped(group, "");
                }
            },
        );
        Settling::Wait(Box::pin(async move {
            match answer.get().await {
                Ok(true) => Settled::Confirmed,
                Ok(false) | Err(_) => Settled::Stale,
            }
        }))
    }

    /// Makes a change that is `true` if the lease still held, and answers when it is durable.
    fn durably(
        &self,
        change: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<bool> + Send + 'static,
        then: impl FnOnce() + Send + 'static,
    ) -> Settling {
        let me = self.me.clone();
        let answer = self.core.write(change, move |held| match (held, me.upgrade()) {
            (Ok(true), _) => then(),
            (_, None) => {}
            (Ok(false), Some(member)) => {
                member.lose("a lease was lost to another instance".into());
            }
            // The message is still open: this member, subscribed anew, or another gets it again.
            (Err(failure), Some(member)) => {
                member.lose(format!("writing a settlement failed: {failure}"));
            }
        });
        Settling::Wait(Box::pin(async move {
            match answer.get().await {
                Ok(true) => Settled::Confirmed,
                Ok(false) | Err(_) => Settled::Stale,
            }
        }))
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

impl Settle for Member {
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

impl Member {
    fn settled(&self, wake: bool) {
        self.work.notify_one();
        if wake {
            self.wake.notify_one();
        }
    }
}

/// While it lives, the consumer is asking for messages.
struct Asking<'a>(&'a Member);

impl<'a> Asking<'a> {
    fn new(member: &'a Member) -> Self {
        member.state.lock().asking = true;
        Self(member)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.asking = false;
        state.asked = true;
    }
}

impl State {
    /// Whether the consumer has wanted nothing since this was asked last.
    pub(super) fn take_idle(&mut self) -> bool {
        let asked = std::mem::take(&mut self.asked);
        !asked && !self.asking
    }
}

/// The port's view of a [`Member`]; leaves the group when it is dropped.
pub(super) struct MemberSource(pub(super) Arc<Member>);

impl Source for MemberSource {
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

impl Drop for MemberSource {
    fn drop(&mut self) {
        drop(self.0.leave());
    }
}
