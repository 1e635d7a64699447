//! One member of a group: the driver around its [`Share`].
//!
//! Reads are asked for by `fetch` (`source`) and land in the share, so a `fetch` that is given up
//! loses nothing. Settlements (`settle`) are noted in the share; the keeper (`keeper`) writes them
//! down.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use antiphon_messaging::{Delivery, Settle};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::change::{Answer, Change, Identity, Progress, Written};
use crate::core::Core;
use crate::log::{Found, Log, Topic, Wanted};
use crate::positions::pack;
use crate::share::{Scan, Share};

/// Messages that are read from one topic at a time, at least and at most.
const READ_MIN: usize = 64;
const READ_MAX: usize = 1_024;
/// Bytes that are read from one topic at a time, as far as the last messages tell.
const READ_BYTES: usize = 16 * 1024 * 1024;
const ENVELOPE_GUESSED: usize = 256;
/// The size of a message before any was seen.
const SIZE_GUESSED: usize = READ_BYTES / READ_MIN;

pub(crate) struct Member<L: Log> {
    pub(crate) core: Arc<Core<L>>,
    pub(crate) identity: Identity,
    pub(crate) topics: Arc<[Topic]>,
    pub(crate) state: Mutex<State>,
    /// Wakes `fetch` and `close`.
    pub(crate) wake: Notify,
    /// Wakes the keeper.
    pub(crate) work: Arc<Notify>,
    pub(crate) me: Weak<Self>,
}

pub(crate) struct State {
    pub(crate) share: Share,
    pub(crate) revoked: VecDeque<(Vec<u32>, oneshot::Sender<()>)>,
    pub(crate) lost: Option<String>,
    /// The group was left; nothing counts any more.
    pub(crate) over: bool,
    /// No new messages are wanted.
    pub(crate) closing: bool,
    /// Lanes may have to be shared out anew.
    pub(crate) regroup: bool,
    /// Whether the consumer is asking for messages, and when it has stopped.
    pub(crate) asking: bool,
    pub(crate) asked_at: Instant,
    /// There may be unread messages in the logs.
    pub(crate) unread: bool,
    reading: bool,
    limit: usize,
    /// How large the messages were that were read last, on average.
    size: usize,
}

impl<L: Log> Member<L> {
    pub(crate) fn new(
        core: Arc<Core<L>>,
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
            asking: false,
            asked_at: Instant::now(),
            unread: true,
            reading: false,
            limit: READ_MIN,
            size: SIZE_GUESSED,
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
    pub(crate) fn published(&self, topics: &[(i64, i64)]) {
        if topics.iter().any(|(topic, _)| self.identity.topics.contains(topic)) {
            self.changed();
        }
    }

    /// Something may have changed in the database.
    pub(crate) fn changed(&self) {
        self.state.lock().unread = true;
        self.wake.notify_one();
    }

    /// Members of a group have come or gone.
    pub(crate) fn regrouped(&self, group: i64, but: &str) {
        if self.identity.group == group && self.identity.owner != but {
            self.state.lock().regroup = true;
            self.work.notify_one();
        }
    }

    /// This member cannot go on.
    pub(crate) fn lose(&self, reason: String) {
        let mut state = self.state.lock();
        state.lost.get_or_insert(reason);
        drop(state);
        self.wake.notify_one();
    }

    /// Leaves the group at once: what is in the consumer's hands comes again, elsewhere.
    pub(crate) fn leave(&self) -> Option<Answer> {
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
        let answer = self.core.write(Change::Leave { member: identity, progress }, move |_| {
            if let Some(core) = core.upgrade() {
                core.regrouped(group, &owner);
            }
        });
        self.work.notify_one();
        Some(answer)
    }

    /// What has to be written of these lanes: everything, or what was settled.
    pub(crate) fn progress(&self, state: &mut State, lanes: &[u32], all: bool) -> Vec<Progress> {
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
                        open: pack(&cursor.open),
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
    pub(crate) fn take(&self, state: &mut State, credits: usize) -> Vec<Delivery> {
        let (taken, parked) = state.share.take(credits, Instant::now());
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
    pub(crate) fn ask(&self, state: &mut State, credits: usize) {
        state.limit = credits.clamp(READ_MIN, READ_MAX).min(READ_BYTES / state.size).max(1);
        if state.reading || state.share.buffered() >= state.limit {
            return;
        }
        let due = state.share.take_due(self.core.now(), state.limit);
        if !state.unread && due.is_empty() {
            return;
        }
        state.unread = false;
        state.reading = true;
        let wanted = Wanted {
            group: self.identity.group,
            topics: Arc::clone(&self.topics),
            scan: state.share.scan(),
            due,
            limit: state.limit,
        };
        let me = self.me.clone();
        self.core.log.scan(wanted, move |wanted, found| {
            let Some(member) = me.upgrade() else { return };
            match found {
                Ok(found) => member.found(&wanted.scan, found),
                Err(failure) => member.lose(format!("reading messages failed: {failure}")),
            }
        });
    }

    /// What was asked for was read.
    fn found(&self, wanted: &Scan, found: Found) {
        let bytes: usize = found.ready.iter().map(|ready| ready.message.body.len()).sum();
        let mut state = self.state.lock();
        state.reading = false;
        if !found.ready.is_empty() {
            state.size = bytes / found.ready.len() + ENVELOPE_GUESSED;
        }
        for ready in found.due {
            state.share.due(ready);
        }
        for at in found.gone {
            state.share.gone(at);
        }
        for broken in found.due_broken {
            if let Some(lane) = state.share.lane(broken.lane) {
                self.bury_broken(broken, lane.token, true);
            }
        }
        if state.share.fits(wanted) {
            state.unread |= found.more;
            for ready in found.ready {
                state.share.read(ready);
            }
            for broken in found.broken {
                if let Some(token) = state.share.read_broken(broken.lane, broken.at) {
                    self.bury_broken(broken, token, false);
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
}
