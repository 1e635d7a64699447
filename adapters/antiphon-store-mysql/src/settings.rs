//! What can be chosen when a database is opened.

use std::path::PathBuf;
use std::time::Duration;

use antiphon_core::Clock;

/// How a database is opened.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many connections transactions may have at once; others wait. The framework's reads have
    /// four more, [`reader`](crate::MysqlStore::reader) has four, once it is used.
    pub connections_max: u32,
    /// How long a new connection may take.
    pub connect_timeout: Duration,
    /// How long a transaction waits for a free connection before it is
    /// [`Busy`](antiphon_outbox::StoreError::Busy).
    pub acquire_timeout: Duration,
    /// How long a statement waits for a row that another transaction has locked before it is busy.
    /// The server counts whole seconds.
    pub lock_timeout: Duration,
    /// How long the framework's own statements wait for an answer before they give the connection
    /// up: what notices a server or network that has gone silent. Longer than `lock_timeout`.
    pub statement_timeout: Duration,
    /// How long the server keeps a connection that says nothing, in the middle of a transaction
    /// too: what frees the locks of a process that was stopped or cut off. Longer than any pause of
    /// a transaction between two statements.
    pub idle_in_transaction_timeout: Duration,
    /// The certificates of the authorities that may have signed the server's, as a PEM file. With
    /// it TLS is demanded and the server's name checked, unless the URL's `ssl-mode` says otherwise.
    pub ca_file: Option<PathBuf>,
    /// Whether messages of one key are put in order even when their transactions lock no common row:
    /// then two such transactions commit one after the other. Without it, only transactions that
    /// lock what their key stands for are in order.
    pub key_locks: bool,
    /// Where the time comes from: `None` is the database's own clock, by which the processes of a
    /// service agree on leases, timers and horizons. Tests have one that they can move.
    pub clock: Option<Clock>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections_max: 16,
            connect_timeout: Duration::from_secs(10),
            acquire_timeout: Duration::from_secs(10),
            lock_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            idle_in_transaction_timeout: Duration::from_secs(60),
            ca_file: None,
            key_locks: true,
            clock: None,
        }
    }
}

/// Whole seconds, as the server's settings count them; at least 1.
pub(crate) fn seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_seconds_are_rounded_up() {
        assert_eq!(seconds(Duration::ZERO), 1);
        assert_eq!(seconds(Duration::from_millis(1_200)), 2);
        assert_eq!(seconds(Duration::from_secs(5)), 5);
    }
}
