//! The attempts of one unary call: whom each goes to, whether there is another.
//!
//! What to do after a failure is decided by [`RetryPolicy`](antiphon_resilience::RetryPolicy); here
//! it is carried out. The message is encoded once, and the deadline of the call is over all of it:
//! attempts, waits between them, and waits for an instance.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use antiphon_core::{Code, Context, Retry, Status};
use antiphon_resilience::retry::{Decision, Failure, Pushback, Stop};
use antiphon_resilience::{Attempts, Origin, Permit, Refused, Verdict};
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

/// Why the throttle lets nothing through.
pub(super) const HELD_BACK: &str =
    "the client holds calls back, since most of the last ones failed";

/// A call under way.
pub(super) struct Call<'a> {
    pub(super) remote: &'a Arc<Remote>,
    pub(super) method: &'static MethodInfo,
    pub(super) policy: &'a MethodPolicy,
    pub(super) context: &'a Context,
    /// In its frame.
    pub(super) message: Bytes,
    /// Where it belongs under consistent hashing.
    pub(super) place: Option<u64>,
}

/// What has become of a call so far.
#[derive(Default)]
struct Log {
    /// The instances that it was sent to.
    tried: Vec<Arc<Instance>>,
    failed: Vec<FailedAttempt>,
}

/// What ends an attempt without an answer.
enum Ended {
    /// Another attempt may help.
    Fault(Fault),
    /// Nobody can be reached.
    Unreachable(CallError),
    /// The throttle let nothing through.
    Throttled,
}

/// One of the attempts of a call that go on side by side.
#[derive(Default)]
struct Side {
    instance: OnceLock<Arc<Instance>>,
    overtaken: Arc<AtomicBool>,
}

impl Call<'_> {
    /// Makes attempts until one succeeds or another would not help.
    pub(super) async fn run(self) -> Result<Bytes, Status> {
        let _place = self.enter().await?;
        let keyed = self.context.idempotency_key().is_some();
        let permission =
            if keyed { self.policy.permission_with_key } else { self.policy.permission };
        let mut attempts = Attempts::new(permission, self.context.previous_attempts());
        let budget = &self.remote.budget;
        if attempts.previous() == 0 {
            budget.count_call(Instant::now());
        }
        let mut log = Log::default();
        loop {
            let begun = Instant::now();
            let ended = match self.attempt_hedged(attempts.previous(), &mut log).await {
                Ok(answer) => return Ok(answer),
                Err(ended) => ended,
            };
            let fault = match ended {
                Ended::Fault(fault) => fault,
                Ended::Unreachable(error) => return Err(self.unreachable(error, log)),
                Ended::Throttled => return Err(self.throttled(log)),
            };
            log.note(&fault, begun.elapsed());
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
                    return Err(self.give_up(stop, fault, log));
                }
            }
        }
    }

    /// A place among the calls to the target.
    async fn enter(&self) -> Result<Permit, Status> {
        self.remote.enter(self.context.deadline()).await.map_err(|refused| match refused {
            Refused::Full => {
                let message = format!("too many calls to {} at once", self.method.service);
                Status::unavailable(message).with_source(refused).with_retry(Retry::Never)
            }
            Refused::Expired => Status::deadline_exceeded().with_source(refused),
        })
    }

    /// One attempt, and where that takes longer than nearly all do a second one beside it (gRFC A6,
    /// "Hedging"; Dean, Barroso, "The tail at scale", 2013). The first good answer counts.
    async fn attempt_hedged(&self, previous: u32, log: &mut Log) -> Result<Bytes, Ended> {
        let remote = self.remote;
        let held_back = || remote.throttle.drop_part(Instant::now());
        let hedge = self.policy.hedge.as_ref().filter(|_| previous == 0);
        let hedged =
            hedge.and_then(|hedge| Some((hedge, hedge.begin(Instant::now(), held_back())?)));
        let first_side = Side::default();
        let outcome = {
            let mut first = std::pin::pin!(self.attempt(previous, &log.tried, &first_side, false));
            match hedged {
                None => first.await,
                Some((hedge, delay)) => match tokio::time::timeout(delay, &mut first).await {
                    Ok(outcome) => outcome,
                    Err(_) if hedge.try_send(Instant::now(), held_back()) => {
                        remote.metrics.hedged();
                        // Boxed, for it is rare and would make every call's future twice as large.
                        Box::pin(self.beside(first, &first_side)).await
                    }
                    Err(_) => first.await,
                },
            }
        };
        log.tried.extend(first_side.instance.into_inner());
        outcome
    }

    /// Makes a second attempt beside the first.
    async fn beside<F>(&self, mut first: Pin<&mut F>, first_side: &Side) -> Result<Bytes, Ended>
    where
        F: Future<Output = Result<Bytes, Ended>>,
    {
        let second_side = Side::default();
        let tried: Vec<_> = first_side.instance.get().cloned().into_iter().collect();
        let mut second = std::pin::pin!(self.attempt(1, &tried, &second_side, true));
        tokio::select! {
            outcome = &mut first => match outcome {
                Ok(answer) => {
                    second_side.overtaken.store(true, Relaxed);
                    Ok(answer)
                }
                Err(ended) => second.await.map_err(|_| ended),
            },
            outcome = &mut second => match outcome {
                Ok(answer) => {
                    first_side.overtaken.store(true, Relaxed);
                    Ok(answer)
                }
                Err(_) => first.await,
            },
        }
    }

    /// One attempt. `elsewhere`: not at an instance that was tried.
    async fn attempt(
        &self,
        previous: u32,
        tried: &[Arc<Instance>],
        side: &Side,
        elsewhere: bool,
    ) -> Result<Bytes, Ended> {
        let remote = self.remote;
        if !remote.throttle.try_admit(Instant::now()) {
            return Err(Ended::Throttled);
        }
        let wanted = remote.wanted(self.place, self.policy.wait_for_ready);
        let picked = remote.pool.pick_ready(tried, &wanted).await;
        let picked = picked.map_err(Ended::Unreachable)?;
        if elsewhere && tried.iter().any(|one| Arc::ptr_eq(one, &picked.instance)) {
            return Err(Ended::Fault(Fault::NotSent("there is no other instance".into())));
        }
        let _ = side.instance.set(Arc::clone(&picked.instance));
        let attempt = Attempt::begin(remote, self.method, self.context, picked);
        let Some((mut attempt, sender)) = attempt else {
            return Err(Ended::Fault(Fault::NotSent("its connection was just lost".into())));
        };
        if self.policy.hedge.is_some() {
            attempt.races(Arc::clone(&side.overtaken));
        }
        let body = CallBody::Whole(Some(self.message.clone()));
        let authority = remote.authority_for(attempt.instance());
        let mut request = request(authority, self.method.path, attempt.context().remaining(), body);
        let headers = request.headers_mut();
        inject(attempt.context(), headers);
        if previous > 0 {
            headers.insert(PREVIOUS_ATTEMPTS.clone(), HeaderValue::from(previous));
        }
        let begun = Instant::now();
        let answer = exchange(sender, request, remote.settings.message_bytes_max).await;
        let (verdict, pushback) = verdict(&answer);
        attempt.end(verdict, pushback);
        if let Some(hedge) = &self.policy.hedge {
            hedge.record(begun.elapsed());
            if let Some(wait) = pushback {
                hedge.pause(Instant::now() + wait);
            }
        }
        answer.map_err(Ended::Fault)
    }

    /// What the caller is told after the last attempt: the service's own words, or that it broke off.
    fn give_up(&self, stop: Stop, fault: Fault, log: Log) -> Status {
        let error = self.error(problem(stop), log);
        let status = match fault {
            // Servers keep the deadline, too, and what they end then may be heard before our own time
            // is up.
            Fault::Answered(status)
                if stop == Stop::Expired && status.code() == Code::Cancelled =>
            {
                Status::deadline_exceeded().with_source(error)
            }
            Fault::Answered(status) if error.attempts.len() == 1 => status,
            Fault::Answered(status) => status.with_source(error),
            _ if stop == Stop::Expired => Status::deadline_exceeded().with_source(error),
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

    fn unreachable(&self, error: CallError, mut log: Log) -> Status {
        log.failed.extend(error.attempts);
        Status::unavailable(format!("{} cannot be reached", self.method.service))
            .with_source(self.error(error.problem, log))
    }

    fn throttled(&self, log: Log) -> Status {
        self.remote.metrics.throttled();
        Status::unavailable(format!("{} fails; calls are held back", self.method.service))
            .with_source(self.error(HELD_BACK, log))
            .with_retry(Retry::Never)
    }

    fn error(&self, problem: &'static str, log: Log) -> CallError {
        let target = self.remote.target().to_string();
        CallError { target, problem, attempts: log.failed }
    }
}

impl Log {
    fn note(&mut self, fault: &Fault, took: Duration) {
        let instance = self.tried.last().map_or("none", |instance| instance.address());
        let cause = match fault {
            Fault::NotSent(cause) | Fault::Refused(cause) | Fault::Broken(cause) => cause.clone(),
            Fault::Answered(status) => status.to_string(),
        };
        self.failed.push(FailedAttempt { instance: instance.to_owned(), took, cause });
    }
}

/// What the end of an attempt says about the instance, and how long that asks to be left alone.
fn verdict(answer: &Result<Bytes, Fault>) -> (Verdict, Option<Duration>) {
    match answer {
        Ok(_) => (Verdict::Accepted, None),
        Err(Fault::NotSent(_) | Fault::Refused(_)) => (Verdict::Neutral, None),
        Err(Fault::Broken(_)) => (Verdict::Failed, None),
        Err(Fault::Answered(status)) => {
            (Verdict::of(Some(status.code()), Origin::Target), status.retry_after())
        }
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
