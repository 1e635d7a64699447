//! What a member has of its group: the queues it reads, and what of them is not settled.
//!
//! Everything here is done under one short lock, without waiting: deliveries are taken from the
//! client library's buffers when they are asked for, and settlements are put in line at once. How
//! much may lie in those buffers the server is told with each consumer (prefetch).
//!
//! What an ordered group releases is not sent back to the server, which would put it behind what
//! others hold: it stays with this member, unacknowledged, and is handed out again before anything
//! later. When the member gives a lane up, the whole channel is closed, and the server takes all of
//! it back, in order, before the next member gets anything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use antiphon_messaging::{Delivery, Fetched, Message};
use futures_util::StreamExt;
use lapin::message::Delivery as Arrived;
use lapin::{Channel, Consumer};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::envelope;

/// Tokens are the number of a queue's incarnation and the server's tag.
const TAG_BITS: u32 = 40;

/// Why a member is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The connection, a channel or a queue is gone.
    Lost(String),
    /// It has left.
    Left,
}

/// One queue that is read, on a channel of its own.
pub(crate) struct Taken {
    pub(crate) serial: u64,
    pub(crate) lane: u32,
    pub(crate) queue: String,
    pub(crate) channel: Channel,
    pub(crate) consumers: Vec<Consumer>,
    /// Taken out of the consumers' buffers, to be counted, before anybody asked for it.
    buffer: VecDeque<Arrived>,
    /// How many unsettled deliveries the server lets the consumers have.
    pub(crate) capacity: usize,
    /// Grows when the consumers are replaced: what earlier ones got does not count as theirs.
    pub(crate) generation: u64,
    pub(crate) open: BTreeMap<u64, Item>,
    /// Those of `open` that were released and are handed out again.
    pub(crate) again: BTreeSet<u64>,
    /// It is given up when nothing is held of it, or at this moment.
    pub(crate) revoked_until: Option<Instant>,
    /// How many deliveries there were.
    pub(crate) delivered: u64,
}

/// A delivery that is not settled.
pub(crate) struct Item {
    pub(crate) generation: u64,
    /// Kept for handing it out again, in ordered groups.
    message: Option<Arc<Message>>,
}

/// See the module.
pub(crate) struct State {
    pub(crate) queues: Vec<Taken>,
    /// How many unsettled deliveries the reader wants to be able to have.
    pub(crate) wanted: usize,
    /// Whether somebody waits for deliveries; else since when nobody does.
    pub(crate) idle_since: Option<Instant>,
    /// Lanes that the reader is to be told of.
    pub(crate) revoked: VecDeque<(Vec<u32>, oneshot::Sender<()>)>,
    pub(crate) closing: bool,
    pub(crate) end: Option<End>,
    waker: Option<Waker>,
    /// Where the next fetch begins to look.
    turn: usize,
}

/// What the reader, the settlements and the task of a member share.
pub(crate) struct Held {
    state: Mutex<State>,
    /// The task has something to look at.
    pub(crate) changed: Notify,
    pub(crate) group: String,
    pub(crate) ordered: bool,
    /// The topic of what does not say where it was published.
    topic: String,
}

impl Taken {
    pub(crate) fn new(serial: u64, lane: u32, queue: String, channel: Channel) -> Self {
        Self {
            serial,
            lane,
            queue,
            channel,
            consumers: Vec::new(),
            buffer: VecDeque::new(),
            capacity: 0,
            generation: 0,
            open: BTreeMap::new(),
            again: BTreeSet::new(),
            revoked_until: None,
            delivered: 0,
        }
    }

    /// How many deliveries are in the reader's hands.
    pub(crate) fn held(&self) -> usize {
        self.open.len() - self.again.len()
    }

    /// How many of them the present consumers got.
    fn held_of_consumers(&self) -> usize {
        let current = self.generation;
        // They are the last ones.
        self.open.values().rev().take_while(|item| item.generation == current).count()
    }

    /// The consumers, to be ended, and the tags of what they got and nobody has asked for. What was
    /// handed out stays held.
    pub(crate) fn take_consumers(&mut self) -> (Vec<Consumer>, Vec<u64>) {
        self.generation += 1;
        self.capacity = 0;
        let tags = self.buffer.drain(..).map(|arrived| arrived.delivery_tag).collect();
        (std::mem::take(&mut self.consumers), tags)
    }

    /// The next delivery that nobody has asked for yet; why there will be none.
    fn poll_arrived(&mut self, context: &mut Context<'_>) -> Poll<Result<Arrived, String>> {
        if let Some(arrived) = self.buffer.pop_front() {
            return Poll::Ready(Ok(arrived));
        }
        for consumer in &mut self.consumers {
            match consumer.poll_next_unpin(context) {
                Poll::Pending => {}
                Poll::Ready(Some(Ok(arrived))) => return Poll::Ready(Ok(arrived)),
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(format!("queue {}: {error}", self.queue)));
                }
                Poll::Ready(None) => {
                    return Poll::Ready(Err(format!(
                        "the server cancelled the consumer of queue {}: was it deleted?",
                        self.queue
                    )));
                }
            }
        }
        Poll::Pending
    }

    /// Counts what is not settled, whoever has it: the reader, or nobody yet.
    fn count_unsettled(&mut self) -> Result<usize, String> {
        let mut arrived = std::mem::take(&mut self.buffer);
        let mut context = Context::from_waker(Waker::noop());
        let counted = loop {
            match self.poll_arrived(&mut context) {
                Poll::Ready(Ok(next)) => arrived.push_back(next),
                Poll::Ready(Err(reason)) => break Err(reason),
                Poll::Pending => break Ok(self.open.len() + arrived.len()),
            }
        };
        self.buffer = arrived;
        counted
    }
}

impl State {
    /// Lets the reader look again.
    pub(crate) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(crate) fn end(&mut self, end: End) {
        if self.end.is_none() {
            self.end = Some(end);
            self.wake();
        }
    }

    pub(crate) fn held(&self) -> usize {
        self.queues.iter().map(Taken::held).sum()
    }
}

impl Held {
    pub(crate) fn new(group: String, ordered: bool, topic: String) -> Self {
        let state = State {
            queues: Vec::new(),
            wanted: 0,
            idle_since: Some(Instant::now()),
            revoked: VecDeque::new(),
            closing: false,
            end: None,
            waker: None,
            turn: 0,
        };
        Self { state: Mutex::new(state), changed: Notify::new(), group, ordered, topic }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// How many messages this member has that are not settled.
    pub(crate) fn unsettled(&self) -> usize {
        let mut state = self.lock();
        let counts: Result<Vec<usize>, String> =
            state.queues.iter_mut().map(Taken::count_unsettled).collect();
        // The reader must look for itself again: its place in the queues' wakers was taken.
        state.wake();
        match counts {
            Ok(counts) => counts.into_iter().sum(),
            Err(reason) => {
                state.end(End::Lost(reason));
                0
            }
        }
    }

    /// Hands out what is there, at most `credits`.
    pub(crate) fn poll_fetch(
        self: &Arc<Self>,
        credits: usize,
        context: &mut Context<'_>,
    ) -> Poll<Fetched> {
        let mut state = self.lock();
        if let Some(end) = &state.end {
            let reason = match end {
                End::Lost(reason) => reason.clone(),
                End::Left => "the group was left".to_owned(),
            };
            return Poll::Ready(Fetched::Lost(reason));
        }
        if let Some((lanes, done)) = state.revoked.pop_front() {
            return Poll::Ready(Fetched::Revoked { lanes, done });
        }
        if credits > 0 {
            match self.take(&mut state, credits, context) {
                Ok(deliveries) if deliveries.is_empty() => self.want(&mut state, credits),
                Ok(deliveries) => return Poll::Ready(Fetched::Deliveries(deliveries)),
                Err(reason) => {
                    state.end = Some(End::Lost(reason.clone()));
                    self.changed.notify_one();
                    return Poll::Ready(Fetched::Lost(reason));
                }
            }
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Asks for consumers that may have as much as the reader wants.
    fn want(&self, state: &mut State, credits: usize) {
        let (needed, short) = if self.ordered {
            (credits, credits > state.wanted)
        } else {
            let held = state.queues.first().map_or(0, Taken::held_of_consumers);
            let capacity = state.queues.first().map_or(0, |taken| taken.capacity);
            (held + credits, held + credits > capacity)
        };
        state.wanted = state.wanted.max(needed);
        if short {
            self.changed.notify_one();
        }
    }

    fn take(
        self: &Arc<Self>,
        state: &mut State,
        credits: usize,
        context: &mut Context<'_>,
    ) -> Result<Vec<Delivery>, String> {
        let mut deliveries = Vec::new();
        let count = state.queues.len();
        state.turn = state.turn.wrapping_add(1);
        let turn = state.turn;
        for n in 0..count {
            let taken = &mut state.queues[(turn + n) % count];
            if taken.revoked_until.is_some() {
                continue;
            }
            self.take_again(taken, credits, &mut deliveries);
            // With what was released first, since it is earlier.
            if taken.again.is_empty() {
                self.take_new(taken, credits, &mut deliveries, context)?;
            }
        }
        Ok(deliveries)
    }

    fn take_again(
        self: &Arc<Self>,
        taken: &mut Taken,
        credits: usize,
        deliveries: &mut Vec<Delivery>,
    ) {
        while deliveries.len() < credits {
            let Some(tag) = taken.again.pop_first() else { return };
            let message = taken.open.get(&tag).and_then(|item| item.message.clone());
            if let Some(message) = message {
                deliveries.push(self.delivery(message, taken, tag));
            }
        }
    }

    fn take_new(
        self: &Arc<Self>,
        taken: &mut Taken,
        credits: usize,
        deliveries: &mut Vec<Delivery>,
        context: &mut Context<'_>,
    ) -> Result<(), String> {
        while deliveries.len() < credits {
            let arrived = match taken.poll_arrived(context) {
                Poll::Pending => break,
                Poll::Ready(arrived) => arrived?,
            };
            let tag = arrived.delivery_tag;
            let message = Arc::new(envelope::message(&taken.queue, &self.topic, arrived));
            let kept = self.ordered.then(|| Arc::clone(&message));
            taken.open.insert(tag, Item { generation: taken.generation, message: kept });
            taken.delivered += 1;
            deliveries.push(self.delivery(message, taken, tag));
        }
        Ok(())
    }

    /// The server counts how often a message came back, for whatever reason, and forgets what the
    /// engine counts: so every delivery is a first attempt.
    fn delivery(self: &Arc<Self>, message: Arc<Message>, taken: &Taken, tag: u64) -> Delivery {
        let settle: Arc<Self> = Arc::clone(self);
        Delivery::new(message, 1, taken.lane, token(taken.serial, tag), settle)
    }
}

fn token(serial: u64, tag: u64) -> u64 {
    (serial << TAG_BITS) | (tag & ((1 << TAG_BITS) - 1))
}

/// The number of the queue's incarnation, and the server's tag.
pub(crate) fn split(token: u64) -> (u64, u64) {
    (token >> TAG_BITS, token & ((1 << TAG_BITS) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_it_was_made_of() {
        for (serial, tag) in [(0, 1), (7, 1 << 39), (1 << 20, 42)] {
            assert_eq!(split(token(serial, tag)), (serial, tag));
        }
    }
}
