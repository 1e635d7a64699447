//! What can be chosen when a database is opened.

use std::path::PathBuf;
use std::time::Duration;

use antiphon_core::Clock;
use antiphon_messaging::Durability;

/// When PostgreSQL answers a commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SynchronousCommit {
    /// Before it is on disk: a commit survives the process of the server, but the last ones before
    /// a loss of power, or a crash of the server, may be undone.
    Off,
    /// When it is on disk, here and on the synchronous standbys if the server names any.
    #[default]
    On,
    /// When the synchronous standbys show it, too.
    RemoteApply,
}

impl SynchronousCommit {
    /// What a commit survives, on a server with `fsync = on`.
    #[must_use]
    pub const fn durability(self) -> Durability {
        match self {
            Self::Off => Durability::PageCache,
            Self::On | Self::RemoteApply => Durability::Disk,
        }
    }

    pub(crate) const fn setting(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::RemoteApply => "remote_apply",
        }
    }
}

/// How a database is opened.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many connections transactions may have at once. Seven more are for reads, for the
    /// framework's own work and for the wake-up between processes.
    pub connections_max: u32,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How long a transaction waits for a connection before it is
    /// [`Busy`](antiphon_outbox::StoreError::Busy).
    pub acquire_timeout: Duration,
    /// How long a statement may take; zero for ever.
    pub statement_timeout: Duration,
    /// How long a statement waits for the lock of another transaction before it is
    /// [`Busy`](antiphon_outbox::StoreError::Busy).
    pub lock_timeout: Duration,
    /// How long a transaction may do nothing before the server ends it: what it locks, others wait
    /// for. Zero for ever.
    pub idle_in_transaction_timeout: Duration,
    /// The authority that signed the server's certificate, as a PEM file. With it the server must
    /// show a certificate for its name, unless the URL's `sslmode` says otherwise. Without it
    /// nothing is checked unless `sslmode` asks for it, TLS is used where the server offers it, and
    /// left out to this machine.
    pub ca_file: Option<PathBuf>,
    /// When the server answers a commit.
    pub synchronous_commit: SynchronousCommit,
    /// Whether messages of one key are put in order even when their transactions lock no common
    /// row: then two such transactions commit one after the other. Without it, only transactions
    /// that lock what their key stands for are in order.
    pub key_locks: bool,
    /// Where the time comes from; `None` for the database's clock, which all processes share.
    pub clock: Option<Clock>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections_max: 10,
            connect_timeout: Duration::from_secs(5),
            acquire_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(60),
            ca_file: None,
            synchronous_commit: SynchronousCommit::On,
            key_locks: true,
            clock: None,
        }
    }
}
