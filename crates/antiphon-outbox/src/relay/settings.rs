//! What can be set of a relay.

use std::time::Duration;

/// How the relay treats later messages of a key when the broker refuses one for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyPolicy {
    /// The refused message is put aside, the later ones go on.
    #[default]
    Skip,
    /// The key waits: the message stays in the outbox and is tried again, ever more rarely, until
    /// an operator has removed the cause.
    Halt,
}

/// The settings of a relay. The defaults are meant to be left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaySettings {
    /// How long a lease on a lane lasts without renewal. Renewed after a third of it.
    pub lease_ttl: Duration,
    /// How long before the end of its lease a lane is no longer published from. Covers the
    /// difference in speed of two clocks and the time a broker call takes.
    pub lease_margin: Duration,
    /// How many messages one broker call carries at most.
    pub batch_max: usize,
    /// How many broker calls may be under way at once. A lane takes part in one at a time.
    pub calls_max: usize,
    /// How many rows of one lane are held in memory at most.
    pub window: usize,
    /// How many bytes of messages of one lane are held in memory, about.
    pub window_bytes: usize,
    /// How long a broker call may take before its outcome counts as unknown.
    pub publish_timeout: Duration,
    /// How long confirmed rows are collected before they are removed together.
    pub confirm_interval: Duration,
    /// How many confirmed rows are removed without waiting for the interval.
    pub confirm_max: usize,
    /// The first wait of a relay that found nothing; doubles up to `poll_max`, and starts over with
    /// any work. Commits in the same process need no waiting.
    pub poll_min: Duration,
    /// The longest such wait.
    pub poll_max: Duration,
    /// How long after a read the next one begins at the earliest, unless there is more to read:
    /// what is committed in the meantime is published together.
    pub read_gap: Duration,
    /// How often a lane is read from its beginning, for rows that were committed late or fell due.
    pub sweep_interval: Duration,
    /// The first wait after the broker refused or did not answer; doubles up to `backoff_max`.
    pub backoff_min: Duration,
    /// The longest such wait.
    pub backoff_max: Duration,
    /// See [`KeyPolicy`].
    pub key_policy: KeyPolicy,
}

impl RelaySettings {
    /// The settings that a relay has unless told otherwise.
    pub const DEFAULT: Self = Self {
        lease_ttl: Duration::from_secs(6),
        lease_margin: Duration::from_millis(1_500),
        batch_max: 512,
        calls_max: 4,
        window: 1_024,
        window_bytes: 4 * 1_024 * 1_024,
        publish_timeout: Duration::from_secs(30),
        confirm_interval: Duration::from_millis(20),
        confirm_max: 500,
        poll_min: Duration::from_millis(5),
        poll_max: Duration::from_millis(250),
        read_gap: Duration::from_millis(2),
        sweep_interval: Duration::from_millis(500),
        backoff_min: Duration::from_millis(100),
        backoff_max: Duration::from_secs(5),
        key_policy: KeyPolicy::Skip,
    };
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self::DEFAULT
    }
}
