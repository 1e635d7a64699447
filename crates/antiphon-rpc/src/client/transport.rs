//! What connectrpc's client sends streams over.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use antiphon_core::{BoxFuture, Context, Status};
use antiphon_resilience::{Backoff, Permit, Refused, Verdict};
use bytes::Bytes;
use connectrpc::client::{ClientBody, ClientTransport};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::attempt::Attempt;
use super::attempts::{HELD_BACK, TOO_MANY};
use super::error::{CallError, FailedAttempt};
use super::exchange::{Fault, chain, check, fault, send};
use super::instance::CallBody;
use super::policy::MethodPolicy;
use super::remote::Remote;
use crate::service::MethodInfo;
use crate::status_wire;

/// How often a stream that never left is sent anew.
const SENDS_MAX: u32 = 5;

/// Sends a stream to an instance of the target. One that did not leave goes to another one; one that
/// left is never sent again, for it is not kept.
#[derive(Clone)]
pub(super) struct Transport {
    remote: Arc<Remote>,
    method: &'static MethodInfo,
    waits: bool,
    place: Option<u64>,
}

impl Transport {
    pub(super) fn new(
        remote: &Arc<Remote>,
        method: &'static MethodInfo,
        policy: &MethodPolicy,
        place: Option<u64>,
    ) -> Self {
        Self { remote: Arc::clone(remote), method, waits: policy.wait_for_ready, place }
    }

    async fn open(
        self,
        context: Context,
        request: http::Request<ClientBody>,
    ) -> Result<http::Response<Answers>, CallError> {
        let remote = &self.remote;
        let begun = Instant::now();
        let place = match remote.enter(context.deadline()).await {
            Ok(place) => place,
            Err(Refused::Full) => return Err(self.failed(TOO_MANY, Vec::new())),
            Err(Refused::Expired) => {
                return Err(self.failed("no time was left when it was its turn", Vec::new()));
            }
        };
        if !remote.throttle.try_admit(Instant::now()) {
            remote.metrics.throttled();
            return Err(self.failed(HELD_BACK, Vec::new()));
        }
        let (head, body) = request.into_parts();
        let mut request = http::Request::from_parts(head, CallBody::Stream(body));
        let mut tried = Vec::new();
        let mut causes = Vec::new();
        for sends in 0..SENDS_MAX {
            if sends > 1 {
                // An instance that has just lost its connection is known to have in a moment.
                tokio::time::sleep(Backoff::RETRY.wait(sends - 1, fastrand::f64())).await;
            }
            let wanted = remote.wanted(self.place, self.waits, false);
            let picked = remote.pool.pick_ready(&tried, &wanted).await;
            let picked = picked.map_err(|mut error| {
                error.target = remote.target().to_string();
                error
            })?;
            tried.push(Arc::clone(&picked.instance));
            let address = picked.instance.address().to_owned();
            let attempt = Attempt::begin(remote, self.method, &context, picked);
            let Some(mut attempt) = attempt else {
                continue;
            };
            let Some(sender) = attempt.turn().await else {
                attempt.end(Verdict::Neutral, None);
                continue;
            };
            super::exchange::address(&mut request, remote.authority_for(attempt.instance()));
            let cause = match send(sender, request).await {
                Ok(response) => {
                    attempt.instance().has_answered();
                    let is_over = ended_at_once(&response, &mut attempt);
                    let answers = |body| Answers { body, attempt, is_over, _place: place };
                    return Ok(response.map(answers));
                }
                Err((Fault::NotSent(cause), Some(unsent))) => {
                    attempt.end(Verdict::Neutral, None);
                    request = unsent;
                    causes.push(failed(address, begun, cause));
                    continue;
                }
                Err((Fault::Refused(cause), _)) => {
                    attempt.end(Verdict::Neutral, None);
                    cause
                }
                Err((Fault::Broken(cause) | Fault::NotSent(cause), _)) => {
                    attempt.end(Verdict::Failed, None);
                    cause
                }
                Err((Fault::Answered(status), _)) => status.to_string(),
            };
            causes.push(failed(address, begun, cause));
            return Err(self.failed("the stream could not be opened", causes));
        }
        Err(self.failed("no connection took the stream", causes))
    }

    fn failed(&self, problem: &'static str, attempts: Vec<FailedAttempt>) -> CallError {
        CallError { target: self.remote.target().to_string(), problem, attempts }
    }
}

/// Takes in an answer that is over with its head: servers refuse so, and proxies tell of their own
/// troubles. Whether it is.
fn ended_at_once(response: &http::Response<Incoming>, attempt: &mut Attempt) -> bool {
    match status_wire::from_trailers(response.headers()) {
        Some(Ok(())) => attempt.progressed(Verdict::Accepted, None),
        Some(Err(status)) => attempt.closed(&status),
        None => match check(response.status(), response.headers()) {
            Err(Fault::Answered(status)) => attempt.closed(&status),
            _ => return false,
        },
    }
    true
}

fn failed(instance: String, begun: Instant, cause: String) -> FailedAttempt {
    FailedAttempt { instance, took: begun.elapsed(), cause }
}

impl ClientTransport for Transport {
    type ResponseBody = Answers;
    type Error = CallError;

    fn send(
        &self,
        request: http::Request<ClientBody>,
    ) -> BoxFuture<'static, Result<http::Response<Answers>, CallError>> {
        // Taken here: connectrpc opens streams both ways in a task of its own, which has no context.
        Box::pin(self.clone().open(Context::current(), request))
    }
}

/// The answers of a stream: in flight until they end or are dropped. The first one tells how fast the
/// instance is, the trailers whether it works. Where they break off, trailers of our own say so: what
/// connectrpc makes of an error in a body is INTERNAL, which blames the service.
pub(super) struct Answers {
    body: Incoming,
    attempt: Attempt,
    /// Its status is known.
    is_over: bool,
    _place: Permit,
}

impl Body for Answers {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { body, attempt, is_over, .. } = self.get_mut();
        let frame = match Pin::new(body).poll_frame(task) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => {
                *is_over = true;
                // Servers keep the deadline, too, and their end of the stream may be heard first.
                let status = if attempt.context().is_expired() {
                    Status::deadline_exceeded()
                } else {
                    Status::unavailable(format!("the stream broke off: {}", chain(&error)))
                };
                match fault(&error) {
                    Fault::Refused(_) => attempt.progressed(Verdict::Neutral, None),
                    _ => attempt.closed(&status),
                }
                let mut trailers = HeaderMap::new();
                status_wire::to_trailers(&status, &mut trailers);
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            Poll::Ready(None) => {
                if !std::mem::replace(is_over, true) {
                    // It ended without a status.
                    attempt.progressed(Verdict::Failed, None);
                }
                return Poll::Ready(None);
            }
            Poll::Pending => return Poll::Pending,
        };
        if let Some(trailers) = frame.trailers_ref() {
            *is_over = true;
            match status_wire::from_trailers(trailers) {
                Some(Ok(())) => attempt.progressed(Verdict::Accepted, None),
                Some(Err(status)) => attempt.closed(&status),
                None => attempt.progressed(Verdict::Failed, None),
            }
        } else if !*is_over {
            attempt.progressed(Verdict::Accepted, None);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
