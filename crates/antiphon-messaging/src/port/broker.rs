//! What carries messages: the port, what it can do, and how it refuses.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxError;

use super::dead::DeadLetters;
use super::inbox::Inbox;
use super::operate::Operate;
use super::source::Source;
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
    /// Whether a message of an ordered group that waits for its retry, or was released, holds back
    /// the later messages of its key (and of no other).
    pub holds_keys: bool,
    /// The longest [`Settlement::Retry`](crate::Settlement::Retry) that is safe natively; zero for
    /// none.
    pub retry_delay_max: Duration,
    /// The longest `not_before` that is safe natively; zero for none.
    pub publish_delay_max: Duration,
    /// Whether [`Settlement::Dead`](crate::Settlement::Dead) is kept by the broker, as durably as
    /// its messages.
    pub dead_letters: bool,
    /// Whether deliveries count their attempts across redeliveries.
    pub counts_attempts: bool,
    /// Whether a group that begins at [`Start::Earliest`] gets what was published before it was
    /// declared. Without it every group begins with what is published from then on, and a message
    /// for a topic that no group reads may be refused as [`PublishErrorKind::Unroutable`], since
    /// nobody would ever get it.
    pub replays: bool,
    /// Whether this process can be answered directly: [`Broker::inbox`] and [`Broker::answer`].
    pub answers: bool,
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
    /// What [`Subscription::ordered`] of its members will be: some brokers keep the messages of an
    /// ordered group in another way, and refuse members that ask for the other.
    pub ordered: bool,
}

/// Where a group begins that did not exist before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the oldest message that the broker still has; see [`Capabilities::replays`].
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
/// 8. A message with `not_before` is not delivered earlier (if within `publish_delay_max`); later
///    messages of its key do not wait for it.
/// 9. With [`Capabilities::holds_keys`], a delivery of an ordered group that is settled by `Retry`
///    or `Release`, or was dropped, comes again before any later message of its key.
/// 10. `publish` slows its caller down or answers `Overloaded`; it never queues without bound.
/// 11. With [`Capabilities::answers`], what `answer` sends to the address of a living [`Inbox`]
///     arrives there; an address whose inbox has ended takes nobody's time. Without it, `inbox` and
///     `answer` are refused.
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

    /// Opens an address of this process for answers.
    ///
    /// # Errors
    /// The broker does not answer, or cannot do this.
    fn inbox(&self) -> impl Future<Output = Result<Box<dyn Inbox>, SubscribeError>> + Send {
        std::future::ready(Err(SubscribeError {
            context: "this broker carries no answers".to_owned(),
            transient: false,
            source: None,
        }))
    }

    /// Sends an answer to the address of an [`Inbox`]. Its topic does not matter. Success says that
    /// the broker has it, not that anybody does.
    ///
    /// # Errors
    /// The broker does not answer, or cannot do this, or the message is too large.
    fn answer(
        &self,
        address: &str,
        message: Message,
    ) -> impl Future<Output = Result<(), PublishError>> + Send {
        let _ = message;
        std::future::ready(Err(PublishError {
            topic: address.to_owned(),
            kind: PublishErrorKind::Rejected,
            sent: Sent::No,
            source: Some("this broker carries no answers".into()),
        }))
    }

    /// The operator's view; `None` for brokers that exist for tests only.
    fn operate(&self) -> Option<Arc<dyn Operate>> {
        None
    }

    /// The dead letters it keeps; `None` without [`Capabilities::dead_letters`].
    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        None
    }
}
