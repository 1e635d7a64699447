//! A message as a record, by the CloudEvents binding for Kafka in binary mode: attributes are
//! headers named `ce_…`, the body is the value, the message's key is the record's key.

use std::borrow::Cow;

use antiphon_messaging::{Message, envelope};
use bytes::Bytes;
use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Header, Headers, OwnedHeaders};

/// What the names of attributes begin with.
const PREFIX: &str = "ce_";
/// What a batch and a record need besides key, value and headers, at most.
const FRAME_BYTES: usize = 128;
/// What a header needs besides its name and value, at most.
const HEADER_BYTES: usize = 10;

/// The headers of a message, and how many bytes its record needs at most.
pub(crate) fn headers(message: &Message) -> (OwnedHeaders, usize) {
    let attributes = envelope::attributes(message);
    let mut size = FRAME_BYTES + message.key.len() + message.body.len();
    let mut name = String::with_capacity(32);
    name.push_str(PREFIX);
    let mut headers = OwnedHeaders::new_with_capacity(attributes.len() + 1);
    for (attribute, value) in &attributes {
        name.truncate(PREFIX.len());
        name.push_str(attribute);
        size += name.len() + value.len() + HEADER_BYTES;
        headers = headers.insert(Header { key: &name, value: Some(value.as_ref()) });
    }
    let content_type = Header { key: "content-type", value: Some(envelope::CONTENT_TYPE) };
    (headers.insert(content_type), size + 48)
}

/// The message of a record of `topic`. What does not read says so: see
/// [`envelope::defect`](antiphon_messaging::envelope::defect).
pub(crate) fn message(topic: &str, record: &BorrowedMessage<'_>) -> Message {
    // Foreign senders may say the key only where Kafka has it; ours say it twice.
    let key = record.key().map(|key| ("partitionkey", String::from_utf8_lossy(key)));
    read(topic, record, key)
}

/// The message of an answer: the record's key is its address.
pub(crate) fn answer(topic: &str, record: &BorrowedMessage<'_>) -> Message {
    read(topic, record, None)
}

fn read<'a>(
    topic: &str,
    record: &'a BorrowedMessage<'_>,
    key: Option<(&'a str, Cow<'a, str>)>,
) -> Message {
    let body = record.payload().map_or_else(Bytes::new, Bytes::copy_from_slice);
    let headers = record.headers().into_iter().flat_map(|headers| {
        headers.iter().filter_map(|header| {
            let name = header.key.strip_prefix(PREFIX)?;
            Some((name, String::from_utf8_lossy(header.value.unwrap_or_default())))
        })
    });
    let place = format_args!("{}/{}", record.partition(), record.offset());
    envelope::message(topic, place, key.into_iter().chain(headers), body)
}
