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

use antiphon_core::{MessageId, Timestamp};
use bytes::Bytes;

use crate::Message;

/// The `datacontenttype` of every message.
pub const CONTENT_TYPE: &str = "application/protobuf";

/// The attribute under which a broken envelope keeps what is wrong with it.
const DEFECT: &str = "envelopedefect";

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
    place: &str,
    attributes: impl IntoIterator<Item = (&'a str, Cow<'a, str>)>,
    body: Bytes,
) -> Message {
    let mut all: BTreeMap<String, String> =
        attributes.into_iter().map(|(name, value)| (name.to_owned(), value.into_owned())).collect();
    // Only this function may say so.
    all.remove(DEFECT);
    match read(topic, &mut all, body.clone()) {
        Ok(message) => message,
        Err(defect) => broken(topic, place, all, body, defect),
    }
}

/// What is wrong with the envelope of a message that [`message()`] could not read.
#[must_use]
pub fn defect(message: &Message) -> Option<&str> {
    message.attribute(DEFECT)
}

fn read(topic: &str, all: &mut BTreeMap<String, String>, body: Bytes) -> Result<Message, String> {
    // Looked at before anything is taken out, so that a broken message keeps all it came with.
    let need = |name: &str| {
        let value = all.get(name).filter(|value| !value.is_empty());
        value.cloned().ok_or_else(|| format!("it has no attribute `{name}`"))
    };
    let version = need("specversion")?;
    if version != "1.0" {
        return Err(format!("its specversion is `{version}`; this program knows 1.0"));
    }
    let id: MessageId = need("id")?.parse().map_err(|_| "its id is not a UUID".to_owned())?;
    let kind = need("type")?;
    let source = need("source")?;
    let time = parse_time("time", &need("time")?)?;
    let not_before = all.get("notbefore").map(|text| parse_time("notbefore", text)).transpose()?;
    let key = all.get("partitionkey").or_else(|| all.get("subject")).cloned().unwrap_or_default();
    for known in
        ["specversion", "id", "type", "source", "time", "notbefore", "partitionkey", "subject"]
    {
        all.remove(known);
    }
    all.remove("datacontenttype");
    let (topic, attributes) = (topic.to_owned(), std::mem::take(all));
    Ok(Message { id, topic, kind, source, key, time, not_before, attributes, body })
}

fn broken(
    topic: &str,
    place: &str,
    mut attributes: BTreeMap<String, String>,
    body: Bytes,
    defect: String,
) -> Message {
    let text = |name: &str| attributes.get(name).cloned().unwrap_or_default();
    let (kind, source) = (text("type"), text("source"));
    let key = match text("partitionkey") {
        key if key.is_empty() => text("subject"),
        key => key,
    };
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
}
