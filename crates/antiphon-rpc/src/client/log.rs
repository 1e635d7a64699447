//! What was tried for a call, for the error that its caller gets.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use antiphon_discovery::Target;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::{CallError, FailedAttempt};
use super::instance::Instance;

/// What has become of a call so far.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// The instances that it was sent to.
    pub(super) tried: Vec<Arc<Instance>>,
    pub(super) failed: Vec<FailedAttempt>,
    /// A second attempt that went on beside another was told that no further one is wanted.
    pub(super) never_again: bool,
    /// The attempt under way.
    pub(super) side: Side,
    begun: Option<Instant>,
}

/// One of the attempts of a call that go on side by side.
#[derive(Debug, Default)]
pub(super) struct Side {
    pub(super) instance: OnceLock<Arc<Instance>>,
    pub(super) overtaken: Arc<AtomicBool>,
}

impl Log {
    /// An attempt begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.begun = Some(now);
    }

    /// The attempt has ended.
    pub(super) fn ended(&mut self) {
        self.tried.extend(std::mem::take(&mut self.side).instance.into_inner());
        self.begun = None;
    }

    /// It failed for that reason.
    pub(super) fn note(&mut self, cause: String, took: Duration) {
        let instance = self.tried.last().map_or("none", |instance| instance.address());
        self.failed.push(FailedAttempt { instance: instance.to_owned(), took, cause });
    }

    /// Why the call failed, and what was tried.
    pub(super) fn error(self, target: &Target, problem: &'static str) -> CallError {
        CallError { target: target.to_string(), problem, attempts: self.failed }
    }

    /// The time was over before the call had ended.
    pub(super) fn expired(mut self, target: &Target) -> CallError {
        if let (Some(begun), Some(instance)) = (self.begun, self.side.instance.get()) {
            self.failed.push(FailedAttempt {
                instance: instance.address().to_owned(),
                took: begun.elapsed(),
                cause: "no answer in time".to_owned(),
            });
        }
        self.error(target, "the time was over")
    }
}

/// Where a [`Log`] is told.
pub(super) type Told = Mutex<Option<Log>>;

/// A log that is told when it is dropped: whoever drops a call whose time is over knows nothing else of
/// it.
pub(super) struct Kept<'a> {
    log: Log,
    told: Option<&'a Told>,
}

impl<'a> Kept<'a> {
    pub(super) fn new(told: &'a Told) -> Self {
        Self { log: Log::default(), told: Some(told) }
    }

    /// The call has ended, and what was tried is told otherwise.
    pub(super) fn take(mut self) -> Log {
        self.told = None;
        std::mem::take(&mut self.log)
    }

    /// The call has ended well.
    pub(super) fn forget(&mut self) {
        self.told = None;
    }
}

impl Deref for Kept<'_> {
    type Target = Log;

    fn deref(&self) -> &Log {
        &self.log
    }
}

impl DerefMut for Kept<'_> {
    fn deref_mut(&mut self) -> &mut Log {
        &mut self.log
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if let Some(told) = self.told {
            *told.lock() = Some(std::mem::take(&mut self.log));
        }
    }
}
