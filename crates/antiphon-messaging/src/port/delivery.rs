//! One message in the hands of one consumer, and how that ends.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxFuture;

use super::dead::DeadReason;
use crate::Message;

/// How a delivery ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Handled.
    Ack,
    /// Deliver again, not before `after` has passed.
    Retry {
        /// How long to wait.
        after: Duration,
        /// How many attempts were made with this delivery: the next one's number is higher by as
        /// many. Zero when what failed is not the message's fault.
        attempts: u32,
    },
    /// Deliver again, to whomever; does not count as an attempt.
    Release,
    /// Never deliver again; keep it with the reason.
    Dead(DeadReason),
}

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Settled {
    /// The broker has it.
    Confirmed,
    /// It is on its way; losing it means one more delivery.
    Sent,
    /// Too late: the delivery belongs to somebody else by now, or will come again.
    Stale,
}

/// The answer to a settlement: at once, or when the broker has answered.
#[must_use]
pub enum Settling {
    /// At once.
    Done(Settled),
    /// When the broker has answered.
    Wait(BoxFuture<'static, Settled>),
}

impl Settling {
    /// Waits for the answer.
    pub async fn outcome(self) -> Settled {
        match self {
            Self::Done(settled) => settled,
            Self::Wait(answer) => answer.await,
        }
    }
}

impl fmt::Debug for Settling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(settled) => write!(f, "Done({settled:?})"),
            Self::Wait(_) => f.write_str("Wait"),
        }
    }
}

/// The adapter's end of a delivery.
///
/// 1. `Ack` may answer [`Settled::Sent`]; `Retry` and `Dead` answer only when they are as durable as
///    the broker's messages, since afterwards nothing else remembers them.
/// 2. The order of settlements does not matter, and each is its own: settling one says nothing
///    about the others.
/// 3. A settlement of an epoch that is over is [`Settled::Stale`] and changes nothing.
/// 4. What the broker cannot do (`Retry` beyond `retry_delay_max`, `Dead` without `dead_letters`)
///    is [`Settled::Stale`], and the message comes again.
/// 5. Settling takes effect without the answer being awaited.
pub trait Settle: Send + Sync + 'static {
    /// Settles the delivery with this token. The engine calls it once per token.
    fn settle(&self, token: u64, settlement: Settlement) -> Settling;

    /// Settles several at once, with an answer for each in the order of the input. One by one
    /// unless the adapter can do better.
    fn settle_batch(&self, batch: Vec<(u64, Settlement)>) -> Vec<Settling> {
        batch.into_iter().map(|(token, settlement)| self.settle(token, settlement)).collect()
    }
}

/// One message handed to one consumer. Settled once, by value; dropping it releases it.
pub struct Delivery {
    /// The message.
    pub message: Arc<Message>,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// Which share of the topic it came from; keys do not cross lanes.
    pub lane: u32,
    token: u64,
    settle: Option<Arc<dyn Settle>>,
}

impl Delivery {
    /// For adapters: a delivery that `settle` will be asked about with `token`.
    #[must_use]
    pub fn new(
        message: impl Into<Arc<Message>>,
        attempt: u32,
        lane: u32,
        token: u64,
        settle: Arc<dyn Settle>,
    ) -> Self {
        Self { message: message.into(), attempt, lane, token, settle: Some(settle) }
    }

    /// Ends the delivery.
    pub fn settle(mut self, settlement: Settlement) -> Settling {
        match self.settle.take() {
            Some(settle) => settle.settle(self.token, settlement),
            None => Settling::Done(Settled::Stale),
        }
    }
}

/// Ends many deliveries, with an answer for each in the order of the input. Neighbours that came
/// from one source are settled in one go.
pub fn settle_all(deliveries: Vec<(Delivery, Settlement)>) -> Vec<Settling> {
    let mut answers = Vec::with_capacity(deliveries.len());
    let mut batch: Vec<(u64, Settlement)> = Vec::with_capacity(deliveries.len());
    let mut adapter: Option<Arc<dyn Settle>> = None;
    for (mut delivery, settlement) in deliveries {
        let settle = delivery.settle.take();
        let same = match (&adapter, &settle) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        if !same {
            if let Some(adapter) = adapter.take() {
                answers.extend(adapter.settle_batch(std::mem::take(&mut batch)));
            }
            adapter = settle;
        }
        batch.push((delivery.token, settlement));
    }
    if let Some(adapter) = adapter {
        answers.extend(adapter.settle_batch(batch));
    }
    answers
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(settle) = self.settle.take() {
            // Nobody waits for the answer: an unsettled delivery comes again in any case.
            drop(settle.settle(self.token, Settlement::Release));
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message", &self.message)
            .field("attempt", &self.attempt)
            .field("lane", &self.lane)
            .finish_non_exhaustive()
    }
}
