//! One call on its way through the layers.

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use antiphon_core::{BoxFuture, Code, Context, Deadline, Retry, Status};
use antiphon_resilience::Outcome;
use antiphon_telemetry::Span;
use futures_util::Stream;
use tokio::time::{Instant, Sleep};

use super::admission::{Places, Refused};
use super::layers::{Calls, Protocol};
use super::methods::{Method, procedure};
use crate::service::Streaming;

/// A call that was let in. It is recorded when it ends, and as CANCELLED when it is dropped before.
#[derive(Debug)]
pub struct Call {
    calls: Calls,
    method: Arc<Method>,
    protocol: Protocol,
    context: Context,
    span: Span,
    begun: Instant,
    /// How long it waited for the caller to send the request, and for what the rate limits say: no
    /// time of the method.
    waited: Duration,
    /// Since when it waits for the caller.
    waits_since: Option<Instant>,
    /// The request is there, and the method works on it.
    is_whole: bool,
    /// It was not let in after all.
    turned_away: bool,
    /// Until it ends.
    places: Option<Places>,
}

impl Call {
    pub(super) fn new(
        calls: Calls,
        method: Arc<Method>,
        protocol: Protocol,
        context: Context,
        span: Span,
        begun: Instant,
        places: Places,
    ) -> Self {
        Self {
            calls,
            method,
            protocol,
            context,
            span,
            begun,
            waited: Duration::ZERO,
            waits_since: None,
            is_whole: false,
            turned_away: false,
            places: Some(places),
        }
    }

    /// What is called.
    #[must_use]
    pub fn method(&self) -> &Arc<Method> {
        &self.method
    }

    /// The context of the call, with its deadline.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Runs `work` to a single answer (decoding, the handler, encoding) and records how it ended:
    /// within the context of the call, until its deadline, panics caught. The request is there.
    ///
    /// # Errors
    /// What `work` returns, DEADLINE_EXCEEDED, or INTERNAL when it panics.
    ///
    /// # Cancel safety
    /// When the future is dropped, the call is recorded as CANCELLED and `work` is dropped.
    pub async fn answer<T>(
        mut self,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let outcome = match self.decided().await {
            Ok(()) => {
                self.begins();
                self.run(pin!(work)).await
            }
            Err(status) => Err(status),
        };
        self.ended(outcome)
    }

    /// Runs `reading`, which yields the request when the caller has sent all of it.
    ///
    /// # Errors
    /// What `reading` returns, or as for [`Self::answer`]; the call has not ended.
    pub(crate) async fn reads<T>(
        &mut self,
        reading: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        self.decided().await?;
        let mut reading = pin!(reading);
        let mut since = None;
        let noted = std::future::poll_fn(|task| {
            let read = reading.as_mut().poll(task);
            if read.is_pending() && since.is_none() {
                since = Some(Instant::now());
            }
            read
        });
        let read = self.run(pin!(noted)).await;
        self.waits_since = since;
        self.is_read();
        read
    }

    /// The caller has yet to send a part of the request.
    pub(super) fn waits_for_caller(&mut self) {
        self.waits_since.get_or_insert_with(Instant::now);
    }

    /// The caller has sent what was waited for.
    pub(super) fn is_read(&mut self) {
        if let Some(since) = self.waits_since.take() {
            self.waited += since.elapsed();
        }
    }

    /// The method begins to work: the request is there.
    pub(super) fn begins(&mut self) {
        self.is_whole = true;
    }

    /// Waits for what rate limits say that other instances share, where it is not known yet.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED above a limit, DEADLINE_EXCEEDED.
    pub(super) async fn decided(&mut self) -> Result<(), Status> {
        let Some(rates) = self.places.as_mut().and_then(|places| places.rates.take()) else {
            return Ok(());
        };
        let said = self.run(pin!(async { Ok(rates.await) })).await;
        self.waited = self.begun.elapsed();
        said?.map_err(|after| {
            self.turned_away = true;
            let refused = Refused::above_rate(after);
            self.calls.turned_away(&self.method, self.protocol, refused)
        })
    }

    /// Records how the call ended, and gives that back.
    pub(super) fn ended<T>(mut self, outcome: Result<T, Status>) -> Result<T, Status> {
        self.end(outcome.as_ref().err());
        outcome
    }

    /// Runs `work` to a stream of answers, which goes on under the same layers; the call is recorded
    /// when the stream ends or is dropped.
    ///
    /// # Errors
    /// As for [`Self::answer`].
    ///
    /// # Cancel safety
    /// When the future is dropped, the call is recorded as CANCELLED and `work` is dropped.
    pub async fn open<T>(
        mut self,
        work: impl Future<Output = Result<Streaming<T>, Status>>,
    ) -> Result<CallStream<T>, Status> {
        let opened = match self.decided().await {
            Ok(()) => {
                self.begins();
                self.run(pin!(work)).await
            }
            Err(status) => Err(status),
        };
        match opened {
            Ok(stream) => Ok(CallStream::new(self, stream)),
            Err(status) => Err(self.fail(status)),
        }
    }

    /// Records that the call failed, and gives the status back.
    pub fn fail(mut self, status: Status) -> Status {
        self.end(Some(&status));
        status
    }

    /// Runs `work` in the context of the call, until its deadline, panics caught.
    pub(super) fn run<'a, F>(&'a self, work: Pin<&'a mut F>) -> Run<'a, F> {
        Run { call: self, deadline: self.context.deadline(), timer: None, work }
    }

    /// Polls a part of the call in its context; a panic becomes INTERNAL.
    fn poll_part<T>(&self, part: impl FnOnce() -> T) -> Result<T, Status> {
        let caught = self.context.sync_scope(|| catch_unwind(AssertUnwindSafe(part)));
        caught.map_err(|panic| {
            self.calls.metrics().panics.inc();
            Status::internal(format!("the handler panicked: {}", panic_text(&*panic)))
        })
    }

    fn end(&mut self, failed: Option<&Status>) {
        let Some(places) = self.places.take() else {
            return;
        };
        let now = Instant::now();
        let took = now.saturating_duration_since(self.begun);
        let code = failed.map(Status::code);
        // What the caller did not send is nothing that the method did.
        let outcome = if self.is_whole { outcome(code) } else { Outcome::Ignored };
        places.leave(&self.method, took.saturating_sub(self.waited), now, outcome);
        self.method.metrics.record(self.protocol, code, took, &self.context);
        self.calls.left(&self.method);
        if let Some(status) = failed {
            self.span.fail(status);
        }
        if !self.turned_away {
            self.log(failed, took);
        }
    }

    /// The access log: one line per call, loud when somebody should look.
    fn log(&self, failed: Option<&Status>, took: Duration) {
        let slow = took >= self.calls.settings().slow_call;
        if failed.is_none() && !slow && !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let rpc = procedure(self.method.info.path);
        let protocol = self.protocol.name();
        let code = failed.map_or("OK", |status| status.code().name());
        // To the microsecond: more digits are noise.
        let duration_ms = (took.as_secs_f64() * 1_000_000.0).round() / 1_000.0;
        self.context.sync_scope(|| match failed {
            Some(status) if status.source().is_some() => {
                let cause = chain(status);
                tracing::error!(rpc, protocol, code, duration_ms, %status, cause, "call failed");
            }
            Some(status) if is_servers_fault(status.code()) => {
                tracing::warn!(rpc, protocol, code, duration_ms, %status, "call failed");
            }
            Some(status) => {
                tracing::info!(rpc, protocol, code, duration_ms, %status, "call refused");
            }
            None if slow => tracing::info!(rpc, protocol, code, duration_ms, "slow call"),
            None => tracing::debug!(rpc, protocol, code, duration_ms, "call"),
        });
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.places.is_some() {
            self.end(Some(&Status::new(Code::Cancelled, "the caller went away")));
        }
    }
}

/// What the end of a call says about the load of its method.
const fn outcome(code: Option<Code>) -> Outcome {
    match code {
        Some(Code::DeadlineExceeded) => Outcome::TimedOut,
        Some(Code::Cancelled) => Outcome::Ignored,
        // Mostly refused before there was any work. If that counted, a client that sends nonsense would
        // teach the limit that the method takes no time, and all others would look slow beside it.
        Some(
            Code::InvalidArgument
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::Unimplemented,
        ) => Outcome::Ignored,
        _ => Outcome::Done,
    }
}

/// The codes that mean that something is wrong with the server and not with the call (OpenTelemetry,
/// gRPC server spans).
const fn is_servers_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The sources of an error, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut next = error.source();
    while let Some(source) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Work in the context of a call, until its deadline.
pub(super) struct Run<'a, F> {
    call: &'a Call,
    deadline: Option<Deadline>,
    // Most handlers answer at once; then no timer is ever set.
    timer: Option<Pin<Box<Sleep>>>,
    work: Pin<&'a mut F>,
}

impl<T, F: Future<Output = Result<T, Status>>> Future for Run<'_, F> {
    type Output = Result<T, Status>;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        // A call whose time went by while it waited for the processor is not begun any more.
        if this.timer.is_none() && this.deadline.is_some_and(|at| at <= Instant::now()) {
            return Poll::Ready(Err(Status::deadline_exceeded()));
        }
        let work = this.work.as_mut();
        match this.call.poll_part(|| work.poll(task)) {
            Ok(Poll::Pending) => {}
            Ok(done) => return done,
            Err(panicked) => return Poll::Ready(Err(panicked)),
        }
        let Some(deadline) = this.deadline else {
            return Poll::Pending;
        };
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        timer.as_mut().poll(task).map(|()| Err(Status::deadline_exceeded()))
    }
}

/// The answers of a call, one after the other.
///
/// Ends with DEADLINE_EXCEEDED when the time of the call is over, with INTERNAL when the handler
/// panics, and with UNAVAILABLE when the server must stop.
pub struct CallStream<T> {
    call: Call,
    answers: Streaming<T>,
    timer: Option<Pin<Box<Sleep>>>,
    server_ends: BoxFuture<'static, ()>,
    over: bool,
}

impl<T> CallStream<T> {
    fn new(call: Call, answers: Streaming<T>) -> Self {
        let timer = call.context.deadline().map(|at| Box::pin(tokio::time::sleep_until(at)));
        let mut ending = call.calls.ending();
        let server_ends = Box::pin(async move {
            // The sender lives as long as any call.
            let _ = ending.wait_for(|ending| *ending).await;
        });
        Self { call, answers, timer, server_ends, over: false }
    }

    /// What has been called.
    #[must_use]
    pub fn call(&self) -> &Call {
        &self.call
    }

    fn finish(&mut self, status: Option<Status>) -> Poll<Option<Result<T, Status>>> {
        self.over = true;
        self.call.end(status.as_ref());
        Poll::Ready(status.map(Err))
    }
}

impl<T> Stream for CallStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        // Both before the answers, so that a stream that always has one ready ends as well.
        if let Some(timer) = &mut this.timer
            && timer.as_mut().poll(task).is_ready()
        {
            return this.finish(Some(Status::deadline_exceeded()));
        }
        if this.call.calls.is_ending() {
            return this.finish(Some(stopping()));
        }
        let answers = &mut this.answers;
        match this.call.poll_part(|| Pin::new(answers).poll_next(task)) {
            Ok(Poll::Ready(Some(Ok(answer)))) => return Poll::Ready(Some(Ok(answer))),
            Ok(Poll::Ready(Some(Err(status)))) | Err(status) => return this.finish(Some(status)),
            Ok(Poll::Ready(None)) => return this.finish(None),
            Ok(Poll::Pending) => {}
        }
        if this.server_ends.as_mut().poll(task).is_ready() {
            return this.finish(Some(stopping()));
        }
        Poll::Pending
    }
}

fn stopping() -> Status {
    Status::unavailable("the server is stopping")
        .with_reason("STOPPING", "antiphon")
        .with_retry(Retry::Outage)
}

impl<T> std::fmt::Debug for CallStream<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CallStream").field(&self.call).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_were_worked_on_teach_the_limits() {
        for code in
            [None, Some(Code::NotFound), Some(Code::FailedPrecondition), Some(Code::Internal)]
        {
            assert_eq!(outcome(code), Outcome::Done, "{code:?}");
        }
        for code in [Code::Cancelled, Code::InvalidArgument, Code::Unauthenticated] {
            assert_eq!(outcome(Some(code)), Outcome::Ignored, "{code:?}");
        }
        assert_eq!(outcome(Some(Code::DeadlineExceeded)), Outcome::TimedOut);
    }
}
