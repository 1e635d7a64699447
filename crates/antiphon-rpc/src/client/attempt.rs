//! One attempt under way at an instance: it is counted, timed and traced until it ends, however it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use antiphon_core::{Code, Context, Status};
use antiphon_resilience::Verdict;
use antiphon_resilience::balance::InFlight;
use antiphon_telemetry::{Span, SpanKind};
use hyper::client::conn::http2::SendRequest;
use tokio::time::Instant;

use super::instance::{CallBody, Instance, Lease};
use super::pool::Picked;
use super::remote::Remote;
use crate::service::MethodInfo;

/// An attempt under way.
///
/// Dropped without [`Attempt::end`] its deadline has passed, which is held against the instance, or
/// its caller has gone away, which is not.
#[derive(Debug)]
pub(super) struct Attempt {
    remote: Arc<Remote>,
    picked: Picked,
    in_flight: InFlight<Arc<Instance>>,
    lease: Lease,
    /// Until it is taken, where there was a stream for it at once.
    sender: Option<SendRequest<CallBody>>,
    context: Context,
    span: Span,
    /// Whether another attempt of the same call was faster.
    overtaken: Option<Arc<AtomicBool>>,
    is_over: bool,
}

impl Attempt {
    /// Begins an attempt; `None` when the instance has just lost its last connection.
    pub(super) fn begin(
        remote: &Arc<Remote>,
        method: &MethodInfo,
        caller: &Context,
        picked: Picked,
    ) -> Option<Self> {
        let instance = Arc::clone(&picked.instance);
        let Some((lease, sender)) = instance.lease() else {
            remote.pool.give_back(picked);
            return None;
        };
        let name = &method.path[1..];
        let (context, mut span) = remote.telemetry.span(SpanKind::Client, name, caller, &[]);
        if span.is_recording() {
            span.set("server.address", instance.address());
        }
        let in_flight = InFlight::begin(instance, Instant::now());
        in_flight.candidate().count_pick();
        let remote = Arc::clone(remote);
        Some(Self {
            remote,
            picked,
            in_flight,
            lease,
            sender,
            context,
            span,
            overtaken: None,
            is_over: false,
        })
    }

    /// What its request is sent with, once there is a stream for it; `None` when the instance lost its
    /// last connection before.
    ///
    /// # Cancel safety
    /// Nothing of it was sent.
    pub(super) async fn turn(&mut self) -> Option<SendRequest<CallBody>> {
        match self.sender.take() {
            Some(sender) => Some(sender),
            None => self.picked.instance.turn(&mut self.lease).await,
        }
    }

    /// Another attempt goes on beside it: one of them is overtaken.
    pub(super) fn races(&mut self, overtaken: Arc<AtomicBool>) {
        self.overtaken = Some(overtaken);
    }

    pub(super) fn instance(&self) -> &Arc<Instance> {
        &self.picked.instance
    }

    /// The context of the attempt: its span is the current one.
    pub(super) const fn context(&self) -> &Context {
        &self.context
    }

    /// It has ended, or, for a stream, begun to be answered. `pushback`: how long the server asks to
    /// be left alone.
    pub(super) fn end(&mut self, verdict: Verdict, pushback: Option<Duration>) {
        self.is_over = true;
        let now = Instant::now();
        match verdict {
            Verdict::Accepted => self.in_flight.answered(now),
            Verdict::Failed => self.in_flight.failed(now, pushback),
            Verdict::Shed => self.in_flight.shed(now, pushback),
            // It takes calls, but not now.
            Verdict::Neutral if pushback.is_some() => self.in_flight.shed(now, pushback),
            Verdict::Neutral => {}
        }
        self.remote.throttle.record(verdict, now);
        self.remote.pool.judge(&mut self.picked, verdict, now);
        self.remote.metrics.attempted(verdict);
        let error = match verdict {
            Verdict::Failed => "failed",
            Verdict::Shed => "shed",
            Verdict::Accepted | Verdict::Neutral => return,
        };
        if self.span.is_recording() {
            self.span.set("error.type", error);
        }
    }

    /// A stream gave a sign: the first one counts, and a failure after it.
    pub(super) fn progressed(&mut self, verdict: Verdict, pushback: Option<Duration>) {
        if !self.is_over || verdict == Verdict::Failed {
            self.end(verdict, pushback);
        }
    }

    /// The stream has ended with this status. Where it was answered before, that its time was over
    /// says nothing about the instance: it may have been meant to go on until then.
    pub(super) fn closed(&mut self, status: &Status) {
        if !(self.is_over && status.code() == Code::DeadlineExceeded) {
            self.progressed(Verdict::of_answer(status), status.retry_after());
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if self.overtaken.as_ref().is_some_and(|overtaken| overtaken.load(Relaxed)) {
            self.in_flight.overtaken(Instant::now());
        }
        let expired = self.context.is_expired();
        self.end(if expired { Verdict::Failed } else { Verdict::Neutral }, None);
    }
}
