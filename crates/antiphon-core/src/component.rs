//! What an application starts and drains.

use crate::{BoxError, Shutdown};

/// When a component is asked to drain, relative to the others.
///
/// Stages end in this order, one after the other: first nobody new is let in, then what was let in
/// is finished, then what that left behind is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Makes the process known to others: takes it back, so that nobody new comes.
    Announce,
    /// Answers calls: stops accepting, finishes calls and streams.
    Serve,
    /// Handles messages and timers: stops fetching, finishes handlers, releases the rest.
    Consume,
    /// Moves what was committed: relays, settlement flushers.
    Relay,
    /// Records what happened: exporters, the admin port.
    Observe,
}

/// Something the application starts, runs until it is told to drain, and waits for.
pub trait Component: Send + 'static {
    /// What it is called in logs and health answers.
    fn name(&self) -> &str;

    /// When it drains.
    fn stage(&self) -> Stage;

    /// Runs until `shutdown` asks for the drain, and returns when drained.
    ///
    /// 1. Returning before draining began is a failure of the whole application, whatever the
    ///    result; transient trouble is handled inside.
    /// 2. After [`Shutdown::cut`] the future may be dropped at any await point; nothing that was
    ///    acknowledged may depend on it then.
    ///
    /// # Errors
    /// What made it end.
    fn run(self, shutdown: Shutdown) -> impl Future<Output = Result<(), BoxError>> + Send;
}
