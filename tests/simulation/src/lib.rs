//! Seeded simulation of relay, inbox, retry ladder and saga in virtual time.
//!
//! A seed decides everything: how many nodes there are, what clients want, what goes wrong and when.
//! The parts under test are the real ones (relays, consumers, participants, the coordinator), on one
//! thread with paused time, over the transactional store in memory and the memory broker; around
//! both stand wrappers that lose answers, repeat, delay and reorder messages, take leases away,
//! and end whole nodes at the edge of any effect. After a while everything heals, comes to rest, and
//! answers the questions of `check.rs`.
//!
//! Two runs of one seed are the same run. `SEED=17 cargo test -p simulation` repeats one and shows
//! what happened.

mod broker;
mod check;
mod contract;
mod faults;
mod mutants;
mod node;
mod shop;
mod store;
mod world;

pub use faults::Bites;
pub use mutants::Mutant;

/// A promise was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// In this run.
    pub seed: u64,
    /// Which promise, and how.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; repeat it with SEED={} cargo test -p simulation", self.what, self.seed)
    }
}

impl std::error::Error for Violation {}

/// Runs one seed, with an injected bug if there is to be one, and says what went wrong on the way.
///
/// # Errors
/// The first promise that was broken.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Result<Bites, Violation> {
    let violation = |what: String| Violation { seed, what };
    // Ids, jitter and lanes are drawn from here.
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| violation(format!("no runtime: {error}")))?;
    runtime.block_on(world::run(seed, mutant)).map_err(violation)
}
