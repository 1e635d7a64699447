//! What the buckets keep: groups, who owns a lane of an ordered group and how far it is, attempts.
//!
//! | bucket | key | value |
//! |---|---|---|
//! | `<bucket>_groups` | `g.<group>` | [`GroupRecord`] |
//! | `<bucket>_groups` | `l.<group>.<lane>` | [`LaneRecord`]; changed by compare-and-set only |
//! | `<bucket>_live` | `m.<group>.<member>` | a sign of life |
//! | `<bucket>_live` | `a.<group>.<topic>.<sequence>` | attempts of a message of an unordered group |

use std::collections::BTreeMap;

use antiphon_core::BoxError;
use async_nats::jetstream::kv::{self, Operation};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::names::escaped;

/// How many requests wait for the server at a time.
const REQUESTS_MAX: usize = 32;

/// How a group reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// In any order: one durable consumer per topic, which all members share.
    #[default]
    Shared,
    /// In order: lanes, each owned by one member.
    Ordered,
}

/// Where a group is in a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Begin {
    /// When the stream was made, in nanoseconds: another stream of the same name counts anew.
    pub(crate) stream: i128,
    /// Everything up to this sequence is not for the group, or done.
    pub(crate) floor: u64,
}

/// A group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct GroupRecord {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) mode: Mode,
    pub(crate) topics: BTreeMap<String, Begin>,
}

/// How far the owners of a lane are in one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Progress {
    pub(crate) stream: i128,
    pub(crate) floor: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) done: Vec<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) attempts: BTreeMap<u64, u32>,
}

/// A lane of an ordered group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct LaneRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
    #[serde(default)]
    pub(crate) topics: BTreeMap<String, Progress>,
}

pub(crate) fn group_key(group: &str) -> String {
    format!("g.{}", escaped(group))
}

pub(crate) fn lane_key(group: &str, lane: u32) -> String {
    format!("l.{}.{lane}", escaped(group))
}

pub(crate) fn member_key(group: &str, member: &str) -> String {
    format!("m.{}.{member}", escaped(group))
}

pub(crate) fn attempts_key(group: &str, topic: &str, sequence: u64) -> String {
    format!("a.{}.{}.{sequence}", escaped(group), escaped(topic))
}

/// The last word of a key: a lane or a member.
pub(crate) fn last_word(key: &str) -> &str {
    key.rsplit_once('.').map_or(key, |(_, last)| last)
}

pub(crate) fn encoded(record: &impl Serialize) -> Result<Bytes, BoxError> {
    Ok(serde_json::to_vec(record)?.into())
}

/// A record with its revision; `None` when there is none.
pub(crate) async fn read<R: DeserializeOwned>(
    store: &kv::Store,
    key: String,
) -> Result<Option<(R, u64)>, BoxError> {
    match store.entry(key).await? {
        Some(entry) if entry.operation == Operation::Put => {
            Ok(Some((serde_json::from_slice(&entry.value)?, entry.revision)))
        }
        _ => Ok(None),
    }
}

/// What came of writing a record that somebody else may write as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is there, with this revision.
    Done(u64),
    /// Somebody else was faster.
    Beaten,
}

/// Writes a record if its revision is still `revision`; zero when there is none.
pub(crate) async fn write(
    store: &kv::Store,
    key: &str,
    record: &impl Serialize,
    revision: u64,
) -> Result<Written, BoxError> {
    match store.update(key, encoded(record)?, revision).await {
        Ok(revision) => Ok(Written::Done(revision)),
        Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => Ok(Written::Beaten),
        Err(error) => Err(error.into()),
    }
}

/// Every living entry whose key matches, in no order.
pub(crate) async fn list(store: &kv::Store, pattern: &str) -> Result<Vec<kv::Entry>, BoxError> {
    let filter = format!("{}{pattern}", store.prefix);
    let mut subjects = store.stream.info_with_subjects(filter).await?;
    let mut keys = Vec::new();
    while let Some(subject) = subjects.next().await {
        let (subject, _) = subject?;
        keys.extend(subject.strip_prefix(store.prefix.as_str()).map(str::to_owned));
    }
    let mut all = Vec::new();
    for some in keys.chunks(REQUESTS_MAX) {
        let entries = try_join_all(some.iter().map(|key| store.entry(key.clone()))).await?;
        all.extend(entries.into_iter().flatten().filter(|entry| entry.operation == Operation::Put));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_words_that_read_back() {
        assert_eq!(group_key("billing.charge"), "g.billing_charge");
        assert_eq!(lane_key("billing.charge", 7), "l.billing_charge.7");
        assert_eq!(last_word(&lane_key("billing.charge", 7)), "7");
        assert_eq!(last_word(&member_key("g", "m-1")), "m-1");
        assert_eq!(attempts_key("g.a", "t.b", 9), "a.g_a.t_b.9");
    }

    #[test]
    fn a_record_of_a_later_version_still_reads() {
        let text = r#"{"name":"g","topics":{"t":{"stream":1,"floor":2,"new":3}},"newer":true}"#;
        let record: GroupRecord = serde_json::from_str(text).expect("it reads");
        assert_eq!((record.mode, record.topics["t"].floor), (Mode::Shared, 2));
    }
}
