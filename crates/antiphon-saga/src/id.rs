//! Identifiers of sagas.

use std::fmt;
use std::str::FromStr;

use antiphon_core::id::InvalidMessageId;
use antiphon_core::{MessageId, Timestamp};

/// Identifies one saga for ever: a UUIDv7 made from its type and correlation id, so that it tells
/// when the saga began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SagaId(MessageId);

impl SagaId {
    /// The id of the saga of this type and correlation id that begins at `now`.
    #[must_use]
    pub fn new(now: Timestamp, kind: &str, correlation: &str) -> Self {
        Self(MessageId::derived(now, &[kind.as_bytes(), correlation.as_bytes()]))
    }

    /// From the 16 bytes it is stored as.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(MessageId::from_bytes(bytes))
    }

    /// The 16 bytes it is stored as.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// When the saga began, to the millisecond; `None` if the id is not a UUIDv7.
    #[must_use]
    pub fn begun_at(&self) -> Option<Timestamp> {
        self.0.made_at()
    }
}

impl fmt::Display for SagaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SagaId {
    type Err = InvalidMessageId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}
