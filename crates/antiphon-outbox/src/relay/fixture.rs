//! Messages and leases for the tests of the relay.

use std::collections::BTreeMap;

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::Message;

/// A message to `topic` with `key`.
pub(super) fn message(topic: &str, key: &str) -> Message {
    let now = Timestamp::from_millis(1_700_000_000_000);
    Message {
        id: MessageId::new(now),
        topic: topic.into(),
        kind: "test.Happened".into(),
        source: "test".into(),
        key: key.into(),
        time: now,
        not_before: None,
        attributes: BTreeMap::new(),
        body: bytes::Bytes::new(),
    }
}
