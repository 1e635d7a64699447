//! The attempts of one unary call: whom each goes to, whether there is another.
//!
//! What to do after a failure is decided by [`RetryPolicy`](antiphon_resilience::RetryPolicy); here
//! it is carried out. The message is encoded once, and the deadline of the call is over all of it:
//! attempts, waits between them, and waits for an instance.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Code, Context, Retry, Status};
use antiphon_resilience::retry::{Decision, Failure, Pushback, Stop};
use antiphon_resilience::{Attempts, Origin, Verdict};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use tokio::time::Instant;

use super::attempt::Attempt;
use super::error::{CallError, FailedAttempt};
use super::exchange::{Fault, exchange, request};
use super::instance::{CallBody, Instance};
use super::policy::MethodPolicy;
use super::remote::Remote;
use crate::headers::inject;
use crate::service::MethodInfo;

/// How many attempts came before this one, those of the callers before us included (gRFC A6).
static PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// A call under way.
pub(super) struct Call<'a> {
    pub(super) remote: &'a Arc<Remote>,
    pub(super) method: &'static MethodInfo,
    pub(super) policy: &'a MethodPolicy,
    pub(super) context: &'a Context,
    /// In its frame.
    pub(super) message: Bytes,
    /// The instances that it was sent to.
    tried: Vec<Arc<Instance>>,
    /// What became of the attempts, for the error.
    failed: Vec<FailedAttempt>,
}

/// What stops a call.
enum Ended {
    /// Another attempt may help.
    Fault(Fault),
    /// Nobody can be reached.
    Unreachable(CallError),
    /// The throttle let nothing through.
    Throttled,
}

impl<'a> Call<'a> {
    pub(super) const fn new(
        remote: &'a Arc<Remote>,
        method: &'static MethodInfo,
        policy: &'a MethodPolicy,
        context: &'a Context,
        message: Bytes,
    ) -> Self {
        Self { remote, method, policy, context, message, tried: Vec::new(), failed: Vec::new() }
    }

    /// Makes attempts until one succeeds or another would not help.
    pub(super) async fn run(mut self) -> Result<Bytes, Status> {
        let keyed = self.context.idempotency_key().is_some();
        let permission =
            if keyed { self.policy.permission_with_key } else { self.policy.permission };
        let mut attempts = Attempts::new(permission, self.context.previous_attempts());
        let budget = &self.remote.budget;
        if attempts.previous() == 0 {
            budget.count_call(Instant::now());
        }
        loop {
            let begun = Instant::now();
            let ended = match self.attempt(&attempts).await {
                Ok(answer) => return Ok(answer),
                Err(ended) => ended,
            };
            let fault = match ended {
                Ended::Fault(fault) => fault,
                Ended::Unreachable(error) => return Err(self.unreachable(error)),
                Ended::Throttled => return Err(self.throttled()),
            };
            self.note(&fault, begun.elapsed());
            let remaining = self.context.remaining().unwrap_or(Duration::MAX);
            let random = fastrand::f64();
            let decision =
                self.policy.retry.decide(&mut attempts, failure(&fault), remaining, random, || {
                    budget.try_spend(Instant::now())
                });
            match decision {
                Decision::Retry { after, transparent } => {
                    self.remote.metrics.retried(transparent);
                    if !after.is_zero() {
                        tokio::time::sleep(after).await;
                    }
                }
                Decision::Stop(stop) => {
                    self.remote.metrics.stopped(stop);
                    return Err(self.give_up(stop, fault));
                }
            }
        }
    }

    /// One attempt.
    async fn attempt(&mut self, attempts: &Attempts) -> Result<Bytes, Ended> {
        let remote = self.remote;
        if !remote.throttle.try_admit(Instant::now()) {
            return Err(Ended::Throttled);
        }
        let waits = self.policy.wait_for_ready;
        let picked = remote.pool.pick_ready(&self.tried, None, waits).await;
        let picked = picked.map_err(Ended::Unreachable)?;
        self.tried.push(Arc::clone(&picked.instance));
        let Some(mut attempt) = Attempt::begin(remote, self.method, self.context, picked) else {
            return Err(Ended::Fault(Fault::NotSent("its connection was just lost".into())));
        };
        let body = CallBody::Whole(Some(self.message.clone()));
        let authority = remote.authority_for(attempt.instance());
        let mut request = request(authority, self.method.path, attempt.context().remaining(), body);
        let headers = request.headers_mut();
        inject(attempt.context(), headers);
        if attempts.previous() > 0 {
            headers.insert(PREVIOUS_ATTEMPTS.clone(), HeaderValue::from(attempts.previous()));
        }
        let answer = exchange(attempt.sender(), request, remote.settings.message_bytes_max).await;
        match &answer {
            Ok(_) => attempt.end(Verdict::Accepted, None),
            Err(Fault::NotSent(_)) => attempt.end(Verdict::Neutral, None),
            Err(Fault::Refused(_)) => attempt.end(Verdict::Neutral, None),
            Err(Fault::Broken(_)) => attempt.end(Verdict::Failed, None),
            Err(Fault::Answered(status)) => {
                let verdict = Verdict::of(Some(status.code()), Origin::Target);
                attempt.end(verdict, status.retry_after());
            }
        }
        answer.map_err(Ended::Fault)
    }

    fn note(&mut self, fault: &Fault, took: Duration) {
        let instance = self.tried.last().map_or("none", |instance| instance.address());
        let cause = match fault {
            Fault::NotSent(cause) | Fault::Refused(cause) | Fault::Broken(cause) => cause.clone(),
            Fault::Answered(status) => status.to_string(),
        };
        self.failed.push(FailedAttempt { instance: instance.to_owned(), took, cause });
    }

    /// What the caller is told after the last attempt: the service's own words, or that it broke off.
    fn give_up(self, stop: Stop, fault: Fault) -> Status {
        let error = CallError {
            target: self.remote.target().to_string(),
            problem: problem(stop),
            attempts: self.failed,
        };
        let status = match fault {
            Fault::Answered(status) if error.attempts.len() == 1 => status,
            Fault::Answered(status) => status.with_source(error),
            Fault::NotSent(_) | Fault::Refused(_) | Fault::Broken(_) => {
                let message = format!("{} broke off", self.method.service);
                Status::unavailable(message).with_source(error)
            }
        };
        // Whoever called us must not multiply what was tried here already.
        match stop.pushback() {
            Some(Pushback::Never) => status.with_retry(Retry::Never),
            Some(Pushback::After(wait)) => status.with_retry(Retry::After(wait)),
            None => status,
        }
    }

    fn unreachable(self, mut error: CallError) -> Status {
        error.target = self.remote.target().to_string();
        let mut attempts = self.failed;
        attempts.append(&mut error.attempts);
        error.attempts = attempts;
        Status::unavailable(format!("{} cannot be reached", self.method.service)).with_source(error)
    }

    fn throttled(self) -> Status {
        self.remote.metrics.throttled();
        let error = CallError {
            target: self.remote.target().to_string(),
            problem: "the client holds calls back, since most of the last ones failed",
            attempts: self.failed,
        };
        Status::unavailable(format!("{} fails; calls are held back", self.method.service))
            .with_source(error)
            .with_retry(Retry::Never)
    }
}

/// What a fault is to the policy.
fn failure(fault: &Fault) -> Failure {
    match fault {
        Fault::NotSent(_) => Failure::NotSent,
        Fault::Refused(_) => Failure::Refused,
        Fault::Broken(_) => Failure::Answered(Code::Unavailable, None),
        Fault::Answered(status) => {
            let pushback = match status.retry_said() {
                Some(Retry::After(wait)) => Some(Pushback::After(wait)),
                Some(Retry::Never) => Some(Pushback::Never),
                _ => None,
            };
            Failure::Answered(status.code(), pushback)
        }
    }
}

const fn problem(stop: Stop) -> &'static str {
    match stop {
        Stop::Expired | Stop::NoTime => "no time is left for another attempt",
        Stop::NotRetryable => "trying again could do it twice, or would not help",
        Stop::AttemptsUsed => "all attempts failed",
        Stop::BudgetSpent => "too many calls are being tried again already",
        Stop::PushedBack => "the server asked for no further attempt",
        Stop::CallerRetries => "the caller makes attempts of its own",
        Stop::Rejected => "a policy of this process refused the attempt",
        Stop::Committed => "the answer had begun",
        Stop::ReplayOverflow => "the request is too large to be sent again",
    }
}
