//! What is said to etcd and what it answers, in the JSON of its gRPC gateway.
//!
//! Numbers of 64 bits are strings, bytes are base64, and what has its default is left out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

/// Bytes, as they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl<T: AsRef<[u8]>> From<T> for Bytes {
    fn from(bytes: T) -> Self {
        Self(bytes.as_ref().to_vec())
    }
}

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(D::Error::custom)
    }
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Number(i64),
    }
    match Either::deserialize(deserializer)? {
        Either::Text(text) => text.parse().map_err(D::Error::custom),
        Either::Number(number) => Ok(number),
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Range {
    pub(crate) key: Bytes,
    pub(crate) range_end: Bytes,
    pub(crate) keys_only: bool,
    pub(crate) min_mod_revision: String,
}

impl Range {
    /// The keys from `key` up to `end`, or the one key where that is empty, with their values.
    pub(crate) fn of(key: &str, end: &[u8]) -> Self {
        let min_mod_revision = "0".to_owned();
        Self { key: key.into(), range_end: end.into(), keys_only: false, min_mod_revision }
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct RangeAnswer {
    pub(crate) header: Header,
    /// Without those that were not asked for because they are too old.
    #[serde(default)]
    pub(crate) kvs: Vec<KeyValue>,
    /// How many keys there are, with those.
    #[serde(default, deserialize_with = "number")]
    pub(crate) count: i64,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Header {
    #[serde(default, deserialize_with = "number")]
    pub(crate) revision: i64,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct KeyValue {
    #[serde(default)]
    pub(crate) key: Bytes,
    #[serde(default)]
    pub(crate) value: Bytes,
    /// The revision at which it was written last, or deleted.
    #[serde(default, deserialize_with = "number")]
    pub(crate) mod_revision: i64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Put {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) lease: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Grant {
    #[serde(rename = "TTL")]
    pub(crate) ttl: String,
}

/// Of a grant, and of a renewal, where a missing time means that there is no such lease.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct LeaseAnswer {
    #[serde(rename = "ID", default, deserialize_with = "number")]
    pub(crate) id: i64,
    #[serde(rename = "TTL", default, deserialize_with = "number")]
    pub(crate) ttl: i64,
}

#[derive(Debug, Serialize)]
pub(crate) struct LeaseId {
    #[serde(rename = "ID")]
    pub(crate) id: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Watch {
    pub(crate) create_request: WatchCreate,
}

#[derive(Debug, Serialize)]
pub(crate) struct WatchCreate {
    pub(crate) key: Bytes,
    pub(crate) range_end: Bytes,
    pub(crate) start_revision: String,
}

/// One line of an answer that goes on: something, or the end.
#[derive(Debug, Deserialize)]
pub(crate) struct Line<T> {
    pub(crate) result: Option<T>,
    pub(crate) error: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct WatchAnswer {
    #[serde(default)]
    pub(crate) canceled: bool,
    #[serde(default, deserialize_with = "number")]
    pub(crate) compact_revision: i64,
    #[serde(default)]
    pub(crate) cancel_reason: String,
    #[serde(default)]
    pub(crate) events: Vec<Event>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Event {
    #[serde(rename = "type", default)]
    pub(crate) kind: EventKind,
    #[serde(default)]
    pub(crate) kv: KeyValue,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum EventKind {
    #[default]
    #[serde(rename = "PUT")]
    Put,
    #[serde(rename = "DELETE")]
    Delete,
}

#[derive(Serialize)]
pub(crate) struct Authenticate<'a> {
    pub(crate) name: &'a str,
    pub(crate) password: &'a str,
}

#[derive(Deserialize)]
pub(crate) struct AuthenticateAnswer {
    pub(crate) token: String,
}

/// Codes of gRPC by which etcd says that it does not know who asks: a token has run out, or was given
/// out before the users were changed, or there is none.
pub(crate) const UNAUTHENTICATED: i64 = 16;
pub(crate) const INVALID_ARGUMENT: i64 = 3;

/// What etcd says instead of an answer. Versions differ in where the words are.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Refusal {
    #[serde(default)]
    pub(crate) code: i64,
    #[serde(default)]
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) error: String,
}

impl Refusal {
    /// The words of it.
    pub(crate) fn words(&self) -> &str {
        if self.message.is_empty() { &self.error } else { &self.message }
    }

    /// Whether it may be taken back for who logs in anew.
    pub(crate) fn wants_login(&self) -> bool {
        matches!(self.code, UNAUTHENTICATED | INVALID_ARGUMENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_written_as_the_gateway_wants_them() {
        let put = Put { key: "/a".into(), value: "b".into(), lease: i64::MAX.to_string() };
        assert_eq!(
            serde_json::to_string(&put).unwrap(),
            r#"{"key":"L2E=","value":"Yg==","lease":"9223372036854775807"}"#
        );
    }

    #[test]
    fn answers_are_read_as_the_gateway_writes_them() {
        let line = r#"{"result":{"header":{"revision":"7"},"events":[{"kv":{"key":"L2E=",
            "value":"Yg==","mod_revision":"7"}},{"type":"DELETE","kv":{"key":"L2E="}}]}}"#;
        let line: Line<WatchAnswer> = serde_json::from_str(line).unwrap();
        let events = line.result.unwrap().events;
        assert_eq!((events[0].kind, events[1].kind), (EventKind::Put, EventKind::Delete));
        assert_eq!(events[0].kv.value, "b".into());
        let gone: LeaseAnswer = serde_json::from_str(r#"{"ID":"5"}"#).unwrap();
        assert_eq!((gone.id, gone.ttl), (5, 0));
        let compacted = r#"{"canceled":true,"compact_revision":"9"}"#;
        let compacted: WatchAnswer = serde_json::from_str(compacted).unwrap();
        assert!(compacted.canceled && compacted.compact_revision == 9);
    }

    #[test]
    fn refusals_are_read_in_the_forms_of_all_versions() {
        for refusal in [
            r#"{"error":"no such lease","message":"no such lease","code":5}"#,
            r#"{"error":"no such lease","code":5}"#,
            r#"{"code":5,"message":"no such lease","details":[]}"#,
        ] {
            let refusal: Refusal = serde_json::from_str(refusal).unwrap();
            assert_eq!((refusal.code, refusal.words()), (5, "no such lease"));
        }
    }
}
