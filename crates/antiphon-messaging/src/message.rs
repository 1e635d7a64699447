//! A message on its way: what CloudEvents 1.0 calls the context attributes, and the data.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_core::{Carrier, CarrierMut, Context, MessageId, Timestamp};
use bytes::Bytes;
use tokio::time::Instant;

/// An event or command on its way.
///
/// The fields are CloudEvents attributes; each broker writes them by the binding of its protocol.
/// The body is protobuf and is encoded once, by the sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `id`: unique for ever; what the inbox remembers.
    pub id: MessageId,
    /// Where it goes. Not a CloudEvents attribute; the broker's address.
    pub topic: String,
    /// `type`: the full name of the protobuf message, `shop.orders.v1.OrderPlaced`.
    pub kind: String,
    /// `source`: the service that sent it.
    pub source: String,
    /// `subject` and `partitionkey`: what it is about. Messages of one key are handled in order.
    /// Empty when there is no key.
    pub key: String,
    /// `time`: when it was made.
    pub time: Timestamp,
    /// `notbefore`: not to be delivered before this moment.
    pub not_before: Option<Timestamp>,
    /// Further attributes by their CloudEvents names (lower-case letters and digits): the context,
    /// saga coordinates.
    pub attributes: BTreeMap<String, String>,
    /// The data: `application/protobuf`.
    pub body: Bytes,
}

/// The attribute that carries the deadline, as Unix milliseconds.
const DEADLINE: &str = "deadline";

impl Message {
    /// The attribute `name`.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    /// How many bytes it takes, attributes included; what size limits are compared with.
    #[must_use]
    pub fn size(&self) -> usize {
        let attributes: usize = self.attributes.iter().map(|(k, v)| k.len() + v.len()).sum();
        16 + self.topic.len()
            + self.kind.len()
            + self.source.len()
            + self.key.len()
            + attributes
            + self.body.len()
    }

    /// Writes the context into the attributes, the deadline not included.
    pub fn inject(&mut self, context: &Context) {
        context.inject(&mut AttributesMut(&mut self.attributes));
        // The key makes one call repeatable; what the call causes has ids of its own.
        self.attributes.remove("idempotencykey");
    }

    /// Writes the context's deadline, as wall-clock time: for questions, whose sender waits.
    pub fn inject_deadline(&mut self, context: &Context, now: Timestamp) {
        if let Some(remaining) = context.remaining() {
            let at = now + remaining;
            self.attributes.insert(DEADLINE.into(), at.as_millis().to_string());
        }
    }

    /// The context of handling this message at `now`: the sender's, caused by this message.
    #[must_use]
    pub fn context(&self, now: Timestamp) -> Context {
        let context =
            Context::extract(&Attributes(&self.attributes)).with_causation_id(&self.id.to_string());
        match self.deadline() {
            Some(at) => context.with_deadline(Instant::now() + at.since(now)),
            None => context,
        }
    }

    /// The sender's deadline.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        self.attribute(DEADLINE)?.parse().ok().map(Timestamp::from_millis)
    }

    /// Makes the message due `after` this much time from `now`.
    #[must_use]
    pub fn delayed(mut self, now: Timestamp, after: Duration) -> Self {
        self.not_before = Some(now + after);
        self
    }
}

/// Header names become attribute names by dropping what CloudEvents does not allow in them.
fn attribute_name(header: &str) -> &str {
    match header {
        "x-correlation-id" => "correlationid",
        "x-causation-id" => "causationid",
        "idempotency-key" => "idempotencykey",
        other => other,
    }
}

struct Attributes<'a>(&'a BTreeMap<String, String>);

impl Carrier for Attributes<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(attribute_name(name)).map(String::as_str)
    }
}

struct AttributesMut<'a>(&'a mut BTreeMap<String, String>);

impl CarrierMut for AttributesMut<'_> {
    fn set(&mut self, name: &'static str, value: String) {
        self.0.insert(attribute_name(name).to_owned(), value);
    }
}
