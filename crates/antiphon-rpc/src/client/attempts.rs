//! The attempts of one unary call: whom each goes to, whether there is another.
//!
//! What to do after a failure is decided by [`RetryPolicy`](antiphon_resilience::RetryPolicy); here
//! it is carried out. The message is encoded once, and the deadline of the call is over all of it:
//! attempts, waits between them, and waits for an instance.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use antiphon_core::{Code, Context, Retry, Status};
use antiphon_resilience::retry::{Decision, Failure, Permission, Pushback, Stop};
use antiphon_resilience::{Attempts, Hedge, Permit, Refused, Verdict};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use tokio::time::Instant;

use super::attempt::Attempt;
use super::error::{CallError, FailedAttempt};
use super::exchange::{Fault, exchange, request};
use super::instance::{CallBody, Instance};
use super::log::{Kept, Log, Side, Told};
use super::policy::MethodPolicy;
use super::remote::Remote;
use crate::headers::inject;
use crate::service::MethodInfo;

/// How many attempts came before this one, those of the callers before us included (gRFC A6).
static PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// Why the throttle lets nothing through.
pub(super) const HELD_BACK: &str =
    "the client holds calls back, since most of the last ones failed";

/// Why there is no place for a call.
pub(super) const TOO_MANY: &str = "too many calls at once";

/// How long nothing is hedged when a server does not say for how long.
const HEDGE_PAUSE: Duration = Duration::from_secs(1);

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
    /// What was tried is told here when the future is dropped before its end.
    pub(super) told: &'a Told,
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

impl Ended {
    /// Whether the server asked for no further attempt.
    fn is_never_again(&self) -> bool {
        match self {
            Self::Fault(Fault::Answered(status)) => status.retry_said() == Some(Retry::Never),
            _ => false,
        }
    }

    /// For people.
    fn cause(&self) -> String {
        match self {
            Self::Fault(fault) => cause(fault),
            Self::Unreachable(error) => error.to_string(),
            Self::Throttled => HELD_BACK.to_owned(),
        }
    }
}

/// A second attempt that did not help.
struct Second {
    instance: Option<Arc<Instance>>,
    failed: Option<FailedAttempt>,
    /// The server asked for no further attempt.
    never_again: bool,
}

impl Call<'_> {
    /// Makes attempts until one succeeds or another would not help.
    pub(super) async fn run(self) -> Result<Bytes, Status> {
        let _place = self.enter().await?;
        let mut attempts = Attempts::new(self.permission(), self.context.previous_attempts());
        let budget = &self.remote.budget;
        if attempts.previous() == 0 {
            budget.count_call(Instant::now());
        }
        let mut log = Kept::new(self.told);
        loop {
            let begun = Instant::now();
            log.begin(begun);
            let ended = match self.attempt_hedged(attempts.previous(), &mut log).await {
                Ok(answer) => {
                    log.forget();
                    return Ok(answer);
                }
                Err(ended) => ended,
            };
            let fault = match ended {
                Ended::Fault(fault) => fault,
                Ended::Unreachable(error) => return Err(self.unreachable(error, log.take())),
                Ended::Throttled => return Err(self.throttled(log.take())),
            };
            log.note(cause(&fault), begun.elapsed());
            let remaining = self.context.remaining().unwrap_or(Duration::MAX);
            let random = fastrand::f64();
            let failure = if log.never_again {
                Failure::Answered(Code::Unavailable, Some(Pushback::Never))
            } else {
                failure(&fault)
            };
            let decision =
                self.policy.retry.decide(&mut attempts, failure, remaining, random, || {
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
                    return Err(self.give_up(stop, fault, log.take()));
                }
            }
        }
    }

    /// What may be tried again.
    fn permission(&self) -> Permission {
        match self.context.idempotency_key() {
            Some(_) => self.policy.permission_with_key,
            None => self.policy.permission,
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
        let hedged = hedge.and_then(|hedge| {
            let begun = Instant::now();
            Some((hedge, begun, hedge.begin(begun, held_back())?))
        });
        let (outcome, second) = {
            let mut first = std::pin::pin!(self.attempt(previous, &log.tried, &log.side, false));
            match hedged {
                None => (first.await, None),
                Some((hedge, begun, delay)) => {
                    match tokio::time::timeout(delay, &mut first).await {
                        Ok(outcome) => (outcome, None),
                        Err(_) if hedge.try_send(Instant::now(), held_back()) => {
                            remote.metrics.hedged();
                            // Boxed, for it is rare and would make every call's future twice as large.
                            let both = Box::pin(self.beside(first, &log.side, hedge, begun)).await;
                            (both.0, Some(both.1))
                        }
                        Err(_) => (first.await, None),
                    }
                }
            }
        };
        if let Some(second) = second {
            log.tried.extend(second.instance);
            log.failed.extend(second.failed);
            log.never_again |= second.never_again;
        }
        log.ended();
        outcome
    }

    /// Makes a second attempt beside the first, which began at `begun`; what became of the second
    /// where that did not help.
    async fn beside<F>(
        &self,
        mut first: Pin<&mut F>,
        first_side: &Side,
        hedge: &Hedge,
        begun: Instant,
    ) -> (Result<Bytes, Ended>, Second)
    where
        F: Future<Output = Result<Bytes, Ended>>,
    {
        let second_side = Side::default();
        let second_begun = Instant::now();
        let tried: Vec<_> = first_side.instance.get().cloned().into_iter().collect();
        let (outcome, failed) = {
            let mut second = std::pin::pin!(self.attempt(1, &tried, &second_side, true));
            let overtakes = |side: &Side| side.overtaken.store(true, Relaxed);
            tokio::select! {
                outcome = &mut first => match outcome {
                    Ok(answer) => {
                        overtakes(&second_side);
                        (Ok(answer), None)
                    }
                    Err(ended) => match second.await {
                        Ok(answer) => (Ok(answer), None),
                        Err(failed) => (Err(ended), Some(failed)),
                    },
                },
                outcome = &mut second => match outcome {
                    Ok(answer) => {
                        overtakes(first_side);
                        // As long as it has taken: or those that are slow would never be counted.
                        hedge.record(begun.elapsed());
                        (Ok(answer), None)
                    }
                    Err(failed) => (first.await, Some(failed)),
                },
            }
        };
        let instance = second_side.instance.into_inner();
        let never_again = failed.as_ref().is_some_and(Ended::is_never_again);
        let failed = failed.map(|ended| FailedAttempt {
            instance: instance.as_ref().map_or("none", |one| one.address()).to_owned(),
            took: second_begun.elapsed(),
            cause: ended.cause(),
        });
        (outcome, Second { instance, failed, never_again })
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
        let has_others = previous == 0 && self.policy.retry.attempts_max > 1;
        let repeatable = has_others && self.permission() >= Permission::Unavailable;
        let wanted = remote.wanted(self.place, self.policy.wait_for_ready, repeatable);
        let picked = remote.pool.pick_ready(tried, &wanted).await;
        let picked = picked.map_err(Ended::Unreachable)?;
        if elsewhere && tried.iter().any(|one| Arc::ptr_eq(one, &picked.instance)) {
            remote.pool.give_back(picked);
            return Err(Ended::Fault(Fault::NotSent("there is no other instance".into())));
        }
        let _ = side.instance.set(Arc::clone(&picked.instance));
        let attempt = Attempt::begin(remote, self.method, self.context, picked);
        let lost = || Err(Ended::Fault(Fault::NotSent("its connection was just lost".into())));
        let Some(mut attempt) = attempt else { return lost() };
        if self.policy.hedge.is_some() {
            attempt.races(Arc::clone(&side.overtaken));
        }
        let Some(sender) = attempt.turn().await else {
            attempt.end(Verdict::Neutral, None);
            return lost();
        };
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
        let (verdict, pushback) = match &answer {
            Ok(_) => (Verdict::Accepted, None),
            Err(fault) => fault.verdict(),
        };
        if matches!(answer, Ok(_) | Err(Fault::Answered(_))) {
            attempt.instance().has_answered();
        }
        attempt.end(verdict, pushback);
        if let Some(hedge) = &self.policy.hedge {
            if verdict == Verdict::Accepted {
                hedge.record(begun.elapsed());
            }
            if let Some(wait) = quiet_for(&answer, verdict) {
                hedge.pause(Instant::now(), wait);
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
        self.remote.metrics.unreachable();
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
        log.error(self.remote.target(), problem)
    }
}

/// A fault, for people.
fn cause(fault: &Fault) -> String {
    match fault {
        Fault::NotSent(cause) | Fault::Refused(cause) | Fault::Broken(cause) => cause.clone(),
        Fault::Answered(status) => status.to_string(),
    }
}

/// For how long nothing is hedged after this answer: the target has too much to do already, or wants
/// no second attempts.
fn quiet_for(answer: &Result<Bytes, Fault>, verdict: Verdict) -> Option<Duration> {
    let Err(Fault::Answered(status)) = answer else { return None };
    match status.retry_said() {
        Some(Retry::After(wait)) => Some(wait),
        Some(Retry::Never) => Some(HEDGE_PAUSE),
        _ => (verdict == Verdict::Shed).then_some(HEDGE_PAUSE),
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
