//! A member of a group that reads in any order: it shares one durable consumer per topic with the
//! others.
//!
//! The consumer delivers at most what was asked for, so the credits are kept at the server. What is
//! held is kept alive by signs of progress; what is given back is refused there and then. Attempts are
//! written down when a message goes back after some, since the consumer itself would count releases
//! as well; they are looked up when a message comes again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use antiphon_core::{BoxError, BoxFuture};
use antiphon_messaging::{
    Delivery, Fetched, Message, Settle, Settled, Settlement, Settling, Source,
};
use async_nats::{Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::broker::RETRY_DELAY_MAX;
use crate::connection::Link;
use crate::pull::{self, Pull, Status, post};
use crate::{names, records, wire};

const ACK: Bytes = Bytes::from_static(b"+ACK");
const NAK: Bytes = Bytes::from_static(b"-NAK");
const IN_PROGRESS: Bytes = Bytes::from_static(b"+WPI");
/// With fewer credits than topics each topic has its turn for this long.
const TURN: Duration = Duration::from_secs(1);
/// How often in a row a consumer may be silent for too long.
const SILENCES_MAX: u32 = 2;

/// A message that the server has given to this member.
struct Out {
    reply: Subject,
    topic: usize,
    sequence: u64,
    /// Attempts before this delivery.
    attempts: u32,
}

struct Ready {
    token: u64,
    message: Arc<Message>,
}

struct State {
    /// `None` when the member has left.
    deliveries: Option<Subscriber>,
    pulls: Vec<Pull>,
    ready: VecDeque<Ready>,
    /// Everything that is not settled, whether it was handed out or not.
    out: HashMap<u64, Out>,
    /// How many of them wait for their number of attempts to be looked up.
    looking: usize,
    next_token: u64,
    /// Which topic is asked first.
    turn: usize,
    /// Nothing is handed out any more.
    closing: bool,
    /// Nothing can be settled any more.
    over: bool,
    waker: Option<Waker>,
}

/// What the member, its deliveries and its keeper share.
struct Core {
    link: Arc<Link>,
    group: String,
    topics: Vec<String>,
    state: Mutex<State>,
    /// Rung when nothing is out any more.
    idle: Notify,
    me: Weak<Core>,
}

/// See the module.
pub(crate) struct SharedSource {
    core: Arc<Core>,
    lost: BoxFuture<'static, String>,
    watchdog: Interval,
}

impl SharedSource {
    /// Joins. The consumers are there.
    pub(crate) async fn join(
        link: Arc<Link>,
        group: String,
        topics: Vec<String>,
        ack_wait: Duration,
    ) -> Result<Self, BoxError> {
        let inbox = link.client.new_inbox();
        let deliveries = link.client.subscribe(format!("{inbox}.*")).await?;
        let consumer = names::escaped(&group);
        let pulls = topics.iter().enumerate().map(|(index, topic)| {
            Pull::new(&names::escaped(topic), &consumer, format!("{inbox}.{index}"))
        });
        let state = State {
            deliveries: Some(deliveries),
            pulls: pulls.collect(),
            ready: VecDeque::new(),
            out: HashMap::new(),
            looking: 0,
            next_token: 0,
            turn: 0,
            closing: false,
            over: false,
            waker: None,
        };
        let core = Arc::new_cyclic(|me| Core {
            link: Arc::clone(&link),
            group,
            topics,
            state: Mutex::new(state),
            idle: Notify::new(),
            me: me.clone(),
        });
        pull::spawn(keep_alive(Arc::downgrade(&core), ack_wait / 3));
        let lost = Box::pin(async move { link.lost().await });
        let mut watchdog = tokio::time::interval(pull::HEARTBEAT);
        watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { core, lost, watchdog })
    }

    fn poll_fetch(&mut self, cx: &mut Context<'_>, credits: usize) -> Poll<Fetched> {
        if let Poll::Ready(why) = self.lost.as_mut().poll(cx) {
            return Poll::Ready(self.core.lose(why));
        }
        let mut state = self.core.state.lock();
        state.waker = Some(cx.waker().clone());
        if state.over {
            return Poll::Ready(Fetched::Lost("the member has left its group".to_owned()));
        }
        let taken = if credits > 0 { self.core.take_in(&mut state, cx, credits) } else { Ok(()) };
        if let Err(why) = taken {
            drop(state);
            return Poll::Ready(self.core.lose(why));
        }
        // What arrived is looked at first: only then silence is silence.
        while self.watchdog.poll_tick(cx).is_ready() {
            let now = Instant::now();
            for (pull, topic) in state.pulls.iter_mut().zip(&self.core.topics) {
                if pull.silent(now).is_some_and(|silences| silences >= SILENCES_MAX) {
                    let why = format!("the consumer of topic {topic} is silent");
                    drop(state);
                    return Poll::Ready(self.core.lose(why));
                }
            }
        }
        self.core.ask(&mut state, credits);
        if credits == 0 || state.ready.is_empty() {
            return Poll::Pending;
        }
        let count = credits.min(state.ready.len());
        let mut deliveries = Vec::with_capacity(count);
        while deliveries.len() < count
            && let Some(Ready { token, message }) = state.ready.pop_front()
        {
            let attempt = state.out.get(&token).map_or(0, |out| out.attempts).saturating_add(1);
            let lane = antiphon_messaging::lane_of(&message.key);
            let settle = Arc::clone(&self.core) as Arc<dyn Settle>;
            deliveries.push(Delivery::new(message, attempt, lane, token, settle));
        }
        Poll::Ready(Fetched::Deliveries(deliveries))
    }
}

impl Core {
    /// Takes in what has arrived, until there is enough to hand out.
    fn take_in(&self, state: &mut State, cx: &mut Context<'_>, count: usize) -> Result<(), String> {
        while state.ready.len() < count {
            let Some(deliveries) = &mut state.deliveries else { return Ok(()) };
            match deliveries.poll_next_unpin(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => return Err("the connection is over".to_owned()),
                Poll::Ready(Some(received)) => self.arrived(state, received)?,
            }
        }
        Ok(())
    }

    fn arrived(&self, state: &mut State, received: async_nats::Message) -> Result<(), String> {
        if let Some(status) = pull::status(&received) {
            let index = received.subject.rsplit_once('.').and_then(|(_, n)| n.parse().ok());
            let Some(pull) = index.and_then(|index: usize| state.pulls.get_mut(index)) else {
                return Ok(());
            };
            match status {
                Status::Alive => pull.alive(),
                Status::Ended(missing) => {
                    pull.ended(missing);
                    state.turn = state.turn.wrapping_add(1);
                }
                Status::Gone(why) => return Err(why),
            }
            return Ok(());
        }
        let Some(reply) = received.reply.clone() else { return Ok(()) };
        let Some(place) = wire::place(&reply) else { return Ok(()) };
        let topic = received.subject.rsplit_once('.').map_or("", |(topic, _)| topic);
        let Some(index) = self.topics.iter().position(|known| known == topic) else {
            return Ok(());
        };
        state.pulls[index].delivered();
        let (sequence, delivered) = (place.stream_sequence, place.delivered);
        let token = state.next_token;
        state.next_token += 1;
        state.out.insert(token, Out { reply, topic: index, sequence, attempts: 0 });
        let message = Arc::new(wire::message(&self.topics[index], sequence, received));
        if delivered > 1 {
            self.look_up(state, token, message);
        } else {
            state.ready.push_back(Ready { token, message });
        }
        Ok(())
    }

    /// A message comes again: how many attempts were there?
    fn look_up(&self, state: &mut State, token: u64, message: Arc<Message>) {
        let Some(out) = state.out.get(&token) else { return };
        let key = records::attempts_key(&self.group, &self.topics[out.topic], out.sequence);
        state.looking += 1;
        let (core, link) = (self.me.clone(), Arc::clone(&self.link));
        pull::spawn(async move {
            let attempts = records::read::<u32>(&link.live, key).await;
            let Some(core) = core.upgrade() else { return };
            let mut state = core.state.lock();
            state.looking = state.looking.saturating_sub(1);
            let closing = state.closing;
            let Some(out) = state.out.get_mut(&token) else { return };
            match attempts {
                Ok(attempts) if !closing => {
                    out.attempts = attempts.map_or(0, |(attempts, _)| attempts);
                    state.ready.push_back(Ready { token, message });
                }
                // Without the number it may be one attempt too many; it comes again.
                _ => core.give_back(&mut state, token),
            }
            wake(&mut state);
        });
    }

    /// Asks for as many messages as there are credits for, in few requests.
    fn ask(&self, state: &mut State, credits: usize) {
        if credits == 0 || state.closing {
            return;
        }
        let count = state.pulls.len();
        let outstanding: usize = state.pulls.iter().map(Pull::outstanding).sum();
        let held = outstanding + state.looking + state.ready.len();
        let mut free = credits.saturating_sub(held);
        let share = (credits / count.max(1)).max(1);
        let expires = (credits < count).then_some(TURN);
        for n in 0..count {
            let index = (state.turn.wrapping_add(n)) % count;
            let pull = &mut state.pulls[index];
            let want = share.saturating_sub(pull.outstanding()).min(free);
            let worthwhile = pull.outstanding() == 0 || want >= share.div_ceil(4);
            if want > 0 && worthwhile {
                pull.ask(&self.link.client, want, expires);
                free -= want;
            }
        }
    }

    fn give_back(&self, state: &mut State, token: u64) {
        if let Some(out) = state.out.remove(&token) {
            post(&self.link.client, &out.reply, None, NAK);
            self.ring_if_idle(state);
        }
    }

    fn ring_if_idle(&self, state: &State) {
        if state.closing && state.out.is_empty() {
            self.idle.notify_one();
        }
    }

    /// The end, for this reason.
    fn lose(&self, why: String) -> Fetched {
        self.leave(false);
        Fetched::Lost(why)
    }

    /// Stops asking. What the server has sent and nobody has seen goes back.
    fn stop(&self) {
        let mut state = self.state.lock();
        state.closing = true;
        while let Some(Ready { token, .. }) = state.ready.pop_front() {
            self.give_back(&mut state, token);
        }
        let Some(deliveries) = state.deliveries.take() else { return };
        let client = self.link.client.clone();
        pull::spawn(give_back_rest(client, deliveries));
        self.ring_if_idle(&state);
    }

    /// Ends everything. `orderly`: what is held goes back at once.
    fn leave(&self, orderly: bool) {
        self.stop();
        let mut state = self.state.lock();
        state.over = true;
        let mut held: Vec<Out> = state.out.drain().map(|(_, out)| out).collect();
        wake(&mut state);
        drop(state);
        if orderly && !self.link.is_lost() {
            // What comes again comes in order, as far as possible.
            held.sort_by_key(|out| out.sequence);
            for out in held {
                post(&self.link.client, &out.reply, None, NAK);
            }
        }
        self.idle.notify_one();
    }

    fn retry(&self, out: Out, after: Duration, attempts: u32) -> Settling {
        let client = self.link.client.clone();
        let refuse = delayed(after);
        if attempts == 0 {
            post(&client, &out.reply, None, refuse);
            return Settling::Done(Settled::Sent);
        }
        let key = records::attempts_key(&self.group, &self.topics[out.topic], out.sequence);
        let total = out.attempts.saturating_add(attempts);
        let live = self.link.live.clone();
        let (answered, answer) = tokio::sync::oneshot::channel();
        pull::spawn(async move {
            let written = live.put(key, total.to_string().into()).await;
            // In any case it comes again.
            post(&client, &out.reply, None, refuse);
            let _ =
                answered.send(if written.is_ok() { Settled::Confirmed } else { Settled::Stale });
        });
        Settling::Wait(Box::pin(async move { answer.await.unwrap_or(Settled::Stale) }))
    }
}

impl Settle for Core {
    fn settle(&self, token: u64, settlement: Settlement) -> Settling {
        let mut state = self.state.lock();
        let out = if state.over { None } else { state.out.remove(&token) };
        let Some(out) = out else { return Settling::Done(Settled::Stale) };
        self.ring_if_idle(&state);
        drop(state);
        let (answer, settled) = match settlement {
            Settlement::Ack => (ACK, Settled::Sent),
            Settlement::Release => (NAK, Settled::Sent),
            Settlement::Retry { after, attempts } if after <= RETRY_DELAY_MAX => {
                return self.retry(out, after, attempts);
            }
            Settlement::Retry { .. } | Settlement::Dead(_) => (NAK, Settled::Stale),
        };
        post(&self.link.client, &out.reply, None, answer);
        Settling::Done(settled)
    }
}

/// The refusal that makes the server wait.
fn delayed(after: Duration) -> Bytes {
    if after.is_zero() {
        return NAK;
    }
    format!(r#"-NAK {{"delay":{}}}"#, after.as_nanos()).into()
}

fn wake(state: &mut State) {
    if let Some(waker) = state.waker.take() {
        waker.wake();
    }
}

/// Ends a subscription, and refuses what was on its way.
async fn give_back_rest(client: async_nats::Client, mut deliveries: Subscriber) {
    if deliveries.drain().await.is_err() {
        return;
    }
    while let Some(received) = deliveries.next().await {
        if let Some(reply) = received.reply.filter(|reply| wire::place(reply).is_some()) {
            post(&client, &reply, None, NAK);
        }
    }
}

/// Tells the server again and again that what is held is still wanted.
async fn keep_alive(core: Weak<Core>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(core) = core.upgrade() else { return };
        let mut state = core.state.lock();
        if state.over {
            return;
        }
        // What has arrived and was not looked at ages as well.
        let mut cx = Context::from_waker(Waker::noop());
        if core.take_in(&mut state, &mut cx, usize::MAX).is_err() {
            wake(&mut state);
            return;
        }
        for out in state.out.values() {
            post(&core.link.client, &out.reply, None, IN_PROGRESS);
        }
        // The subscription has forgotten whom to wake.
        wake(&mut state);
    }
}

impl Source for SharedSource {
    fn fetch(&mut self, credits: usize) -> BoxFuture<'_, Fetched> {
        Box::pin(std::future::poll_fn(move |cx| self.poll_fetch(cx, credits)))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.core.stop();
        Box::pin(async move {
            loop {
                let idle = self.core.idle.notified();
                if self.core.state.lock().out.is_empty() || self.core.link.is_lost() {
                    break;
                }
                tokio::select! {
                    () = idle => {}
                    _ = self.core.link.lost() => {}
                }
            }
            // The last acknowledgements shall be out before anybody ends the process.
            let _ = self.core.link.client.flush().await;
        })
    }
}

impl Drop for SharedSource {
    fn drop(&mut self) {
        self.core.leave(true);
    }
}
