//! Messages as entries of a stream: a field for each CloudEvents attribute, one for the lane, and the
//! data. And entries' ids as positions: one number that rises as they do.

use std::borrow::Cow;

use antiphon_messaging::{Message, envelope, lane_of};
use bytes::Bytes;
use redis::{Pipeline, Value};

/// Fields that are no attributes. CloudEvents allows no attribute `data`, and has no `lane` of its own.
const DATA: &str = "data";
const LANE: &str = "lane";
/// An id is a time in milliseconds and a number within it; this many bits are for the number.
const NUMBER_BITS: u32 = 20;

/// Adds the command that stores a message, if its stream is there.
pub(crate) fn add(pipe: &mut Pipeline, key: &str, message: &Message) {
    let command = pipe.cmd("XADD").arg(key).arg("NOMKSTREAM").arg("*");
    command.arg(LANE).arg(lane_of(&message.key));
    for (name, value) in envelope::attributes(message) {
        command.arg(name).arg(&*value);
    }
    command.arg(DATA).arg(&*message.body);
}

/// An entry as it comes from the server.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// Reads `[id, [field, value, …]]`; `None` for entries that were removed.
    pub(crate) fn read(value: Value) -> Option<Self> {
        let [Value::BulkString(id), Value::Array(flat)] = array::<2>(value)? else { return None };
        let mut fields = Vec::with_capacity(flat.len() / 2);
        let mut flat = flat.into_iter();
        while let (Some(Value::BulkString(name)), Some(Value::BulkString(value))) =
            (flat.next(), flat.next())
        {
            fields.push((name, value));
        }
        Some(Self { id: String::from_utf8(id).ok()?, fields })
    }

    /// The message, and its lane. What somebody else wrote is in the lane of its key.
    pub(crate) fn message(self, topic: &str) -> (Message, u32) {
        let mut body = Bytes::new();
        let (mut names, mut values) = (Vec::new(), Vec::with_capacity(self.fields.len()));
        for (name, value) in self.fields {
            match name.as_slice() {
                b"data" => body = value.into(),
                b"lane" => {}
                _ => {
                    names.push(name);
                    values.push(text(value));
                }
            }
        }
        let names = names.iter().map(|name| String::from_utf8_lossy(name));
        let names: Vec<Cow<'_, str>> = names.collect();
        let attributes = names.iter().map(|name| &**name).zip(values.into_iter().map(Cow::Owned));
        let message = envelope::message(topic, &self.id, attributes, body);
        let lane = lane_of(&message.key);
        (message, lane)
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned())
}

/// The parts of an answer that has exactly so many.
pub(crate) fn array<const N: usize>(value: Value) -> Option<[Value; N]> {
    let Value::Array(parts) = value else { return None };
    parts.try_into().ok()
}

/// The entries of `XREAD` and `XREADGROUP`, by key.
pub(crate) fn entries(value: Value) -> Vec<(Vec<u8>, Vec<Entry>)> {
    let Value::Array(streams) = value else { return Vec::new() };
    let streams = streams.into_iter().filter_map(|stream| {
        let [Value::BulkString(key), Value::Array(entries)] = array::<2>(stream)? else {
            return None;
        };
        Some((key, entries.into_iter().filter_map(Entry::read).collect()))
    });
    streams.collect()
}

/// The place of an id among all others. Redis makes ids of the time, which fits for five hundred
/// years, and of a number, which fits for a million messages in a millisecond.
pub(crate) fn position(id: &str) -> Option<u64> {
    let (time, number) = id.split_once('-').unwrap_or((id, "0"));
    let (time, number): (u64, u64) = (time.parse().ok()?, number.parse().ok()?);
    if time >= 1 << (64 - NUMBER_BITS) || number >= 1 << NUMBER_BITS {
        return None;
    }
    Some(time << NUMBER_BITS | number)
}

/// The id at a place.
pub(crate) fn id(position: u64) -> String {
    format!("{}-{}", position >> NUMBER_BITS, position & ((1 << NUMBER_BITS) - 1))
}

/// The place of the first id of a millisecond.
pub(crate) fn at_millis(millis: u64) -> u64 {
    millis << NUMBER_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_places_that_rise_with_them() {
        let ids = ["0-0", "0-1", "1700000000000-0", "1700000000000-7", "1700000000001-0"];
        let places: Vec<u64> = ids.iter().map(|id| position(id).expect("an id")).collect();
        assert!(places.is_sorted());
        for (text, place) in ids.iter().zip(&places) {
            assert_eq!(id(*place), **text);
        }
        assert_eq!(at_millis(1_700_000_000_000), places[2]);
        for odd in ["", "x-1", "1-1048576", "99999999999999-0"] {
            assert_eq!(position(odd), None, "{odd}");
        }
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn a_foreign_entry_says_what_is_wrong() {
        let fields = Value::Array(vec![bulk("type"), bulk("x"), bulk("data"), bulk("body")]);
        let entry = Entry::read(Value::Array(vec![bulk("5-1"), fields])).expect("an entry");
        let (message, lane) = entry.message("t");
        assert!(envelope::defect(&message).is_some());
        assert_eq!((message.body.as_ref(), lane), (&b"body"[..], lane_of("")));
        assert!(Entry::read(Value::Array(vec![bulk("5-1"), Value::Nil])).is_none());
    }

    #[test]
    fn answers_of_reads_are_entries_by_stream() {
        let entry = Value::Array(vec![bulk("5-1"), Value::Array(vec![bulk("a"), bulk("b")])]);
        let stream = Value::Array(vec![bulk("key"), Value::Array(vec![entry])]);
        let read = entries(Value::Array(vec![stream]));
        assert_eq!((read[0].0.as_slice(), read[0].1[0].id.as_str()), (&b"key"[..], "5-1"));
        assert!(entries(Value::Nil).is_empty());
    }
}
