//! What can be chosen when a database file is opened.

use std::time::Duration;

use antiphon_core::Clock;
use antiphon_messaging::Durability;

/// When SQLite waits for the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// At checkpoints only: a commit survives the process, but the last commits before a loss of
    /// power may be undone.
    #[default]
    Normal,
    /// At each commit.
    Full,
}

impl Synchronous {
    /// What a commit survives.
    #[must_use]
    pub const fn durability(self) -> Durability {
        match self {
            Self::Normal => Durability::PageCache,
            Self::Full => Durability::Disk,
        }
    }

    pub(crate) const fn pragma(self) -> &'static str {
        match self {
            Self::Normal => "NORMAL",
            Self::Full => "FULL",
        }
    }
}

/// How a database file is opened.
#[derive(Clone, Debug)]
pub struct Settings {
    /// When SQLite waits for the disk.
    pub synchronous: Synchronous,
    /// How many connections read besides the one that writes. At least 1.
    pub readers: u32,
    /// How long a transaction waits for its turn to write before it is
    /// [`Busy`](antiphon_outbox::StoreError::Busy).
    pub busy_timeout: Duration,
    /// Where the time comes from.
    pub clock: Clock,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            synchronous: Synchronous::Normal,
            readers: 2,
            busy_timeout: Duration::from_secs(10),
            clock: Clock::system(),
        }
    }
}
