//! What travels with the work.
//!
//! A [`Context`] is established once where work enters the process (a call, a delivery, a timer), is
//! current for the task while it runs, and is injected wherever work leaves it. User code does
//! nothing for that.

mod carrier;
mod scope;
mod trace;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::{Priority, Status};

pub use carrier::{Carrier, CarrierMut};
pub use scope::{Scoped, spawn};
pub use trace::{InvalidTraceParent, SpanId, TraceContext, TraceId};

/// The moment by which work must be done.
pub type Deadline = Instant;

/// Deadline, trace, baggage, correlation, causation and idempotency key of the work in hand.
///
/// Cheap to clone. Every change makes a new value; the old one stays as it was.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

#[derive(Clone, Default)]
struct Inner {
    deadline: Option<Deadline>,
    trace: TraceContext,
    baggage: Vec<(Box<str>, Box<str>)>,
    correlation_id: Option<Box<str>>,
    causation_id: Option<Box<str>>,
    idempotency_key: Option<Box<str>>,
    previous_attempts: u32,
    priority: Priority,
}

impl Context {
    /// The start of new work: a new trace, nothing else.
    #[must_use]
    pub fn root() -> Self {
        Self(Arc::new(Inner { trace: TraceContext::root(), ..Inner::default() }))
    }

    /// The context of the running task, or a new root where none was established.
    #[must_use]
    pub fn current() -> Self {
        scope::current().unwrap_or_else(Self::root)
    }

    /// The context of the running task.
    #[must_use]
    pub fn try_current() -> Option<Self> {
        scope::current()
    }

    /// Calls `read` with the running task's context, without cloning it.
    pub fn with_current<T>(read: impl FnOnce(Option<&Self>) -> T) -> T {
        scope::with_current(read)
    }

    /// After so many attempts at this work.
    #[must_use]
    pub fn with_previous_attempts(self, attempts: u32) -> Self {
        self.change(|inner| inner.previous_attempts = attempts)
    }

    /// With this priority, which the calls made in this context have as well.
    #[must_use]
    pub fn with_priority(self, priority: Priority) -> Self {
        self.change(|inner| inner.priority = priority)
    }

    /// Runs `work` with this context current.
    pub fn scope<F: Future>(self, work: F) -> Scoped<F> {
        Scoped::new(self, work)
    }

    /// Calls `work` with this context current.
    pub fn sync_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        scope::sync_scope(self, work)
    }

    /// By when the work must be done.
    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        self.0.deadline
    }

    /// How much time is left; `None` without a deadline, zero when it has passed.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.0.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// The trace that the work belongs to and the span that is its parent.
    #[must_use]
    pub fn trace(&self) -> &TraceContext {
        &self.0.trace
    }

    /// What the caller wants every further step to know.
    #[must_use]
    pub fn baggage(&self) -> &[(Box<str>, Box<str>)] {
        &self.0.baggage
    }

    /// One entry of the baggage.
    #[must_use]
    pub fn baggage_entry(&self, name: &str) -> Option<&str> {
        self.0.baggage.iter().find(|(key, _)| **key == *name).map(|(_, value)| &**value)
    }

    /// Names the whole business process; the trace id where nobody gave one.
    #[must_use]
    pub fn correlation_id(&self) -> Cow<'_, str> {
        match &self.0.correlation_id {
            Some(id) => Cow::Borrowed(id),
            None => Cow::Owned(self.0.trace.trace_id.to_string()),
        }
    }

    /// The message that directly caused this work.
    #[must_use]
    pub fn causation_id(&self) -> Option<&str> {
        self.0.causation_id.as_deref()
    }

    /// What makes a repeated call the same call.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&str> {
        self.0.idempotency_key.as_deref()
    }

    /// How many attempts at this work there were before: what a client said that calls again because
    /// the call before failed.
    #[must_use]
    pub fn previous_attempts(&self) -> u32 {
        self.0.previous_attempts
    }

    /// How much it matters that the work is done. It goes with calls, in the header `x-priority`; a
    /// message is in no hurry, so the work it starts begins as [`Priority::Default`] again.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.0.priority
    }

    fn change(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// With this deadline, or the one it has if that is earlier.
    #[must_use]
    pub fn with_deadline(self, deadline: Deadline) -> Self {
        let earlier = self.0.deadline.map_or(deadline, |own| own.min(deadline));
        self.change(|inner| inner.deadline = Some(earlier))
    }

    /// Without a deadline: events start a new one.
    #[must_use]
    pub fn without_deadline(self) -> Self {
        self.change(|inner| inner.deadline = None)
    }

    /// With another trace position.
    #[must_use]
    pub fn with_trace(self, trace: TraceContext) -> Self {
        self.change(|inner| inner.trace = trace)
    }

    /// With another entry of baggage.
    #[must_use]
    pub fn with_baggage(self, name: &str, value: &str) -> Self {
        self.change(|inner| {
            inner.baggage.retain(|(key, _)| **key != *name);
            inner.baggage.push((name.into(), value.into()));
        })
    }

    /// With this correlation id.
    #[must_use]
    pub fn with_correlation_id(self, id: &str) -> Self {
        self.change(|inner| inner.correlation_id = Some(id.into()))
    }

    /// Caused by this message.
    #[must_use]
    pub fn with_causation_id(self, id: &str) -> Self {
        self.change(|inner| inner.causation_id = Some(id.into()))
    }

    /// With this idempotency key.
    #[must_use]
    pub fn with_idempotency_key(self, key: &str) -> Self {
        self.change(|inner| inner.idempotency_key = Some(key.into()))
    }

    /// Without an idempotency key: one call's key must not mark the calls it makes.
    #[must_use]
    pub fn without_idempotency_key(self) -> Self {
        self.change(|inner| inner.idempotency_key = None)
    }

    /// Runs `work` with this context current, and ends it when the deadline passes.
    ///
    /// # Errors
    /// What `work` returns, or [`Status::deadline_exceeded`].
    ///
    /// # Cancel safety
    /// `work` is dropped at its current await point when the deadline passes.
    pub async fn run<T, E>(self, work: impl Future<Output = Result<T, E>>) -> Result<T, E>
    where
        E: From<Status>,
    {
        match self.deadline() {
            None => self.scope(work).await,
            Some(deadline) => match tokio::time::timeout_at(deadline, self.scope(work)).await {
                Ok(done) => done,
                Err(_) => Err(Status::deadline_exceeded().into()),
            },
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("trace", &self.0.trace)
            .field("correlation_id", &self.correlation_id())
            .field("causation_id", &self.causation_id())
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_only_ever_gets_earlier() {
        let now = Instant::now();
        let context = Context::root().with_deadline(now + Duration::from_secs(1));
        let later = context.clone().with_deadline(now + Duration::from_secs(9));
        assert_eq!(later.deadline(), context.deadline());
        assert_eq!(context.with_deadline(now).remaining(), Some(Duration::ZERO));
    }

    #[test]
    fn the_correlation_id_is_the_trace_id_until_one_is_given() {
        let context = Context::root();
        assert_eq!(context.correlation_id(), context.trace().trace_id.to_string());
        assert_eq!(context.with_correlation_id("order-7").correlation_id(), "order-7");
    }

    #[tokio::test(start_paused = true)]
    async fn work_past_its_deadline_is_dropped() {
        let context = Context::root().with_deadline(Instant::now() + Duration::from_secs(1));
        let outcome: Result<(), Status> = context.run(std::future::pending()).await;
        assert_eq!(outcome.unwrap_err().code(), crate::Code::DeadlineExceeded);
    }
}
