//! A message as AMQP knows it: the CloudEvents attributes as headers `cloudEvents_…`, the data as
//! the body.

use std::borrow::Cow;

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{Message, envelope};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// How headers begin that are attributes; the binding also knows `cloudEvents:`.
const PREFIX: &str = "cloudEvents_";
const PREFIX_COLON: &str = "cloudEvents:";
/// Written to disk.
const PERSISTENT: u8 = 2;
/// The headers of a message travel in one frame, which is 128 KiB unless the server says otherwise;
/// what is not an attribute needs some of it.
const HEAD_BYTES_MAX: usize = 100 * 1024;

/// The properties of a message; why they cannot be, if they are too large for a frame.
pub(crate) fn properties(message: &Message) -> Result<BasicProperties, String> {
    let mut headers = FieldTable::default();
    let mut bytes = 0;
    for (name, value) in envelope::attributes(message) {
        bytes += PREFIX.len() + name.len() + value.len() + 6;
        let header = ShortString::try_new([PREFIX, name].concat())
            .map_err(|_| format!("the name of attribute `{name}` is too long"))?;
        headers.insert(header, AMQPValue::LongString(value.into_owned().into()));
    }
    if bytes > HEAD_BYTES_MAX {
        return Err(format!(
            "its attributes take {bytes} bytes; at most {HEAD_BYTES_MAX} fit into a frame"
        ));
    }
    Ok(BasicProperties::default()
        .with_content_type(envelope::CONTENT_TYPE.into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(message.id.to_string().into())
        .with_headers(headers))
}

/// The message of a delivery. `queue` is where it was; `topic` where it went, if it does not say.
pub(crate) fn message(queue: &str, topic: &str, delivery: Delivery) -> Message {
    let Delivery { exchange, routing_key, properties, data, .. } = delivery;
    let topic = if exchange.as_str().is_empty() { topic } else { exchange.as_str() };
    let headers = properties.headers().as_ref();
    let attributes = headers.into_iter().flat_map(|table| table.inner()).filter_map(attribute);
    let mut message = envelope::message(topic, queue, attributes, data.into());
    if envelope::defect(&message).is_some() {
        let place = place(queue, routing_key.as_str(), &properties, &message.body);
        message.id = MessageId::derived(Timestamp::EPOCH, &[topic.as_bytes(), place.as_bytes()]);
    }
    message
}

fn attribute<'a>(
    (name, value): (&'a ShortString, &'a AMQPValue),
) -> Option<(&'a str, Cow<'a, str>)> {
    let name = name.as_str();
    let name = name.strip_prefix(PREFIX).or_else(|| name.strip_prefix(PREFIX_COLON))?;
    Some((name, text(value)?))
}

fn text(value: &AMQPValue) -> Option<Cow<'_, str>> {
    Some(match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()),
        AMQPValue::ShortString(text) => text.as_str().into(),
        AMQPValue::Boolean(value) => value.to_string().into(),
        AMQPValue::ShortShortInt(value) => value.to_string().into(),
        AMQPValue::ShortShortUInt(value) => value.to_string().into(),
        AMQPValue::ShortInt(value) => value.to_string().into(),
        AMQPValue::ShortUInt(value) => value.to_string().into(),
        AMQPValue::LongInt(value) => value.to_string().into(),
        AMQPValue::LongUInt(value) => value.to_string().into(),
        AMQPValue::LongLongInt(value) => value.to_string().into(),
        _ => return None,
    })
}

/// What a message without a readable id is known by, each time that it comes. The server numbers
/// nothing, so it is what is in the message.
fn place(queue: &str, route: &str, properties: &BasicProperties, body: &[u8]) -> String {
    let id = properties.message_id().as_ref().map_or("", ShortString::as_str);
    let correlation = properties.correlation_id().as_ref().map_or("", ShortString::as_str);
    let time = properties.timestamp().unwrap_or_default().to_string();
    let parts = [route.as_bytes(), id.as_bytes(), correlation.as_bytes(), time.as_bytes(), body];
    // FNV-1a, 64 bits, with a mark between the parts.
    let hash = parts
        .into_iter()
        .flat_map(|part| part.iter().chain(&[0xff]))
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("{queue}/{hash:016x}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sent() -> Message {
        Message {
            id: MessageId::new(Timestamp::from_millis(1_700_000_000_000)),
            topic: "shop.orders".into(),
            kind: "shop.orders.v1.OrderPlaced".into(),
            source: "orders".into(),
            key: "bestellung-ä".into(),
            time: Timestamp::from_micros(1_700_000_000_000_001),
            not_before: None,
            attributes: BTreeMap::from([("note".to_owned(), "zwei\nZeilen".to_owned())]),
            body: bytes::Bytes::from_static(b"body"),
        }
    }

    fn delivery(exchange: &str, properties: BasicProperties, body: &[u8]) -> Delivery {
        let mut delivery = Delivery::mock(1, exchange.into(), "0.0.0.0".into(), false, body.into());
        delivery.properties = properties;
        delivery
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let sent = sent();
        let arrived = delivery("shop.orders", properties(&sent).unwrap(), &sent.body);
        assert_eq!(message("billing", "other", arrived), sent);
    }

    #[test]
    fn headers_of_other_senders_are_read() {
        let mut headers = FieldTable::default();
        headers.insert("cloudEvents:retries".into(), AMQPValue::LongInt(7));
        headers.insert("x-other".into(), AMQPValue::Boolean(true));
        let properties = BasicProperties::default().with_headers(headers);
        let got = message("q", "t", delivery("", properties, b"x"));
        assert_eq!(got.attribute("retries"), Some("7"));
        assert_eq!(got.topic, "t");
        assert!(envelope::defect(&got).is_some());
    }

    #[test]
    fn a_foreign_message_has_the_same_id_each_time_and_another_has_another() {
        let foreign = |body: &[u8]| delivery("t", BasicProperties::default(), body);
        let one = message("q", "t", foreign(b"one"));
        assert_eq!(one.id, message("q", "t", foreign(b"one")).id);
        assert_ne!(one.id, message("q", "t", foreign(b"two")).id);
        assert!(envelope::defect(&one).is_some());
    }

    #[test]
    fn attributes_that_fit_no_frame_are_refused() {
        let mut large = sent();
        large.attributes.insert("note".to_owned(), "x".repeat(HEAD_BYTES_MAX));
        assert!(properties(&large).unwrap_err().contains("frame"));
        let mut long = sent();
        long.attributes.insert("n".repeat(250), String::new());
        assert!(properties(&long).unwrap_err().contains("too long"));
    }
}
