//! The envelope as CloudEvents attributes, for brokers whose protocol has headers.
//!
//! Each adapter writes the names by the binding of its protocol (`ce_id` in Kafka, `ce-id` in NATS,
//! `cloudEvents_id` in AMQP); what they are and how their values are written is the same everywhere
//! and is decided here. `datacontenttype` is always [`CONTENT_TYPE`] and has a place of its own in
//! most protocols, so it is left to the adapter.
//!
//! What comes from a broker may have been written by anybody. A message whose envelope does not
//! read is never dropped and never guessed at: it gets an id that its place in the broker decides,
//! and goes to the dead letters of each group with the reason ([`defect`]).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use antiphon_core::{MessageId, Timestamp};
use bytes::Bytes;

use crate::Message;

/// The `datacontenttype` of every message.
pub const CONTENT_TYPE: &str = "application/protobuf";

/// The attribute under which a broken envelope keeps what is wrong with it.
const DEFECT: &str = "envelopedefect";

/// The attributes that are fields of a [`Message`].
const FIELDS: [&str; 9] = [
    "specversion",
    "id",
    "type",
    "source",
    "time",
    "notbefore",
    "partitionkey",
    "subject",
    "datacontenttype",
];

/// The attributes of `message`, in order, each with its value as text.
pub fn attributes(message: &Message) -> Vec<(&str, Cow<'_, str>)> {
    let mut all: Vec<(&str, Cow<'_, str>)> = Vec::with_capacity(8 + message.attributes.len());
    all.push(("specversion", "1.0".into()));
    all.push(("id", message.id.to_string().into()));
    all.push(("source", message.source.as_str().into()));
    all.push(("type", message.kind.as_str().into()));
    all.push(("time", time_text(message.time).into()));
    if !message.key.is_empty() {
        all.push(("subject", message.key.as_str().into()));
        all.push(("partitionkey", message.key.as_str().into()));
    }
    if let Some(due) = message.not_before {
        all.push(("notbefore", time_text(due).into()));
    }
    all.extend(message.attributes.iter().map(|(name, value)| (name.as_str(), value.into())));
    all
}

/// The message with these attributes. `place` is where the broker keeps it (`orders/3/1742`): what
/// an unreadable message is known by.
pub fn message<'a>(
    topic: &str,
    place: impl fmt::Display,
    attributes: impl IntoIterator<Item = (&'a str, Cow<'a, str>)>,
    body: Bytes,
) -> Message {
    let mut came = Came::default();
    for (name, value) in attributes {
        match came.place(name) {
            Some(place) => *place = Some(value),
            // Only this function may say so.
            None if name == DEFECT => {}
            None => _ = came.others.insert(name.to_owned(), value.into_owned()),
        }
    }
    match came.head() {
        Ok(head) => came.message(topic, head, body),
        Err(defect) => came.broken(topic, &place.to_string(), defect, body),
    }
}

/// What is wrong with the envelope of a message that [`message()`] could not read.
#[must_use]
pub fn defect(message: &Message) -> Option<&str> {
    message.attribute(DEFECT)
}

/// The attributes that came: those that are fields of a [`Message`], and the others. One that came
/// twice counts as it came last.
#[derive(Default)]
struct Came<'a> {
    specversion: Option<Cow<'a, str>>,
    id: Option<Cow<'a, str>>,
    kind: Option<Cow<'a, str>>,
    source: Option<Cow<'a, str>>,
    time: Option<Cow<'a, str>>,
    not_before: Option<Cow<'a, str>>,
    partitionkey: Option<Cow<'a, str>>,
    subject: Option<Cow<'a, str>>,
    datacontenttype: Option<Cow<'a, str>>,
    others: BTreeMap<String, String>,
}

/// What is not text in a message.
struct Head {
    id: MessageId,
    time: Timestamp,
    not_before: Option<Timestamp>,
}

impl<'a> Came<'a> {
    /// Where an attribute that is a field belongs.
    fn place(&mut self, name: &str) -> Option<&mut Option<Cow<'a, str>>> {
        Some(match name {
            "specversion" => &mut self.specversion,
            "id" => &mut self.id,
            "type" => &mut self.kind,
            "source" => &mut self.source,
            "time" => &mut self.time,
            "notbefore" => &mut self.not_before,
            "partitionkey" => &mut self.partitionkey,
            "subject" => &mut self.subject,
            "datacontenttype" => &mut self.datacontenttype,
            _ => return None,
        })
    }

    /// Looks at everything before anything is taken out, so that a broken message keeps all it came
    /// with.
    fn head(&self) -> Result<Head, String> {
        let version = need("specversion", &self.specversion)?;
        if version != "1.0" {
            return Err(format!("its specversion is `{version}`; this program knows 1.0"));
        }
        let id = need("id", &self.id)?.parse().map_err(|_| "its id is not a UUID".to_owned())?;
        need("type", &self.kind)?;
        need("source", &self.source)?;
        let time = parse_time("time", need("time", &self.time)?)?;
        let not_before = self.not_before.as_deref();
        let not_before = not_before.map(|text| parse_time("notbefore", text)).transpose()?;
        Ok(Head { id, time, not_before })
    }

    fn message(self, topic: &str, head: Head, body: Bytes) -> Message {
        let Head { id, time, not_before } = head;
        Message {
            id,
            topic: topic.to_owned(),
            kind: text(self.kind),
            source: text(self.source),
            key: text(self.partitionkey.or(self.subject)),
            time,
            not_before,
            attributes: self.others,
            body,
        }
    }

    /// A message with everything that came, and what is wrong with it.
    fn broken(mut self, topic: &str, place: &str, defect: String, body: Bytes) -> Message {
        let (kind, source) = (text(self.kind.clone()), text(self.source.clone()));
        let key = self.partitionkey.clone().filter(|key| !key.is_empty());
        let key = text(key.or(self.subject.clone()));
        let mut attributes = std::mem::take(&mut self.others);
        for name in FIELDS {
            if let Some(value) = self.place(name).and_then(Option::take) {
                attributes.insert(name.to_owned(), value.into_owned());
            }
        }
        attributes.insert(DEFECT.to_owned(), defect);
        Message {
            id: MessageId::derived(Timestamp::EPOCH, &[topic.as_bytes(), place.as_bytes()]),
            topic: topic.to_owned(),
            kind,
            source,
            key,
            time: Timestamp::EPOCH,
            not_before: None,
            attributes,
            body,
        }
    }
}

fn need<'v>(name: &str, value: &'v Option<Cow<'_, str>>) -> Result<&'v str, String> {
    let value = value.as_deref().filter(|value| !value.is_empty());
    value.ok_or_else(|| format!("it has no attribute `{name}`"))
}

fn text(value: Option<Cow<'_, str>>) -> String {
    value.map(Cow::into_owned).unwrap_or_default()
}

fn time_text(time: Timestamp) -> String {
    humantime::format_rfc3339_micros(time.to_system_time()).to_string()
}

fn parse_time(name: &str, text: &str) -> Result<Timestamp, String> {
    humantime::parse_rfc3339_weak(text)
        .map(Timestamp::from)
        .map_err(|_| format!("its attribute `{name}` is not an RFC 3339 time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> Message {
        Message {
            id: MessageId::new(Timestamp::from_millis(1_700_000_000_000)),
            topic: "shop.orders".into(),
            kind: "shop.orders.v1.OrderPlaced".into(),
            source: "orders".into(),
            key: "bestellung-ä".into(),
            time: Timestamp::from_micros(1_700_000_000_000_001),
            not_before: Some(Timestamp::from_micros(1_700_000_001_000_000)),
            attributes: BTreeMap::from([("traceparent".to_owned(), "00-1-2-01".to_owned())]),
            body: Bytes::from_static(b"body"),
        }
    }

    fn again(attributes: Vec<(&str, Cow<'_, str>)>) -> Message {
        message("shop.orders", "0/1", attributes, Bytes::from_static(b"body"))
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let sent = sent();
        assert_eq!(again(attributes(&sent)), sent);
        let plain = Message { key: String::new(), not_before: None, ..sent };
        assert_eq!(again(attributes(&plain)), plain);
    }

    #[test]
    fn a_missing_or_forged_attribute_makes_a_message_that_says_so() {
        let sent = sent();
        for name in ["id", "type", "source", "time", "specversion"] {
            let mut some = attributes(&sent);
            some.retain(|(known, _)| *known != name);
            let got = again(some);
            assert!(defect(&got).is_some_and(|text| text.contains(name)), "{got:?}");
            assert_eq!(got.body, sent.body);
        }
        let mut forged = attributes(&sent);
        forged.retain(|(known, _)| *known != "id");
        forged.push(("id", "not-a-uuid".into()));
        assert_eq!(defect(&again(forged.clone())), Some("its id is not a UUID"));
        assert_eq!(again(forged.clone()).id, again(forged).id, "the place decides the id");
    }

    #[test]
    fn nobody_else_can_say_that_an_envelope_is_broken() {
        let sent = sent();
        let mut some = attributes(&sent);
        some.push((DEFECT, "made up".into()));
        assert_eq!(defect(&again(some)), None);
    }

    #[test]
    fn a_broken_message_keeps_all_it_came_with() {
        let sent = sent();
        let mut some = attributes(&sent);
        some.retain(|(name, _)| *name != "time");
        let came: Vec<_> =
            some.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let mut kept = again(some).attributes;
        assert!(kept.remove(DEFECT).is_some());
        assert_eq!(kept, came.into_iter().collect());
    }

    #[test]
    fn every_field_has_its_place() {
        let mut came = Came::default();
        assert!(FIELDS.iter().all(|name| came.place(name).is_some()));
        assert!(came.place(DEFECT).is_none());
    }
}
