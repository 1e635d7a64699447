//! A message as an MQTT packet, by the CloudEvents binding of MQTT 5, binary mode: each attribute is
//! a user property of its name, `datacontenttype` is the content type, the data is the payload.
//!
//! MQTT lets no control characters into text. Where an attribute has some, its value is
//! percent-encoded, and one more user property names those that are.

use std::borrow::Cow;

use antiphon_messaging::{Message, envelope};
use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};

use crate::names::{escape_text, is_refused, unescape};

/// The user property that names the attributes whose values are percent-encoded.
const ESCAPED: &str = "antiphonescaped";
/// The longest text that MQTT has room for, in bytes.
const TEXT_BYTES_MAX: usize = 65_535;

/// Why a message cannot be a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unwritable {
    /// An attribute is longer than MQTT allows.
    #[error("an attribute is longer than 65535 bytes, which MQTT cannot carry")]
    TooLong,
    /// An attribute has a name that is none.
    #[error("an attribute has control characters in its name")]
    Name,
}

/// The packet that carries `message` to `topic`.
pub(crate) fn packet(message: &Message, topic: Bytes) -> Result<Publish, Unwritable> {
    let attributes = envelope::attributes(message);
    let mut user_properties = Vec::with_capacity(attributes.len() + 1);
    let mut escaped = String::new();
    for (name, value) in attributes {
        let value = if value.contains(is_refused) {
            if !escaped.is_empty() {
                escaped.push(',');
            }
            escaped.push_str(name);
            escape_text(&value)
        } else {
            value.into_owned()
        };
        if name.contains(is_refused) {
            return Err(Unwritable::Name);
        }
        if name.len().max(value.len()) > TEXT_BYTES_MAX {
            return Err(Unwritable::TooLong);
        }
        user_properties.push((name.to_owned(), value));
    }
    if !escaped.is_empty() {
        if escaped.len() > TEXT_BYTES_MAX {
            return Err(Unwritable::TooLong);
        }
        user_properties.push((ESCAPED.to_owned(), escaped));
    }
    let properties = PublishProperties {
        content_type: Some(envelope::CONTENT_TYPE.to_owned()),
        user_properties,
        ..PublishProperties::default()
    };
    Ok(Publish {
        qos: QoS::AtLeastOnce,
        topic,
        payload: message.body.clone(),
        properties: Some(properties),
        ..Publish::default()
    })
}

/// The message that a packet carries. What does not read becomes a message that says so.
pub(crate) fn message(topic: &str, packet: Publish) -> Message {
    let mut properties = packet.properties.unwrap_or_default().user_properties;
    let escaped = properties
        .iter()
        .position(|(name, _)| name == ESCAPED)
        .map(|index| properties.swap_remove(index).1);
    if let Some(escaped) = escaped {
        for (name, value) in &mut properties {
            if escaped.split(',').any(|one| one == name)
                && let Some(plain) = unescape(value)
            {
                *value = plain;
            }
        }
    }
    let attributes =
        || properties.iter().map(|(name, value)| (name.as_str(), Cow::Borrowed(value.as_str())));
    let read = envelope::message(topic, "", attributes(), packet.payload.clone());
    if envelope::defect(&read).is_none() {
        return read;
    }
    let place = place(&packet.topic, &properties, &packet.payload);
    envelope::message(topic, &place, attributes(), packet.payload)
}

/// What a message without an id is known by: MQTT has no place that stays the same when a message
/// comes again, so it is a hash of everything that the message consists of.
fn place(topic: &[u8], properties: &[(String, String)], body: &[u8]) -> String {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let texts = properties.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
    let parts = [topic].into_iter().chain(texts).chain([body]);
    let hash = parts.fold(0xcbf2_9ce4_8422_2325_u64, |hash, part| {
        let bytes = part.iter().copied().chain([0xff]);
        bytes.fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use antiphon_core::{MessageId, Timestamp};

    use super::*;

    fn sent() -> Message {
        Message {
            id: MessageId::derived(Timestamp::from_millis(1_700_000_000_000), &[]),
            topic: "shop.orders".into(),
            kind: "shop.orders.v1.OrderPlaced".into(),
            source: "orders".into(),
            key: "bestellung\tä 50 %".into(),
            time: Timestamp::from_micros(1_700_000_000_000_001),
            not_before: None,
            attributes: BTreeMap::from([
                ("note".to_owned(), "two\nlines, 50 %0A".to_owned()),
                ("baggage".to_owned(), "a=%20b".to_owned()),
                ("empty".to_owned(), String::new()),
            ]),
            body: Bytes::from_static(b"body"),
        }
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let packet = packet(&sent(), Bytes::from_static(b"antiphon/t/shop.orders/3"));
        let packet = packet.expect("it can be written");
        let properties = packet.properties.as_ref().expect("it has properties");
        assert_eq!(properties.content_type.as_deref(), Some("application/protobuf"));
        let has = |wanted: &str, is: &str| {
            properties.user_properties.iter().any(|(name, value)| name == wanted && value == is)
        };
        assert!(has("specversion", "1.0") && has("type", "shop.orders.v1.OrderPlaced"));
        assert!(has("baggage", "a=%20b"), "what needs no escape is as it was: {properties:?}");
        let refused =
            properties.user_properties.iter().find(|(_, value)| value.contains(is_refused));
        assert_eq!(refused, None);
        assert_eq!(message("shop.orders", packet), sent());
    }

    #[test]
    fn a_foreign_message_has_an_id_that_its_content_decides() {
        let foreign = |text: &'static str| {
            let topic = Bytes::from_static(b"antiphon/t/shop.orders/3");
            let payload = Bytes::from_static(text.as_bytes());
            message("shop.orders", Publish { topic, payload, ..Publish::default() })
        };
        assert!(envelope::defect(&foreign("21.5")).is_some());
        assert_eq!(foreign("21.5").id, foreign("21.5").id);
        assert_ne!(foreign("21.5").id, foreign("21.6").id);
        assert_eq!(foreign("21.5").body, "21.5");
    }

    #[test]
    fn what_mqtt_has_no_room_for_is_refused() {
        let mut long = sent();
        long.attributes.insert("long".into(), "x".repeat(65_536));
        assert_eq!(packet(&long, Bytes::new()).err(), Some(Unwritable::TooLong));
        let mut odd = sent();
        odd.attributes.insert("a\nb".into(), "x".into());
        assert_eq!(packet(&odd, Bytes::new()).err(), Some(Unwritable::Name));
    }
}
