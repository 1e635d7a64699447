//! Identifiers of messages.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::clock::Timestamp;

/// Identifies one message for ever: a UUIDv7, so that ids sort by the time of their making.
///
/// The time in the id is what lets an inbox forget old messages without ever executing one twice:
/// a message older than the dedup horizon is refused by its id alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(Uuid);

impl MessageId {
    /// A new id for a message made at `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        // The generator that tests and the simulator can seed; nothing about an id is a secret.
        let random = fastrand::u128(..).to_be_bytes();
        Self::of(now, random)
    }

    /// The time of `now` and 74 bits of `rest`.
    fn of(now: Timestamp, rest: [u8; 16]) -> Self {
        let millis = u64::try_from(now.as_millis()).unwrap_or(0);
        let bytes: [u8; 10] = rest[6..].try_into().unwrap_or([0; 10]);
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid())
    }

    /// The id that is always made from these same parts: for a message whose sender may have to
    /// send it again without remembering that it did.
    ///
    /// `now` gives the time bits; the rest is a hash (FNV-1a, 128 bits) of `parts`.
    #[must_use]
    pub fn derived(now: Timestamp, parts: &[&[u8]]) -> Self {
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013B;
        let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        for part in parts {
            for byte in part.iter().copied().chain([0xff]) {
                hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
            }
        }
        Self::of(now, hash.to_be_bytes())
    }

    /// From the 16 bytes it is stored as.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes it is stored as.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// When the message was made, to the millisecond; `None` if the id is not a UUIDv7.
    #[must_use]
    pub fn made_at(&self) -> Option<Timestamp> {
        // Other versions carry times as well, but do not sort by them.
        if self.0.get_version_num() != 7 {
            return None;
        }
        let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
        let micros = i64::try_from(seconds).ok()?.checked_mul(1_000_000)?;
        Some(Timestamp::from_micros(micros + i64::from(nanos / 1_000)))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

/// The text is not a UUID.
#[derive(Debug, thiserror::Error)]
#[error("not a message id: {0}")]
pub struct InvalidMessageId(#[from] uuid::Error);

impl FromStr for MessageId {
    type Err = InvalidMessageId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Uuid::try_parse(text)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_remember_their_time_and_sort_by_it() {
        let early = MessageId::new(Timestamp::from_millis(1_700_000_000_123));
        let late = MessageId::new(Timestamp::from_millis(1_700_000_000_124));
        assert_eq!(early.made_at(), Some(Timestamp::from_millis(1_700_000_000_123)));
        assert!(early < late);
    }

    #[test]
    fn derived_ids_depend_on_every_part_and_on_where_parts_end() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let id = MessageId::derived(now, &[b"ab", b"c"]);
        assert_eq!(id, MessageId::derived(now, &[b"ab", b"c"]));
        assert_ne!(id, MessageId::derived(now, &[b"a", b"bc"]));
        assert_eq!(id.made_at(), Some(now));
    }

    #[test]
    fn only_ids_that_sort_by_their_time_tell_it() {
        for version in [0x11, 0x44, 0x66, 0xff] {
            assert_eq!(MessageId::from_bytes([version; 16]).made_at(), None);
        }
    }

    #[test]
    fn text_round_trips_and_rubbish_is_refused() {
        let id = MessageId::new(Timestamp::from_millis(7));
        assert_eq!(id.to_string().parse::<MessageId>().unwrap(), id);
        assert!("order-1".parse::<MessageId>().is_err());
    }
}
