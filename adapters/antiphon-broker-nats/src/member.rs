//! A member of an ordered group: it owns lanes, reads each from where its last owner stopped, and
//! keeps itself what is done.
//!
//! Nobody else reads a lane that is owned, so the server needs not know about single messages: it
//! sends the stream's messages in order, and what is done is written into the lane's record, together
//! with the ownership, by compare-and-set. A member that lost a lane can write nothing any more, so
//! what it settles has no effect. What was done and not yet written comes again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use antiphon_core::BoxFuture;
use antiphon_messaging::lane_queue::{Frontier, LaneQueue};
use antiphon_messaging::{Delivery, Fetched, LANES, Settle, Settled, Source};
use async_nats::Subscriber;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep};

use crate::connection::{Link, REQUEST_TIMEOUT};
use crate::pull::{self, Pull, Status};
use crate::records::Progress;
use crate::{names, wire};

mod settle;

/// How many positions may be done above the floor before reading stops: all of them are written with
/// each record.
const DONE_MAX: usize = 4_096;
/// A delivery's token: the number of the share above, the sequence below.
const SEQUENCE_BITS: u32 = 44;

/// What a member has of one lane in one topic, for as long as it owns it.
pub(crate) struct Share {
    pub(crate) lane: u32,
    pub(crate) topic: usize,
    queue: LaneQueue,
    frontier: Frontier,
    /// The lane goes to somebody else: nothing is handed out any more.
    revoked: bool,
}

/// A consumer of this member.
pub(crate) struct Reader {
    pub(crate) pull: Pull,
    /// Its name at the server.
    pub(crate) name: String,
    pub(crate) topic: usize,
    /// `None`: all lanes.
    pub(crate) lane: Option<u32>,
    /// The sequence of the consumer's last delivery.
    last: u64,
}

/// Who waits for a lane to be written.
type Waiting = Vec<(u32, oneshot::Sender<Settled>)>;

/// How the next fetch begins.
enum Notice {
    Revoked(Vec<u32>, oneshot::Sender<()>),
    Lost(String),
}

pub(crate) struct State {
    deliveries: Option<Subscriber>,
    readers: HashMap<String, Reader>,
    shares: HashMap<u32, Share>,
    /// Attempts of messages that earlier owners knew of, by share, until the messages are read.
    attempts: HashMap<u32, BTreeMap<u64, u32>>,
    /// The shares, lane by lane and topic by topic.
    of_lane: Vec<Vec<u32>>,
    next_share: u32,
    turn: u32,
    notices: VecDeque<Notice>,
    /// Lanes of which something is done that is not written.
    dirty: [bool; LANES as usize],
    /// Who waits for a lane to be written.
    writing: Waiting,
    closing: bool,
    over: bool,
    /// Until when this member is certain that nobody else owns its lanes.
    lease_until: Instant,
    waker: Option<Waker>,
}

/// What the member, its deliveries and its keeper share.
pub(crate) struct Core {
    pub(crate) link: Arc<Link>,
    pub(crate) topics: Vec<String>,
    pub(crate) inbox: String,
    read_ahead: usize,
    state: Mutex<State>,
    /// Rung when something shall be written soon, a reader is to be made anew, or the end has come.
    pub(crate) bell: Notify,
    /// Rung when nothing is in anybody's hands any more.
    idle: Notify,
    /// Whether the group is left: others can take the lanes.
    pub(crate) left: watch::Sender<bool>,
    me: Weak<Core>,
}

/// What the bell was rung for.
pub(crate) struct Call {
    pub(crate) over: bool,
    /// Somebody waits for a record to be written.
    pub(crate) write: bool,
    /// A consumer is gone or has lost a message.
    pub(crate) reread: bool,
}

impl Core {
    pub(crate) fn new(
        link: Arc<Link>,
        topics: Vec<String>,
        inbox: String,
        deliveries: Subscriber,
        read_ahead: usize,
    ) -> Arc<Self> {
        let state = State {
            deliveries: Some(deliveries),
            readers: HashMap::new(),
            shares: HashMap::new(),
            attempts: HashMap::new(),
            of_lane: (0..LANES).map(|_| Vec::new()).collect(),
            next_share: 0,
            turn: 0,
            notices: VecDeque::new(),
            dirty: [false; LANES as usize],
            writing: Vec::new(),
            closing: false,
            over: false,
            lease_until: Instant::now(),
            waker: None,
        };
        Arc::new_cyclic(|me| Self {
            link,
            topics,
            inbox,
            read_ahead,
            state: Mutex::new(state),
            bell: Notify::new(),
            idle: Notify::new(),
            left: watch::Sender::new(false),
            me: me.clone(),
        })
    }

    // What the keeper does.

    /// Nobody else owns this member's lanes before this moment.
    pub(crate) fn certain_until(&self, until: Instant) {
        self.state.lock().lease_until = until;
    }

    /// Whether this member cannot be certain any more.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.certain_for(now).is_zero()
    }

    /// For how long others believe this member alive for sure.
    pub(crate) fn certain_for(&self, now: Instant) -> Duration {
        self.state.lock().lease_until.saturating_duration_since(now)
    }

    /// What there is to do.
    pub(crate) fn call(&self) -> Call {
        let state = self.state.lock();
        Call {
            over: state.over,
            write: !state.writing.is_empty(),
            reread: state.readers.is_empty() && !state.shares.is_empty() && !state.closing,
        }
    }

    /// A lane is owned from now on; `progress` says how far each topic is.
    pub(crate) fn own(&self, lane: u32, progress: Vec<Progress>) {
        let mut state = self.state.lock();
        let mut shares = Vec::with_capacity(progress.len());
        for (topic, progress) in progress.into_iter().enumerate() {
            let id = state.next_share;
            state.next_share += 1;
            let frontier = Frontier::new(progress.floor, progress.done.iter().copied());
            let share =
                Share { lane, topic, queue: LaneQueue::default(), frontier, revoked: false };
            state.shares.insert(id, share);
            state.attempts.insert(id, progress.attempts);
            shares.push(id);
        }
        state.of_lane[lane as usize] = shares;
    }

    /// A lane is to be given up: the engine is told, and answers when it has nothing of it any more.
    pub(crate) fn revoke(&self, lanes: Vec<u32>) -> oneshot::Receiver<()> {
        let (done, answer) = oneshot::channel();
        let mut state = self.state.lock();
        for share in state.shares.values_mut() {
            share.revoked |= lanes.contains(&share.lane);
        }
        state.notices.push_back(Notice::Revoked(lanes, done));
        wake(&mut state);
        answer
    }

    /// How far a lane is, to be written; what waits for it is told when that is done. A lane that is
    /// not kept is not owned any more from now on: what was delivered of it is stale.
    pub(crate) fn progress(&self, lane: u32, kept: bool) -> (Vec<(usize, Progress)>, Waiting) {
        let mut state = self.state.lock();
        let progress = state.progress_of(lane);
        state.dirty[lane as usize] = false;
        let writing = std::mem::take(&mut state.writing);
        let (now, later) = writing.into_iter().partition(|(of, _)| *of == lane);
        state.writing = later;
        if !kept {
            for id in std::mem::take(&mut state.of_lane[lane as usize]) {
                state.shares.remove(&id);
                state.attempts.remove(&id);
            }
            self.ring_if_idle(&state);
        }
        (progress, now)
    }

    /// Something of a lane could not be written; it is tried again.
    pub(crate) fn soil(&self, lane: u32) {
        self.state.lock().dirty[lane as usize] = true;
    }

    /// The lanes of which something is to be written.
    pub(crate) fn dirty(&self) -> Vec<u32> {
        let state = self.state.lock();
        (0..LANES).filter(|lane| state.dirty[*lane as usize]).collect()
    }

    /// Where reading goes on, by topic and lane. The readers that were are forgotten: what they still
    /// deliver is ignored.
    pub(crate) fn reread(&self) -> (Vec<String>, Vec<Vec<Option<u64>>>) {
        let mut state = self.state.lock();
        let gone = state.readers.drain().map(|(_, reader)| reader.name).collect();
        let mut from = vec![vec![None; LANES as usize]; self.topics.len()];
        for share in state.shares.values().filter(|share| !share.revoked) {
            from[share.topic][share.lane as usize] = Some(share.frontier.read());
        }
        (gone, from)
    }

    /// The consumers that read from now on.
    pub(crate) fn read_with(&self, readers: Vec<Reader>) {
        let mut state = self.state.lock();
        state.readers = readers.into_iter().map(|reader| (reader.name.clone(), reader)).collect();
        wake(&mut state);
    }

    /// The end, for this reason.
    pub(crate) fn lose(&self, why: String) {
        let mut state = self.state.lock();
        if !state.over {
            state.notices.push_back(Notice::Lost(why));
        }
        state.end();
        wake(&mut state);
        drop(state);
        self.idle.notify_one();
        self.bell.notify_one();
    }

    // What deliveries do.

    fn ring_if_idle(&self, state: &State) {
        if state.closing && state.out() == 0 {
            self.idle.notify_one();
        }
    }

    /// Looks at the subscription until there is nothing more, or enough.
    fn take_in(&self, state: &mut State, cx: &mut Context<'_>) -> Result<(), String> {
        loop {
            let Some(deliveries) = &mut state.deliveries else { return Ok(()) };
            match deliveries.poll_next_unpin(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => return Err("the connection is over".to_owned()),
                Poll::Ready(Some(received)) => self.arrived(state, received),
            }
        }
    }

    fn arrived(&self, state: &mut State, received: async_nats::Message) {
        if let Some(status) = pull::status(&received) {
            let of = |reader: &&mut Reader| reader.pull.answers_to(&received.subject);
            let Some(reader) = state.readers.values_mut().find(of) else { return };
            match status {
                Status::Alive => reader.pull.alive(),
                Status::Ended(missing) => reader.pull.ended(missing),
                Status::Gone(why) => {
                    tracing::warn!(why, "a consumer is made anew");
                    self.read_anew(state);
                }
            }
            return;
        }
        let Some(place) = received.reply.as_deref().and_then(wire::place) else { return };
        // Those that are gone may still have something on the way.
        let Some(reader) = state.readers.get_mut(place.consumer) else { return };
        reader.pull.delivered();
        if place.consumer_sequence != reader.last + 1 {
            tracing::warn!("a message was lost on its way; reading goes back");
            self.read_anew(state);
            return;
        }
        reader.last = place.consumer_sequence;
        let (topic, sequence) = (reader.topic, place.stream_sequence);
        let Some(lane) = names::lane(&received.subject) else { return };
        let Some(&id) = state.of_lane[lane as usize].get(topic) else { return };
        let Some(share) = state.shares.get_mut(&id) else { return };
        if share.revoked {
            return;
        }
        if share.frontier.reading(sequence) {
            let attempts = state.attempts.get_mut(&id).and_then(|kept| kept.remove(&sequence));
            let message = Arc::new(wire::message(&self.topics[topic], sequence, received));
            share.queue.push(sequence, message, attempts.unwrap_or(0));
        } else {
            share.frontier.settle(share.queue.first());
        }
    }

    fn read_anew(&self, state: &mut State) {
        state.readers.clear();
        self.bell.notify_one();
    }

    /// Asks for more where there is room.
    fn ask(&self, state: &mut State) {
        let State { readers, shares, .. } = state;
        for reader in readers.values_mut() {
            let covered = shares.values().filter(|share| {
                share.topic == reader.topic && reader.lane.is_none_or(|lane| lane == share.lane)
            });
            let (mut held, mut crowded) = (0, false);
            for share in covered {
                held += share.queue.len();
                crowded |= share.frontier.done_above().len() >= DONE_MAX;
            }
            let bound = match reader.lane {
                Some(_) => self.read_ahead,
                None => self.read_ahead * LANES as usize / 2,
            };
            let room = bound.saturating_sub(held + reader.pull.outstanding());
            if !crowded && room >= (bound / 4).max(1) {
                reader.pull.ask(&self.link.client, room, None);
            }
        }
    }

    fn hand_out(&self, state: &mut State, credits: usize) -> Vec<Delivery> {
        let now = Instant::now();
        let mut deliveries = Vec::new();
        let State { shares, of_lane, turn, .. } = state;
        let Some(me) = self.me.upgrade() else { return deliveries };
        let order: Vec<u32> = (0..LANES)
            .map(|n| (*turn + n) % LANES)
            .flat_map(|lane| of_lane[lane as usize].iter().copied())
            .collect();
        *turn = turn.wrapping_add(1) % LANES;
        let mut busy = order;
        while deliveries.len() < credits && !busy.is_empty() {
            busy.retain(|id| {
                let Some(share) = shares.get_mut(id).filter(|share| !share.revoked) else {
                    return false;
                };
                if deliveries.len() == credits {
                    return false;
                }
                share.queue.advance(now);
                let Some(taken) = share.queue.take() else { return false };
                let token = u64::from(*id) << SEQUENCE_BITS | taken.position;
                let attempt = taken.attempts.saturating_add(1);
                let settle = Arc::clone(&me) as Arc<dyn Settle>;
                let (message, lane) = (taken.message, share.lane);
                deliveries.push(Delivery::new(message, attempt, lane, token, settle));
                true
            });
        }
        deliveries
    }
}

impl State {
    fn out(&self) -> usize {
        self.shares.values().map(|share| share.queue.out()).sum()
    }

    fn progress_of(&self, lane: u32) -> Vec<(usize, Progress)> {
        let shares = self.of_lane[lane as usize].iter();
        let progress = shares.filter_map(|id| {
            let share = self.shares.get(id)?;
            let mut attempts = self.attempts.get(id).cloned().unwrap_or_default();
            attempts.extend(share.queue.attempted());
            let done = share.frontier.done_above().iter().copied().collect();
            let floor = share.frontier.floor();
            Some((share.topic, Progress { stream: 0, floor, done, attempts }))
        });
        progress.collect()
    }

    fn next_due(&self) -> Option<Instant> {
        self.shares.values().filter_map(|share| share.queue.next_due()).min()
    }

    /// Nothing is handed out or settled any more.
    fn end(&mut self) {
        self.over = true;
        self.closing = true;
        self.deliveries = None;
        self.writing.clear();
    }
}

fn wake(state: &mut State) {
    if let Some(waker) = state.waker.take() {
        waker.wake();
    }
}

impl Reader {
    pub(crate) fn new(pull: Pull, name: String, topic: usize, lane: Option<u32>) -> Self {
        Self { pull, name, topic, lane, last: 0 }
    }
}

/// See the module.
pub(crate) struct OrderedSource {
    core: Arc<Core>,
    lost: BoxFuture<'static, String>,
    watchdog: Interval,
    alarm: std::pin::Pin<Box<Sleep>>,
}

impl OrderedSource {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let link = Arc::clone(&core.link);
        let mut watchdog = tokio::time::interval(pull::HEARTBEAT);
        watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let lost = Box::pin(async move { link.lost().await });
        Self { core, lost, watchdog, alarm: Box::pin(tokio::time::sleep_until(Instant::now())) }
    }

    fn poll_fetch(&mut self, cx: &mut Context<'_>, credits: usize) -> Poll<Fetched> {
        if let Poll::Ready(why) = self.lost.as_mut().poll(cx) {
            self.core.lose(why);
        }
        let mut state = self.core.state.lock();
        state.waker = Some(cx.waker().clone());
        match state.notices.pop_front() {
            Some(Notice::Revoked(lanes, done)) => {
                return Poll::Ready(Fetched::Revoked { lanes, done });
            }
            Some(Notice::Lost(why)) => return Poll::Ready(Fetched::Lost(why)),
            None if state.over => {
                return Poll::Ready(Fetched::Lost("the member has left its group".to_owned()));
            }
            None => {}
        }
        let taken = self.core.take_in(&mut state, cx);
        let mut trouble = taken.err();
        while self.watchdog.poll_tick(cx).is_ready() {
            let now = Instant::now();
            if state.readers.values_mut().any(|reader| reader.pull.silent(now).is_some()) {
                tracing::warn!("a consumer is silent; it is made anew");
                self.core.read_anew(&mut state);
            }
        }
        if Instant::now() >= state.lease_until && !state.shares.is_empty() {
            trouble = Some("the lease of its lanes ran out".to_owned());
        }
        if let Some(why) = trouble {
            drop(state);
            self.core.lose(why.clone());
            return Poll::Ready(Fetched::Lost(why));
        }
        self.core.ask(&mut state);
        if credits == 0 {
            return Poll::Pending;
        }
        let deliveries = self.core.hand_out(&mut state, credits);
        if !deliveries.is_empty() {
            return Poll::Ready(Fetched::Deliveries(deliveries));
        }
        if let Some(due) = state.next_due() {
            self.alarm.as_mut().reset(due);
            if self.alarm.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }
}

impl Source for OrderedSource {
    fn fetch(&mut self, credits: usize) -> BoxFuture<'_, Fetched> {
        Box::pin(std::future::poll_fn(move |cx| self.poll_fetch(cx, credits)))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        {
            let mut state = self.core.state.lock();
            state.closing = true;
            state.deliveries = None;
            state.notices.clear();
        }
        Box::pin(async move {
            loop {
                let idle = self.core.idle.notified();
                let (out, over) = {
                    let state = self.core.state.lock();
                    (state.out(), state.over)
                };
                if out == 0 || over || self.core.link.is_lost() {
                    break;
                }
                tokio::select! {
                    () = idle => {}
                    _ = self.core.link.lost() => {}
                }
            }
            let mut left = self.core.left.subscribe();
            // Writes down what is done, and lets others take the lanes.
            drop(self);
            let _ = tokio::time::timeout(REQUEST_TIMEOUT, left.wait_for(|left| *left)).await;
        })
    }
}

impl Drop for OrderedSource {
    fn drop(&mut self) {
        self.core.state.lock().end();
        self.core.bell.notify_one();
    }
}
