//! A member of a group that reads in any order: a consumer of the streams' consumer groups.
//!
//! What was read and not acknowledged stays with the consumer at the server. What is given back is
//! noted there with when it is due, and taken by whoever looks first; so is what belongs to members
//! that have shown no sign of life for the time of the lease. Attempts are kept beside, since the
//! server's own counter would count releases as well.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use antiphon_core::BoxFuture;
use antiphon_messaging::{Delivery, Fetched, Settle, Settled, Settlement, Settling, Source};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, timeout};

use crate::broker::RETRY_DELAY_MAX;
use crate::connection::{Link, REQUEST_TIMEOUT};
use crate::names::Names;
use crate::outbox::{Back, Order, Outbox};
use crate::scripts;
use crate::topology::is_gone;
use crate::wire::{self, Entry};

/// How long a read waits at the server. What others give back is looked for in between.
const BLOCK: Duration = Duration::from_millis(100);
/// How many messages are read at a time: while some are handed out, the next are on their way.
const READ_MAX: usize = 256;

struct Out {
    topic: usize,
    id: String,
    /// Attempts before this delivery.
    attempts: u32,
}

/// Made a message of when it is handed out: not by the reader, who has the next ones to read.
struct Ready {
    token: u64,
    topic: usize,
    attempts: u32,
    entry: Entry,
}

struct State {
    ready: VecDeque<Ready>,
    /// Everything that is not settled, whether it was handed out or not.
    out: HashMap<u64, Out>,
    next_token: u64,
    /// How many messages may still be read.
    demand: usize,
    closing: bool,
    over: bool,
    lost: Option<String>,
    /// Until when this member is certainly not given up.
    lease_until: Instant,
    waker: Option<Waker>,
}

/// What the member, its deliveries and its tasks share.
struct Core {
    link: Arc<Link>,
    names: Names,
    group: String,
    member: String,
    topics: Vec<String>,
    lease: Duration,
    state: Mutex<State>,
    orders: mpsc::UnboundedSender<Order>,
    /// Rung when there is something to read for, or an end.
    bell: Notify,
    /// Rung when nothing is out any more.
    idle: Notify,
}

/// See the module.
pub(crate) struct SharedSource {
    core: Arc<Core>,
    lost: BoxFuture<'static, String>,
}

impl SharedSource {
    /// Joins. The groups are there.
    pub(crate) async fn join(
        link: Arc<Link>,
        names: Names,
        group: String,
        topics: Vec<String>,
        lease: Duration,
    ) -> Result<Self, RedisError> {
        let member = uuid::Uuid::now_v7().to_string();
        let (orders, receiver) = mpsc::unbounded_channel();
        let state = State {
            ready: VecDeque::new(),
            out: HashMap::new(),
            next_token: 0,
            demand: 0,
            closing: false,
            over: false,
            lost: None,
            lease_until: Instant::now(),
            waker: None,
        };
        let outbox = Outbox {
            link: Arc::clone(&link),
            names: names.clone(),
            group: group.clone(),
            member: member.clone(),
            topics: topics.clone(),
        };
        let core = Arc::new(Core {
            link: Arc::clone(&link),
            names,
            group,
            member,
            topics,
            lease,
            state: Mutex::new(state),
            orders,
            bell: Notify::new(),
            idle: Notify::new(),
        });
        core.show_life().await?;
        let reader = link.blocking(BLOCK).await?;
        tokio::spawn(outbox.run(receiver));
        tokio::spawn(keep_alive(Arc::clone(&core)));
        tokio::spawn(read(Arc::clone(&core), reader));
        let lost = Box::pin(async move { link.lost().await });
        Ok(Self { core, lost })
    }

    fn poll_fetch(&mut self, cx: &mut Context<'_>, credits: usize) -> Poll<Fetched> {
        if let Poll::Ready(why) = self.lost.as_mut().poll(cx) {
            self.core.lose(why);
        }
        let mut state = self.core.state.lock();
        if state.lost.is_none() && Instant::now() >= state.lease_until {
            drop(state);
            self.core.lose("its lease ran out".to_owned());
            state = self.core.state.lock();
        }
        state.waker = Some(cx.waker().clone());
        if let Some(why) = &state.lost {
            return Poll::Ready(Fetched::Lost(why.clone()));
        }
        let demand = if state.closing { 0 } else { credits.saturating_sub(state.ready.len()) };
        if demand > 0 && state.demand == 0 {
            self.core.bell.notify_one();
        }
        state.demand = demand;
        if credits == 0 || state.ready.is_empty() {
            return Poll::Pending;
        }
        let count = credits.min(state.ready.len());
        let taken: Vec<Ready> = state.ready.drain(..count).collect();
        drop(state);
        let deliveries = taken.into_iter().map(|Ready { token, topic, attempts, entry }| {
            let (message, lane) = entry.message(&self.core.topics[topic]);
            let settle = Arc::clone(&self.core) as Arc<dyn Settle>;
            Delivery::new(Arc::new(message), attempts.saturating_add(1), lane, token, settle)
        });
        let deliveries = deliveries.collect();
        Poll::Ready(Fetched::Deliveries(deliveries))
    }
}

impl Core {
    async fn show_life(&self) -> Result<(), RedisError> {
        let sent = Instant::now();
        let mut call = scripts::ALIVE.prepare_invoke();
        call.key(self.names.members(&self.group));
        for topic in &self.topics {
            call.key(self.names.stream(topic)).key(self.names.back(&self.group, topic));
        }
        call.arg(&self.group).arg(&self.member).arg(millis(self.lease));
        call.invoke_async::<()>(&mut self.link.control()).await?;
        // The server counts from later on; the rest is for clocks that differ.
        self.state.lock().lease_until = sent + self.lease.mul_f64(0.85);
        Ok(())
    }

    /// Takes in what was read; gives it back at once if it came too late.
    fn arrived(&self, topic: usize, entries: Vec<(Entry, u32)>) {
        if entries.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        for (entry, attempts) in entries {
            let id = entry.id.clone();
            if state.closing {
                self.order_back(Out { topic, id, attempts }, Duration::ZERO);
                continue;
            }
            let token = state.next_token;
            state.next_token += 1;
            state.demand = state.demand.saturating_sub(1);
            state.out.insert(token, Out { topic, id, attempts });
            state.ready.push_back(Ready { token, topic, attempts, entry });
        }
        wake(&mut state);
    }

    fn order_back(&self, out: Out, after: Duration) {
        let Out { topic, id, .. } = out;
        let back = Back { topic, id, after, attempts: None, answer: None };
        // Without an outbox there is no connection, and the server finds out by itself.
        let _ = self.orders.send(Order::Back(back));
    }

    fn lose(&self, why: String) {
        let mut state = self.state.lock();
        if state.lost.is_none() {
            state.lost = Some(why);
        }
        drop(state);
        self.end();
    }

    /// Stops reading. What nobody has seen goes back.
    fn stop(&self) {
        let mut state = self.state.lock();
        state.closing = true;
        state.demand = 0;
        while let Some(Ready { token, .. }) = state.ready.pop_front() {
            if let Some(out) = state.out.remove(&token) {
                self.order_back(out, Duration::ZERO);
            }
        }
        self.ring_if_idle(&state);
        drop(state);
        self.bell.notify_one();
    }

    /// Ends everything: what is held goes back, and can no longer be settled.
    fn end(&self) {
        self.stop();
        let mut state = self.state.lock();
        if state.over {
            return;
        }
        state.over = true;
        let mut held: Vec<Out> = state.out.drain().map(|(_, out)| out).collect();
        wake(&mut state);
        drop(state);
        held.sort_by_key(|out| wire::position(&out.id));
        for out in held {
            self.order_back(out, Duration::ZERO);
        }
        let _ = self.orders.send(Order::Leave);
        self.bell.notify_one();
        self.idle.notify_one();
    }

    fn ring_if_idle(&self, state: &State) {
        if state.closing && state.out.is_empty() {
            self.idle.notify_one();
        }
    }

    fn settle_one(&self, state: &mut State, token: u64, settlement: Settlement) -> Settling {
        let stale = Settling::Done(Settled::Stale);
        if state.over || Instant::now() >= state.lease_until {
            return stale;
        }
        let Some(out) = state.out.remove(&token) else { return stale };
        match settlement {
            Settlement::Ack => {
                let Out { topic, id, attempts } = out;
                let _ = self.orders.send(Order::Ack { topic, id, attempted: attempts > 0 });
                Settling::Done(Settled::Sent)
            }
            Settlement::Release => {
                self.order_back(out, Duration::ZERO);
                Settling::Done(Settled::Sent)
            }
            Settlement::Retry { after, attempts } if after <= RETRY_DELAY_MAX => {
                let (answer, given) = oneshot::channel();
                let Out { topic, id, attempts: before } = out;
                let attempts = (attempts > 0).then(|| before.saturating_add(attempts));
                let back = Back { topic, id, after, attempts, answer: Some(answer) };
                let _ = self.orders.send(Order::Back(back));
                Settling::Wait(Box::pin(async move { given.await.unwrap_or(Settled::Stale) }))
            }
            Settlement::Retry { .. } | Settlement::Dead(_) => {
                self.order_back(out, Duration::ZERO);
                stale
            }
        }
    }
}

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

fn wake(state: &mut State) {
    if let Some(waker) = state.waker.take() {
        waker.wake();
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Shows again and again that the member is alive.
async fn keep_alive(core: Arc<Core>) {
    let every = core.lease / 3;
    let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = core.link.lost() => return,
        }
        if core.state.lock().over {
            return;
        }
        match timeout(every, core.show_life()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if is_gone(&error) => {
                core.lose(format!("the group is gone: {error}"));
                return;
            }
            Ok(Err(error)) => core.link.heed(&error),
            Err(_) => {}
        }
        if Instant::now() >= core.state.lock().lease_until {
            core.lose("it could not show in time that it is alive".to_owned());
            return;
        }
    }
}

/// Reads as many messages as are wanted.
async fn read(core: Arc<Core>, mut connection: MultiplexedConnection) {
    let mut reader = Reader { next_back: Instant::now(), turn: 0 };
    loop {
        let demand = {
            let state = core.state.lock();
            if state.closing {
                return;
            }
            state.demand
        };
        if demand == 0 {
            tokio::select! {
                () = core.bell.notified() => continue,
                _ = core.link.lost() => return,
            }
        }
        if let Err(error) = reader.round(&core, &mut connection).await {
            core.link.heed(&error);
            let what = if is_gone(&error) { "the group is gone" } else { "reading failed" };
            core.lose(format!("{what}: {error}"));
            return;
        }
    }
}

struct Reader {
    /// When to look for what was given back.
    next_back: Instant,
    /// Which topic is first.
    turn: usize,
}

impl Reader {
    async fn round(
        &mut self,
        core: &Core,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), RedisError> {
        let now = Instant::now();
        if now >= self.next_back {
            self.next_back = now + BLOCK;
            for topic in 0..core.topics.len() {
                self.take_back(core, topic).await?;
            }
        }
        let demand = core.state.lock().demand.min(READ_MAX);
        let topics = core.topics.len().min(demand);
        if topics == 0 {
            return Ok(());
        }
        let block = self.next_back.saturating_duration_since(Instant::now()).max(MILLISECOND);
        let chosen: Vec<usize> = (0..topics).map(|n| (self.turn + n) % core.topics.len()).collect();
        self.turn = self.turn.wrapping_add(topics) % core.topics.len();
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(&core.group).arg(&core.member);
        command.arg("COUNT").arg(demand / topics).arg("BLOCK").arg(millis(block)).arg("STREAMS");
        for topic in &chosen {
            command.arg(core.names.stream(&core.topics[*topic]));
        }
        for _ in &chosen {
            command.arg(">");
        }
        let answer: Value = command.query_async(connection).await?;
        for (key, entries) in wire::entries(answer) {
            let of = |topic: &&usize| core.names.stream(&core.topics[**topic]).as_bytes() == key;
            let Some(topic) = chosen.iter().find(of) else { continue };
            core.arrived(*topic, entries.into_iter().map(|entry| (entry, 0)).collect());
        }
        Ok(())
    }

    /// Takes what was given back and is due.
    async fn take_back(&mut self, core: &Core, topic: usize) -> Result<(), RedisError> {
        let demand = core.state.lock().demand;
        if demand == 0 {
            return Ok(());
        }
        let name = &core.topics[topic];
        let mut call = scripts::TAKE_BACK.prepare_invoke();
        call.key(core.names.stream(name));
        call.key(core.names.back(&core.group, name));
        call.key(core.names.attempts(&core.group, name));
        call.arg(&core.group).arg(&core.member).arg(demand);
        let answer: Value = call.invoke_async(&mut core.link.control()).await?;
        let Some([Value::Array(taken), Value::Int(next)]) = wire::array::<2>(answer) else {
            return Ok(());
        };
        let entries = taken.into_iter().filter_map(|one| {
            let [entry, attempts] = wire::array::<2>(one)?;
            let attempts: String = redis::from_redis_value(attempts).ok()?;
            Some((Entry::read(entry)?, attempts.parse().unwrap_or(0)))
        });
        core.arrived(topic, entries.collect());
        if let Ok(next) = u64::try_from(next) {
            let due = Instant::now() + Duration::from_millis(next);
            self.next_back = self.next_back.min(due);
        }
        Ok(())
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);

impl Source for SharedSource {
    fn fetch(&mut self, credits: usize) -> BoxFuture<'_, Fetched> {
        Box::pin(std::future::poll_fn(move |cx| self.poll_fetch(cx, credits)))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.core.stop();
        Box::pin(async move {
            loop {
                let idle = self.core.idle.notified();
                let (empty, over) = {
                    let state = self.core.state.lock();
                    (state.out.is_empty(), state.over)
                };
                if empty || over || self.core.link.is_lost() {
                    break;
                }
                tokio::select! {
                    () = idle => {}
                    _ = self.core.link.lost() => {}
                }
            }
            // The last acknowledgements shall be out before anybody ends the process.
            let (answer, flushed) = oneshot::channel();
            let _ = self.core.orders.send(Order::Flush(answer));
            let _ = timeout(REQUEST_TIMEOUT, flushed).await;
        })
    }
}

impl Drop for SharedSource {
    fn drop(&mut self) {
        self.core.end();
    }
}
