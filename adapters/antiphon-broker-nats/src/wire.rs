//! Messages as NATS carries them: CloudEvents attributes as `ce-` headers, percent-encoded as in the
//! HTTP binding; the data is the payload.

use std::borrow::Cow;
use std::fmt;

use antiphon_messaging::{Message, envelope, lane_of};
use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::names;

/// What the CloudEvents HTTP binding encodes: space, double quote, percent, and all that is not
/// printable ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

const PREFIX: &str = "ce-";
/// What of a message the server looks at to recognise it.
const MESSAGE_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");
const CONTENT_TYPE: HeaderName = HeaderName::from_static("content-type");

/// The subject of a message.
pub(crate) fn subject(message: &Message) -> String {
    names::subject(&message.topic, lane_of(&message.key))
}

/// The headers of a message, and how many bytes they take on the wire.
pub(crate) fn headers(message: &Message) -> (HeaderMap, usize) {
    let mut headers = HeaderMap::new();
    // `NATS/1.0`, and the empty line at the end.
    let mut size = 12;
    let mut add = |name: HeaderName, length: usize, value: String| {
        size += length + value.len() + 4;
        headers.insert(name, HeaderValue::from(value));
    };
    add(CONTENT_TYPE, 12, envelope::CONTENT_TYPE.to_owned());
    for (name, value) in envelope::attributes(message) {
        if name == "id" {
            add(MESSAGE_ID, 11, value.to_string());
        }
        let value = match utf8_percent_encode(&value, ENCODED).into() {
            Cow::Borrowed(_) => value.into_owned(),
            Cow::Owned(encoded) => encoded,
        };
        let length = PREFIX.len() + name.len();
        match known(name) {
            Some(known) => add(known, length, value),
            None => {
                let Ok(name) = format!("{PREFIX}{name}").parse() else { continue };
                add(name, length, value);
            }
        }
    }
    (headers, size)
}

/// Names that need no memory of their own.
fn known(name: &str) -> Option<HeaderName> {
    Some(HeaderName::from_static(match name {
        "specversion" => "ce-specversion",
        "id" => "ce-id",
        "source" => "ce-source",
        "type" => "ce-type",
        "time" => "ce-time",
        "subject" => "ce-subject",
        "partitionkey" => "ce-partitionkey",
        "traceparent" => "ce-traceparent",
        "correlationid" => "ce-correlationid",
        "causationid" => "ce-causationid",
        _ => return None,
    }))
}

/// The message that came with these headers. `place` is where the broker keeps it.
pub(crate) fn message(
    topic: &str,
    place: impl fmt::Display,
    received: async_nats::Message,
) -> Message {
    let attributes = received.headers.as_ref().map(attributes).unwrap_or_default();
    envelope::message(topic, place, attributes, received.payload)
}

fn attributes(headers: &HeaderMap) -> Vec<(&str, Cow<'_, str>)> {
    let mut all = Vec::with_capacity(headers.len());
    for (name, values) in headers.iter() {
        let name: &str = name.as_ref();
        let (Some(name), Some(value)) = (name.strip_prefix(PREFIX), values.first()) else {
            continue;
        };
        all.push((name, percent_decode_str(value.as_str()).decode_utf8_lossy()));
    }
    all
}

/// What the reply subject of a delivery says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    pub(crate) consumer: &'a str,
    /// How often it was delivered, this time included.
    pub(crate) delivered: u64,
    /// Its sequence in the stream.
    pub(crate) stream_sequence: u64,
    /// Its sequence among the deliveries of the consumer.
    pub(crate) consumer_sequence: u64,
    /// How many messages come after it.
    pub(crate) pending: u64,
}

/// Reads `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`, in
/// front of which newer servers and domains put `<domain>.<account>`.
pub(crate) fn place(reply: &str) -> Option<Place<'_>> {
    let rest = reply.strip_prefix("$JS.ACK.")?;
    let mut parts: Vec<&str> = rest.split('.').collect();
    match parts.len() {
        7 => {}
        9 | 10 => {
            parts.drain(..2);
        }
        _ => return None,
    }
    let number = |at: usize| parts[at].parse::<u64>().ok();
    Some(Place {
        consumer: parts[1],
        delivered: number(2)?,
        stream_sequence: number(3)?,
        consumer_sequence: number(4)?,
        pending: number(6)?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use antiphon_core::{MessageId, Timestamp};
    use bytes::Bytes;

    use super::*;

    fn sent() -> Message {
        Message {
            id: MessageId::new(Timestamp::from_millis(1_700_000_000_000)),
            topic: "shop.orders".into(),
            kind: "shop.orders.v1.OrderPlaced".into(),
            source: "orders".into(),
            key: "bestellung-ä 7".into(),
            time: Timestamp::from_micros(1_700_000_000_000_001),
            not_before: None,
            attributes: BTreeMap::from([
                ("note".to_owned(), "50 % ☃\r\n\"second\" line ".to_owned()),
                ("empty".to_owned(), String::new()),
            ]),
            body: Bytes::from_static(b"body"),
        }
    }

    fn received(headers: Option<HeaderMap>) -> async_nats::Message {
        async_nats::Message {
            subject: "shop.orders.L1".into(),
            reply: None,
            payload: Bytes::from_static(b"body"),
            headers,
            status: None,
            description: None,
            length: 0,
        }
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let sent = sent();
        let (headers, _) = headers(&sent);
        assert_eq!(message("shop.orders", "0/1", received(Some(headers))), sent);
    }

    #[test]
    fn headers_are_printable_and_their_size_is_known() {
        let (headers, size) = headers(&sent());
        let mut bytes = 12;
        for (name, values) in headers.iter() {
            let (name, value): (&str, &str) = (name.as_ref(), values[0].as_str());
            assert!(value.bytes().all(|byte| byte.is_ascii_graphic()), "{name}: {value}");
            bytes += name.len() + value.len() + 4;
        }
        assert_eq!(size, bytes);
        let text = |name: &str| headers.get(name).map(HeaderValue::as_str);
        assert_eq!(text("ce-subject"), Some("bestellung-%C3%A4%207"));
        assert_eq!(text("Nats-Msg-Id"), text("ce-id"));
    }

    #[test]
    fn a_message_without_headers_says_what_is_wrong() {
        let broken = message("shop.orders", "0/1", received(None));
        assert!(envelope::defect(&broken).is_some());
        assert_eq!(broken.body, "body");
    }

    #[test]
    fn a_place_reads_from_old_and_new_replies() {
        let expected = Place {
            consumer: "c",
            delivered: 2,
            stream_sequence: 30,
            consumer_sequence: 4,
            pending: 5,
        };
        for reply in [
            "$JS.ACK.s.c.2.30.4.1700000000000000000.5",
            "$JS.ACK._.hash.s.c.2.30.4.1700000000000000000.5",
            "$JS.ACK.hub.hash.s.c.2.30.4.1700000000000000000.5.token",
        ] {
            assert_eq!(place(reply), Some(expected), "{reply}");
        }
        for other in ["", "_INBOX.x", "$JS.ACK.s.c.x.30.4.17.5", "$JS.ACK.s.c.2"] {
            assert_eq!(place(other), None, "{other}");
        }
    }
}
