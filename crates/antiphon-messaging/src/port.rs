//! The ports that a broker adapter implements, and their rules. `antiphon-testing` has one test per
//! rule; every adapter runs them all.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{BoxError, BoxFuture};

use crate::Message;

/// How safe a message is once the broker has confirmed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Gone when the broker's process ends.
    Memory,
    /// Survives the process, not the loss of power.
    PageCache,
    /// On disk.
    Disk,
    /// On the disks or in the memories of a majority.
    Quorum,
}

/// What a broker can do; the engine fills the gaps, start-up refuses what cannot be filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// See [`Durability`].
    pub durability: Durability,
    /// Whether messages of one key reach one consumer of the group at a time, in order.
    pub ordered: bool,
    /// The longest [`Settlement::Retry`] that is safe natively; zero for none.
    pub retry_delay_max: Duration,
    /// The longest `not_before` that is safe natively; zero for none.
    pub publish_delay_max: Duration,
    /// Whether [`Settlement::Dead`] is kept by the broker, durably.
    pub dead_letters: bool,
    /// Whether deliveries count their attempts across redeliveries.
    pub counts_attempts: bool,
    /// The largest [`Message::size`] that is taken, in bytes.
    pub message_bytes_max: usize,
}

/// The topics and groups that must exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Topics by name.
    pub topics: Vec<String>,
    /// Groups by name, each with the topics it reads and where it begins.
    pub groups: Vec<Group>,
}

/// One group of a [`Topology`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The name.
    pub name: String,
    /// What it reads.
    pub topics: Vec<String>,
    /// Where a new group begins.
    pub start: Start,
}

/// Where a group begins that did not exist before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the oldest message that the broker still has.
    #[default]
    Earliest,
    /// With what is published from now on.
    Latest,
}

/// A consumer that wants to join a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The group, as declared in a [`Topology`] before.
    pub group: String,
    /// What it reads.
    pub topics: Vec<String>,
    /// Whether messages of one key must come in order.
    pub ordered: bool,
}

/// The broker has the message, as durably as it declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Receipt;

/// What a sender does next depends on this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishErrorKind {
    /// The topic does not exist or nothing is bound to it.
    Unroutable,
    /// Larger than [`Capabilities::message_bytes_max`].
    TooLarge,
    /// The broker refuses this message for good.
    Rejected,
    /// Not allowed.
    Unauthorized,
    /// The broker asks to slow down.
    Overloaded,
    /// The broker cannot be reached, or did not answer in time.
    Disconnected,
}

/// Whether the broker may have the message in spite of the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It does not have it.
    No,
    /// It may; the same message must be sent again with the same id.
    Maybe,
}

/// Why a message was not confirmed.
#[derive(Debug, thiserror::Error)]
#[error("{topic}: {kind:?} ({sent:?} sent)")]
pub struct PublishError {
    /// Where it was to go.
    pub topic: String,
    /// What kind of trouble.
    pub kind: PublishErrorKind,
    /// Whether it may have arrived.
    pub sent: Sent,
    /// The cause.
    pub source: Option<BoxError>,
}

impl PublishError {
    /// Whether this very message will never be taken.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(self.kind, PublishErrorKind::TooLarge | PublishErrorKind::Rejected)
    }
}

/// Why a subscription or a topology was refused.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct SubscribeError {
    /// What was wanted and why it is not possible.
    pub context: String,
    /// Whether waiting may help.
    pub transient: bool,
    /// The cause.
    #[source]
    pub source: Option<BoxError>,
}

/// What carries messages.
///
/// 1. `publish` answers for each message, in the order of the input, when the broker has it as
///    durably as [`Capabilities::durability`] says.
/// 2. An unknown outcome is [`Sent::Maybe`]; only a certain refusal is [`Sent::No`].
/// 3. Messages of one key in one batch, and in batches published one after the other, are
///    delivered in that order to an ordered group.
/// 4. Every group gets every message of its topics; inside a group each message goes to one
///    consumer at a time.
/// 5. Id, kind, source, key, time, attributes and body arrive unchanged.
/// 6. `declare` is idempotent and never loses what a group has not handled.
/// 7. A message above the limit is refused as `TooLarge` and the connection lives on.
/// 8. A message with `not_before` is not delivered earlier (if within `publish_delay_max`).
pub trait Broker: Send + Sync + 'static {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Makes sure that topics and groups exist.
    ///
    /// # Errors
    /// A topic or group exists with other settings, or the broker does not answer.
    fn declare(
        &self,
        topology: &Topology,
    ) -> impl Future<Output = Result<(), SubscribeError>> + Send;

    /// Sends messages and waits for their confirmation.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the outcome unknown ([`Sent::Maybe`]).
    fn publish(
        &self,
        batch: Vec<Message>,
    ) -> impl Future<Output = Vec<Result<Receipt, PublishError>>> + Send;

    /// Joins a group.
    ///
    /// # Errors
    /// The group was not declared, or cannot be read as asked.
    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> impl Future<Output = Result<Box<dyn Source>, SubscribeError>> + Send;
}

/// A member of a group, fetching.
///
/// 1. `fetch(n)` yields at most `n` deliveries, and never before at least one is there.
/// 2. A delivery that is not settled when its `Source` ends or its lease is lost is delivered again.
/// 3. [`Fetched::Revoked`] comes before anybody else gets the messages of the revoked keys, and
///    waits for its `done` for as long as the broker allows.
/// 4. [`Fetched::Lost`] is the end; what was delivered before can no longer be settled
///    ([`Settled::Stale`]).
pub trait Source: Send + 'static {
    /// Waits for deliveries.
    ///
    /// # Cancel safety
    /// Safe: a delivery is either returned or not fetched.
    fn fetch(&mut self, credits: usize) -> BoxFuture<'_, Fetched>;

    /// Stops fetching; what was delivered can still be settled. Leaves the group once all is.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// What a [`Source`] yields.
#[derive(Debug)]
pub enum Fetched {
    /// Messages to handle.
    Deliveries(Vec<Delivery>),
    /// Other consumers take over keys: finish or release what is held of these lanes.
    Revoked {
        /// The lanes, as in [`Delivery::lane`].
        lanes: Vec<u32>,
        /// Dropped when everything of them is settled.
        done: tokio::sync::oneshot::Sender<()>,
    },
    /// The connection is gone; subscribe anew.
    Lost(String),
}

/// How a delivery ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Handled.
    Ack,
    /// Deliver again after this much time; counts as an attempt.
    Retry(Duration),
    /// Deliver again, to whomever; does not count as an attempt.
    Release,
    /// Never deliver again; keep it with the reason.
    Dead(DeadReason),
}

/// Why a message became a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadReason {
    /// A stable word: `attempts`, `permanent`, `decode`, `dedup-horizon`, `expired`.
    pub code: &'static str,
    /// What happened, at most 2 KiB.
    pub error: String,
    /// How many attempts were made.
    pub attempts: u32,
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
pub trait Settle: Send + Sync + 'static {
    /// Settles the delivery with this token. The engine calls it once per token.
    fn settle(&self, token: u64, settlement: Settlement) -> Settling;
}

/// One message handed to one consumer. Settled once, by value; dropping it releases it.
pub struct Delivery {
    /// The message.
    pub message: Message,
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
        message: Message,
        attempt: u32,
        lane: u32,
        token: u64,
        settle: Arc<dyn Settle>,
    ) -> Self {
        Self { message, attempt, lane, token, settle: Some(settle) }
    }

    /// Ends the delivery.
    pub fn settle(mut self, settlement: Settlement) -> Settling {
        match self.settle.take() {
            Some(settle) => settle.settle(self.token, settlement),
            None => Settling::Done(Settled::Stale),
        }
    }
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
