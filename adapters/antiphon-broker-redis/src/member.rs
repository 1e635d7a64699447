//! A member of an ordered group: it owns lanes, and keeps itself what of them is done.
//!
//! It reads the streams without consumer groups, from the lowest place that one of its lanes needs,
//! and leaves out what belongs to others. What is done is written into the lane's record by a script
//! that first looks whether the lane still belongs to the member: whoever lost a lane can write nothing
//! any more, so what it settles has no effect. What was done and not yet written comes again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use antiphon_core::BoxFuture;
use antiphon_messaging::lane_queue::{Frontier, LaneQueue};
use antiphon_messaging::{Delivery, Fetched, LANES, Message, Settle, Settled, Source};
use parking_lot::Mutex;
use redis::Value;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, Sleep, timeout};

use crate::connection::{Link, REQUEST_TIMEOUT};
use crate::names::Names;
use crate::wire::{self, Entry};

mod settle;

/// How long a read waits at the server.
pub(crate) const BLOCK: Duration = Duration::from_millis(200);
/// How many entries are read at a time.
const READ_MAX: usize = 512;
/// How many messages of a lane may be done above the floor before reading stops: all of them are
/// written with each record.
const DONE_MAX: usize = 4_096;

/// How far the owners of a lane are in one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Progress {
    pub(crate) floor: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) done: Vec<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) attempts: BTreeMap<u64, u32>,
}

/// What a member has of one lane in one topic, for as long as it owns it.
struct Share {
    lane: u32,
    topic: usize,
    queue: LaneQueue,
    frontier: Frontier,
    /// Attempts that earlier owners knew of, until the messages are read.
    attempts: BTreeMap<u64, u32>,
    /// The lane goes to somebody else: nothing is handed out any more.
    revoked: bool,
}

/// Who waits for a lane to be written.
pub(crate) type Waiting = Vec<(u32, oneshot::Sender<Settled>)>;

/// How the next fetch begins.
enum Notice {
    Revoked(Vec<u32>, oneshot::Sender<()>),
    Lost(String),
}

/// What to read.
struct Wanted {
    /// What this is right for.
    generation: u64,
    /// By topic, after which place.
    from: Vec<(usize, u64)>,
    /// How many entries.
    count: usize,
}

struct State {
    shares: HashMap<u32, Share>,
    /// The shares, lane by lane and topic by topic.
    of_lane: Vec<Vec<u32>>,
    next_share: u32,
    /// What is in somebody's hands.
    tokens: HashMap<u64, (u32, u64)>,
    next_token: u64,
    /// Grows whenever a lane is taken: what was asked before may leave out what it needs.
    generation: u64,
    turn: u32,
    notices: VecDeque<Notice>,
    dirty: [bool; LANES as usize],
    writing: Waiting,
    closing: bool,
    over: bool,
    /// Until when nobody else can own this member's lanes.
    lease_until: Instant,
    waker: Option<Waker>,
}

/// What the member, its deliveries and its tasks share.
pub(crate) struct Core {
    pub(crate) link: Arc<Link>,
    pub(crate) names: Names,
    pub(crate) topics: Vec<String>,
    read_ahead: usize,
    state: Mutex<State>,
    /// Rung when something shall be written soon, or the end has come.
    pub(crate) bell: Notify,
    /// Rung when there is something to read for, or an end.
    reading: Notify,
    /// Rung when nothing is in anybody's hands any more.
    idle: Notify,
    /// Whether the group is left: others can take the lanes.
    pub(crate) left: watch::Sender<bool>,
}

impl Core {
    pub(crate) fn new(
        link: Arc<Link>,
        names: Names,
        topics: Vec<String>,
        read_ahead: usize,
    ) -> Arc<Self> {
        let state = State {
            shares: HashMap::new(),
            of_lane: (0..LANES).map(|_| Vec::new()).collect(),
            next_share: 0,
            tokens: HashMap::new(),
            next_token: 0,
            generation: 0,
            turn: 0,
            notices: VecDeque::new(),
            dirty: [false; LANES as usize],
            writing: Vec::new(),
            closing: false,
            over: false,
            lease_until: Instant::now(),
            waker: None,
        };
        Arc::new(Self {
            link,
            names,
            topics,
            read_ahead,
            state: Mutex::new(state),
            bell: Notify::new(),
            reading: Notify::new(),
            idle: Notify::new(),
            left: watch::Sender::new(false),
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

    /// For how long the member still owns its lanes for sure.
    pub(crate) fn certain_for(&self, now: Instant) -> Duration {
        self.state.lock().lease_until.saturating_duration_since(now)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().over
    }

    /// Whether no lanes shall be taken any more.
    pub(crate) fn is_closing(&self) -> bool {
        self.state.lock().closing
    }

    /// A lane is owned from now on; `progress` says how far each topic is.
    pub(crate) fn own(&self, lane: u32, progress: Vec<Progress>) {
        let mut state = self.state.lock();
        let mut shares = Vec::with_capacity(progress.len());
        for (topic, progress) in progress.into_iter().enumerate() {
            let id = state.next_share;
            state.next_share += 1;
            let frontier = Frontier::new(progress.floor, progress.done.iter().copied());
            let (queue, attempts) = (LaneQueue::default(), progress.attempts);
            let share = Share { lane, topic, queue, frontier, attempts, revoked: false };
            state.shares.insert(id, share);
            shares.push(id);
        }
        state.of_lane[lane as usize] = shares;
        state.generation += 1;
        drop(state);
        self.reading.notify_one();
    }

    /// Lanes are to be given up: the engine is told, and answers when it has nothing of them any more.
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

    /// The lanes of which something is to be written.
    pub(crate) fn dirty(&self) -> Vec<u32> {
        let state = self.state.lock();
        (0..LANES).filter(|lane| state.dirty[*lane as usize]).collect()
    }

    /// Something of a lane could not be written; it is tried again.
    pub(crate) fn soil(&self, lane: u32) {
        self.state.lock().dirty[lane as usize] = true;
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
                state.tokens.retain(|_, (share, _)| *share != id);
            }
            self.ring_if_idle(&state);
        }
        (progress, now)
    }

    /// The end, for this reason.
    pub(crate) fn lose(&self, why: String) {
        let mut state = self.state.lock();
        if !state.over {
            state.notices.push_back(Notice::Lost(why));
        }
        self.end(&mut state);
    }

    /// Nothing is handed out or settled any more.
    fn end(&self, state: &mut State) {
        state.over = true;
        state.closing = true;
        state.writing.clear();
        state.tokens.clear();
        wake(state);
        self.bell.notify_one();
        self.reading.notify_one();
        self.idle.notify_one();
    }

    // What the reader does.

    /// What to read next, if there is room for it.
    fn wanted(&self) -> Option<Wanted> {
        let state = self.state.lock();
        let mut from: BTreeMap<usize, u64> = BTreeMap::new();
        let mut held = 0;
        for share in state.shares.values() {
            held += share.queue.len();
            if share.frontier.done_above().len() >= DONE_MAX {
                return None;
            }
            if !share.revoked {
                let read = share.frontier.read();
                from.entry(share.topic)
                    .and_modify(|least| *least = read.min(*least))
                    .or_insert(read);
            }
        }
        let room = self.read_ahead.saturating_sub(held).min(READ_MAX);
        if from.is_empty() || room == 0 || state.closing {
            return None;
        }
        Some(Wanted { generation: state.generation, from: from.into_iter().collect(), count: room })
    }

    fn arrived(&self, generation: u64, topic: usize, entries: Vec<Entry>) {
        // Not under the lock: meanwhile others are handed out and settled.
        let read: Vec<(u64, Message, u32)> = entries
            .into_iter()
            .filter_map(|entry| {
                let Some(position) = wire::position(&entry.id) else {
                    tracing::error!(
                        id = entry.id,
                        "an entry whose id is not made by Redis is left out"
                    );
                    return None;
                };
                let (message, lane) = entry.message(&self.topics[topic]);
                Some((position, message, lane))
            })
            .collect();
        let mut state = self.state.lock();
        if state.generation != generation || state.closing {
            return;
        }
        let mut last = 0;
        for (position, message, lane) in read {
            last = position;
            let Some(&id) = state.of_lane[lane as usize].get(topic) else { continue };
            let Some(share) = state.shares.get_mut(&id).filter(|share| !share.revoked) else {
                continue;
            };
            if share.frontier.reading(position) {
                let attempts = share.attempts.remove(&position).unwrap_or(0);
                share.queue.push(position, Arc::new(message), attempts);
            }
        }
        // What lies in between belongs to other lanes.
        let State { shares, dirty, .. } = &mut *state;
        for share in shares.values_mut().filter(|share| share.topic == topic && !share.revoked) {
            share.frontier.pass(last, share.queue.first());
            dirty[share.lane as usize] = true;
        }
        wake(&mut state);
    }

    // What deliveries do.

    fn ring_if_idle(&self, state: &State) {
        if state.closing && state.tokens.is_empty() {
            self.idle.notify_one();
        }
    }

    fn hand_out(self: &Arc<Self>, state: &mut State, credits: usize) -> Vec<Delivery> {
        let now = Instant::now();
        let mut deliveries = Vec::new();
        let State { shares, of_lane, turn, tokens, next_token, .. } = state;
        let mut busy: Vec<u32> = (0..LANES)
            .map(|n| (*turn + n) % LANES)
            .flat_map(|lane| of_lane[lane as usize].iter().copied())
            .collect();
        *turn = (*turn + 1) % LANES;
        while deliveries.len() < credits && !busy.is_empty() {
            busy.retain(|id| {
                if deliveries.len() == credits {
                    return false;
                }
                let Some(share) = shares.get_mut(id).filter(|share| !share.revoked) else {
                    return false;
                };
                share.queue.advance(now);
                let Some(taken) = share.queue.take() else { return false };
                let token = *next_token;
                *next_token += 1;
                tokens.insert(token, (*id, taken.position));
                let attempt = taken.attempts.saturating_add(1);
                let settle = Arc::clone(self) as Arc<dyn Settle>;
                deliveries.push(Delivery::new(taken.message, attempt, share.lane, token, settle));
                true
            });
        }
        deliveries
    }
}

impl State {
    fn progress_of(&self, lane: u32) -> Vec<(usize, Progress)> {
        let shares = self.of_lane[lane as usize].iter();
        let progress = shares.filter_map(|id| {
            let share = self.shares.get(id)?;
            let mut attempts = share.attempts.clone();
            attempts.extend(share.queue.attempted());
            let floor = share.frontier.floor();
            attempts.retain(|position, _| *position > floor);
            let done = share.frontier.done_above().iter().copied().collect();
            Some((share.topic, Progress { floor, done, attempts }))
        });
        progress.collect()
    }
}

fn wake(state: &mut State) {
    if let Some(waker) = state.waker.take() {
        waker.wake();
    }
}

/// Reads ahead for as long as the member lives.
pub(crate) async fn read(core: Arc<Core>, mut connection: MultiplexedConnection) {
    loop {
        if core.is_closing() {
            return;
        }
        let Some(Wanted { generation, from, count }) = core.wanted() else {
            tokio::select! {
                () = core.reading.notified() => continue,
                // Messages that were settled make room; whoever settles many rings seldom.
                () = tokio::time::sleep(BLOCK) => continue,
                _ = core.link.lost() => return,
            }
        };
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(count).arg("BLOCK").arg(BLOCK.as_millis().to_string());
        command.arg("STREAMS");
        for (topic, _) in &from {
            command.arg(core.names.stream(&core.topics[*topic]));
        }
        for (_, from) in &from {
            command.arg(wire::id(*from));
        }
        match command.query_async::<Value>(&mut connection).await {
            Ok(answer) => {
                for (key, entries) in wire::entries(answer) {
                    let of = |(topic, _): &&(usize, u64)| {
                        core.names.stream(&core.topics[*topic]).as_bytes() == key
                    };
                    if let Some((topic, _)) = from.iter().find(of) {
                        core.arrived(generation, *topic, entries);
                    }
                }
            }
            Err(error) => {
                core.link.heed(&error);
                core.lose(format!("reading failed: {error}"));
                return;
            }
        }
    }
}

/// See the module.
pub(crate) struct OrderedSource {
    core: Arc<Core>,
    lost: BoxFuture<'static, String>,
    alarm: std::pin::Pin<Box<Sleep>>,
}

impl OrderedSource {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let link = Arc::clone(&core.link);
        let lost = Box::pin(async move { link.lost().await });
        Self { core, lost, alarm: Box::pin(tokio::time::sleep_until(Instant::now())) }
    }

    fn poll_fetch(&mut self, cx: &mut Context<'_>, credits: usize) -> Poll<Fetched> {
        if let Poll::Ready(why) = self.lost.as_mut().poll(cx) {
            self.core.lose(why);
        }
        let mut state = self.core.state.lock();
        if !state.over && !state.shares.is_empty() && Instant::now() >= state.lease_until {
            state.notices.push_front(Notice::Lost("the lease of its lanes ran out".to_owned()));
            self.core.end(&mut state);
        }
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
        if credits == 0 || state.closing {
            return Poll::Pending;
        }
        let deliveries = self.core.hand_out(&mut state, credits);
        if !deliveries.is_empty() {
            return Poll::Ready(Fetched::Deliveries(deliveries));
        }
        let due = state.shares.values().filter_map(|share| share.queue.next_due()).min();
        if let Some(due) = due {
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
            state.notices.clear();
        }
        self.core.reading.notify_one();
        Box::pin(async move {
            loop {
                let idle = self.core.idle.notified();
                let (empty, over) = {
                    let state = self.core.state.lock();
                    (state.tokens.is_empty(), state.over)
                };
                if empty || over || self.core.link.is_lost() {
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
            let _ = timeout(REQUEST_TIMEOUT, left.wait_for(|left| *left)).await;
        })
    }
}

impl Drop for OrderedSource {
    fn drop(&mut self) {
        let mut state = self.core.state.lock();
        self.core.end(&mut state);
    }
}
