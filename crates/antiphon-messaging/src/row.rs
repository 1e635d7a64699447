//! How the envelope of a message is written into a row of a database.
//!
//! Id, topic, kind and body have columns of their own; everything else is one block of bytes, the
//! head: a version byte, then source and key, the times, then the attributes. Texts and counts are
//! preceded by their length as a LEB128 number. A head that does not decode says so; it is never
//! guessed at.

use std::collections::BTreeMap;

use antiphon_core::{MessageId, Timestamp};
use bytes::Bytes;

use crate::Message;

const VERSION: u8 = 1;

/// The bytes of a row are not what this version of the program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends too early.
    #[error("the head of the message ends early")]
    Short,
    /// A newer program wrote it.
    #[error("the head of the message has version {0}; this program knows {VERSION}")]
    Version(u8),
    /// A text in it is none.
    #[error("the head of the message has a text that is not UTF-8")]
    Utf8,
    /// It is too long.
    #[error("the head of the message goes on after its end")]
    Long,
    /// The id has the wrong length.
    #[error("the id of the message has not 16 bytes")]
    Id,
}

/// The head of `message`.
#[must_use]
pub fn encode_head(message: &Message) -> Vec<u8> {
    let attributes = &message.attributes;
    let texts: usize = attributes.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    let mut head = Vec::with_capacity(32 + message.source.len() + message.key.len() + texts);
    head.push(VERSION);
    put_text(&mut head, &message.source);
    put_text(&mut head, &message.key);
    head.extend_from_slice(&message.time.as_micros().to_le_bytes());
    // No message is due at the end of time, so that stands for "at once".
    let not_before = message.not_before.unwrap_or(Timestamp::MAX);
    head.extend_from_slice(&not_before.as_micros().to_le_bytes());
    put_length(&mut head, attributes.len());
    for (name, value) in attributes {
        put_text(&mut head, name);
        put_text(&mut head, value);
    }
    head
}

/// The id in a column.
///
/// # Errors
/// It has not 16 bytes.
pub fn decode_id(bytes: &[u8]) -> Result<MessageId, DecodeError> {
    bytes.try_into().map(MessageId::from_bytes).map_err(|_| DecodeError::Id)
}

/// The message of a row.
///
/// # Errors
/// The head is not what this version of the program writes.
pub fn decode(
    id: MessageId,
    topic: String,
    kind: String,
    head: &[u8],
    body: Bytes,
) -> Result<Message, DecodeError> {
    let mut rest = head;
    match take(&mut rest, 1)? {
        [VERSION] => {}
        other => return Err(DecodeError::Version(other[0])),
    }
    let source = take_text(&mut rest)?.to_owned();
    let key = take_text(&mut rest)?.to_owned();
    let time = take_time(&mut rest)?;
    let not_before = Some(take_time(&mut rest)?).filter(|time| *time != Timestamp::MAX);
    let count = take_length(&mut rest)?;
    let mut attributes = BTreeMap::new();
    for _ in 0..count {
        let name = take_text(&mut rest)?.to_owned();
        attributes.insert(name, take_text(&mut rest)?.to_owned());
    }
    if !rest.is_empty() {
        return Err(DecodeError::Long);
    }
    Ok(Message { id, topic, kind, source, key, time, not_before, attributes, body })
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_length(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], DecodeError> {
    let (taken, left) = rest.split_at_checked(count).ok_or(DecodeError::Short)?;
    *rest = left;
    Ok(taken)
}

fn take_length(rest: &mut &[u8]) -> Result<usize, DecodeError> {
    let mut length = 0_usize;
    for shift in [0, 7, 14, 21, 28] {
        let byte = take(rest, 1)?[0];
        length |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(length);
        }
    }
    Err(DecodeError::Short)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, DecodeError> {
    let length = take_length(rest)?;
    std::str::from_utf8(take(rest, length)?).map_err(|_| DecodeError::Utf8)
}

fn take_time(rest: &mut &[u8]) -> Result<Timestamp, DecodeError> {
    let bytes = take(rest, 8)?.try_into().map_err(|_| DecodeError::Short)?;
    Ok(Timestamp::from_micros(i64::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            id: MessageId::new(Timestamp::from_millis(1_700_000_000_000)),
            topic: "orders".into(),
            kind: "shop.orders.v1.OrderPlaced".into(),
            source: "orders".into(),
            key: "bestellung-ä-1".into(),
            time: Timestamp::from_micros(1_700_000_000_000_001),
            not_before: Some(Timestamp::from_millis(1_700_000_001_000)),
            attributes: [("traceparent".to_owned(), "x".repeat(300)), ("a".into(), String::new())]
                .into(),
            body: Bytes::from_static(b"body"),
        }
    }

    fn again(message: &Message, head: &[u8]) -> Result<Message, DecodeError> {
        let (topic, kind) = (message.topic.clone(), message.kind.clone());
        decode(message.id, topic, kind, head, message.body.clone())
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let message = message();
        assert_eq!(again(&message, &encode_head(&message)).unwrap(), message);
        let plain = Message { not_before: None, attributes: BTreeMap::new(), ..message };
        assert_eq!(again(&plain, &encode_head(&plain)).unwrap(), plain);
    }

    #[test]
    fn a_broken_head_is_refused_wherever_it_is_cut() {
        let message = message();
        let head = encode_head(&message);
        for end in 0..head.len() {
            assert!(again(&message, &head[..end]).is_err(), "cut at {end}");
        }
        let long = [head.as_slice(), b"x"].concat();
        assert_eq!(again(&message, &long), Err(DecodeError::Long));
        assert_eq!(again(&message, &[9]), Err(DecodeError::Version(9)));
    }
}
