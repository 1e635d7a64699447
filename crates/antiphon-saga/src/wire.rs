//! Commands and replies of sagas as messages: which attributes they carry.

use std::collections::BTreeMap;
use std::str::FromStr;

use antiphon_core::{Carrier, CarrierMut, Context, MessageId, Timestamp};
use antiphon_messaging::{Fail, Message};
use bytes::Bytes;

use crate::SagaId;
use crate::decide::{Op, Outcome};
use crate::port::{Side, StoredReply};

/// The kind of every reply; its body is the participant's reply message.
pub(crate) const REPLY: &str = "antiphon.saga.v1.Reply";

mod name {
    pub(super) const SAGA: &str = "sagaid";
    pub(super) const STEP: &str = "sagastep";
    pub(super) const OP: &str = "sagaop";
    pub(super) const ATTEMPT: &str = "sagatry";
    pub(super) const REPLY_TO: &str = "replyto";
    pub(super) const REASON: &str = "sagareason";
    pub(super) const MESSAGE: &str = "sagamessage";
}

/// The topic that the coordinator of a service reads replies from.
pub(crate) fn reply_topic(service: &str) -> String {
    format!("{service}.saga-replies")
}

impl Op {
    const ALL: [Self; 4] = [Self::Action, Self::Forward, Self::Undo, Self::Query];

    const fn name(self) -> &'static str {
        match self {
            Self::Action => "action",
            Self::Forward => "forward",
            Self::Undo => "undo",
            Self::Query => "query",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.name() == name)
    }

    /// Which side of the barrier it meets.
    pub(crate) const fn side(self) -> Side {
        match self {
            Self::Action | Self::Forward | Self::Query => Side::Action,
            Self::Undo => Side::Undo,
        }
    }
}

/// Which try of which step of which saga a command or a reply is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Coordinates {
    pub(crate) saga: SagaId,
    pub(crate) step: String,
    pub(crate) op: Op,
    pub(crate) attempt: u32,
}

impl Coordinates {
    fn write(&self, attributes: &mut BTreeMap<String, String>) {
        attributes.insert(name::SAGA.into(), self.saga.to_string());
        attributes.insert(name::STEP.into(), self.step.clone());
        attributes.insert(name::OP.into(), self.op.name().into());
        attributes.insert(name::ATTEMPT.into(), self.attempt.to_string());
    }

    /// Reads them from a command or a reply.
    pub(crate) fn read(message: &Message) -> Result<Self, Fail> {
        fn parse<T>(
            message: &Message,
            name: &'static str,
            parse: impl FnOnce(&str) -> Option<T>,
        ) -> Result<T, Fail> {
            message.attribute(name).and_then(parse).ok_or_else(|| {
                let found = message.attribute(name);
                let text = format!("the attribute {name} is not what a saga sends: {found:?}");
                Fail::permanent(text).with_code("decode")
            })
        }
        Ok(Self {
            saga: parse(message, name::SAGA, |text| text.parse().ok())?,
            step: parse(message, name::STEP, |text| Some(text.to_owned()))?,
            op: parse(message, name::OP, Op::from_name)?,
            attempt: parse(message, name::ATTEMPT, |text| text.parse().ok())?,
        })
    }
}

/// Where and about what to answer: kept by a participant that answers later.
///
/// Its text form is one word, for a column of the participant's own table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub(crate) coordinates: Coordinates,
    pub(crate) reply_to: String,
}

impl Ticket {
    /// What a command is about and who wants the answer.
    pub(crate) fn read(message: &Message) -> Result<Self, Fail> {
        let reply_to = message.attribute(name::REPLY_TO).ok_or_else(|| {
            Fail::permanent("the command has no replyto; it was not sent by a saga")
                .with_code("decode")
        })?;
        Ok(Self { coordinates: Coordinates::read(message)?, reply_to: reply_to.to_owned() })
    }

    /// Which saga asked.
    #[must_use]
    pub fn saga(&self) -> SagaId {
        self.coordinates.saga
    }

    /// The reply as a message of `service`, in the current context.
    pub(crate) fn reply(&self, service: &str, now: Timestamp, reply: &StoredReply) -> Message {
        let mut attributes = BTreeMap::new();
        self.coordinates.write(&mut attributes);
        let body = match reply {
            StoredReply::Done(body) => body.clone(),
            StoredReply::Refused { reason, message } => {
                attributes.insert(name::REASON.into(), reason.clone());
                attributes.insert(name::MESSAGE.into(), message.clone());
                Bytes::new()
            }
        };
        let key = self.coordinates.saga.to_string();
        let mut message = Message {
            id: MessageId::new(now),
            topic: self.reply_to.clone(),
            kind: REPLY.to_owned(),
            source: service.to_owned(),
            key,
            time: now,
            not_before: None,
            attributes,
            body,
        };
        inject_current(&mut message);
        message
    }
}

impl std::fmt::Display for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Coordinates { saga, step, op, attempt } = &self.coordinates;
        write!(f, "{saga}/{step}/{}/{attempt}/{}", op.name(), self.reply_to)
    }
}

/// The text is not a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the ticket of a saga's command")]
pub struct InvalidTicket;

impl FromStr for Ticket {
    type Err = InvalidTicket;

    fn from_str(text: &str) -> Result<Self, InvalidTicket> {
        let mut parts = text.splitn(5, '/');
        let mut next = || parts.next().ok_or(InvalidTicket);
        let coordinates = Coordinates {
            saga: next()?.parse().map_err(|_| InvalidTicket)?,
            step: next()?.to_owned(),
            op: Op::from_name(next()?).ok_or(InvalidTicket)?,
            attempt: next()?.parse().map_err(|_| InvalidTicket)?,
        };
        Ok(Self { coordinates, reply_to: next()?.to_owned() })
    }
}

/// A command that is addressed to a participant.
pub(crate) struct Command<'a> {
    pub(crate) coordinates: Coordinates,
    pub(crate) service: &'a str,
    pub(crate) draft: crate::step::Draft,
}

impl Command<'_> {
    /// The command as a message, in the current context. It carries no deadline: the saga goes on
    /// when its caller's time is over.
    pub(crate) fn message(self, now: Timestamp) -> Message {
        let mut attributes = BTreeMap::new();
        self.coordinates.write(&mut attributes);
        attributes.insert(name::REPLY_TO.into(), reply_topic(self.service));
        let mut message = Message {
            id: MessageId::new(now),
            topic: self.draft.topic.to_owned(),
            kind: self.draft.kind.to_owned(),
            source: self.service.to_owned(),
            key: self.draft.key,
            time: now,
            not_before: None,
            attributes,
            body: self.draft.body,
        };
        inject_current(&mut message);
        message
    }
}

/// What a reply says.
pub(crate) fn outcome(reply: &Message) -> Outcome {
    match reply.attribute(name::REASON) {
        None => Outcome::Done,
        Some(reason) => Outcome::Refused {
            reason: reason.to_owned(),
            message: reply.attribute(name::MESSAGE).unwrap_or_default().to_owned(),
        },
    }
}

fn inject_current(message: &mut Message) {
    Context::with_current(|context| match context {
        Some(context) => message.inject(context),
        None => message.inject(&Context::root()),
    });
}

/// The current context, to be kept with a saga. What caused the start, and its idempotency key,
/// are not those of the commands to come.
pub(crate) fn remember_current() -> BTreeMap<String, String> {
    let mut remembered = BTreeMap::new();
    Context::current().inject(&mut Remembered(&mut remembered));
    remembered.retain(|name, _| name != "idempotency-key" && name != "x-causation-id");
    remembered
}

/// The context that was kept with a saga.
pub(crate) fn recall(remembered: &BTreeMap<String, String>) -> Context {
    Context::extract(&Recalled(remembered))
}

struct Recalled<'a>(&'a BTreeMap<String, String>);

impl Carrier for Recalled<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

struct Remembered<'a>(&'a mut BTreeMap<String, String>);

impl CarrierMut for Remembered<'_> {
    fn set(&mut self, name: &'static str, value: String) {
        self.0.insert(name.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        let saga = SagaId::new(Timestamp::from_millis(7), "place-order", "1");
        let coordinates = Coordinates { saga, step: "charge".into(), op: Op::Undo, attempt: 3 };
        Ticket { coordinates, reply_to: "orders/x.saga-replies".into() }
    }

    #[test]
    fn a_ticket_survives_being_written_down() {
        assert_eq!(ticket().to_string().parse(), Ok(ticket()));
        assert_eq!("x/charge/undo/3/y".parse::<Ticket>(), Err(InvalidTicket));
        assert_eq!(
            ticket().to_string().replace("undo", "do").parse::<Ticket>(),
            Err(InvalidTicket)
        );
        assert_eq!("".parse::<Ticket>(), Err(InvalidTicket));
    }

    #[test]
    fn a_reply_tells_what_it_answers_and_how() {
        let refused =
            StoredReply::Refused { reason: "DECLINED".into(), message: "no: \u{e4}".into() };
        let reply = ticket().reply("payments", Timestamp::from_millis(9), &refused);
        assert_eq!(reply.topic, "orders/x.saga-replies");
        assert_eq!(Coordinates::read(&reply).unwrap(), ticket().coordinates);
        assert_eq!(
            outcome(&reply),
            Outcome::Refused { reason: "DECLINED".into(), message: "no: \u{e4}".into() }
        );
        let done = StoredReply::Done(Bytes::from_static(b"x"));
        assert_eq!(outcome(&ticket().reply("p", Timestamp::EPOCH, &done)), Outcome::Done);
    }

    #[test]
    fn a_message_without_coordinates_is_a_dead_letter() {
        let done = StoredReply::Done(Bytes::new());
        let mut reply = ticket().reply("p", Timestamp::EPOCH, &done);
        reply.attributes.insert("sagatry".into(), "many".into());
        let fail = Coordinates::read(&reply).unwrap_err();
        assert_eq!(fail.code(), Some("decode"));
        assert!(fail.describe().contains("sagatry"));
    }
}
