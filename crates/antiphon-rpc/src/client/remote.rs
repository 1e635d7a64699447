//! Calls that leave the process: deadline, span and record of each, and the four shapes.
//!
//! Unary calls are made by [`attempts`](super::attempts), streams by connectrpc's client over
//! [`Transport`](super::transport::Transport): once a stream is open it cannot be begun anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Code, Context, Retry, Status};
use antiphon_discovery::{Discovery, Target};
use antiphon_resilience::{Budget, Bulkhead, Permit, Refused, Throttle};
use antiphon_telemetry::{SpanKind, Telemetry};
use buffa::HasMessageView;
use connectrpc::client::{CallOptions, ClientConfig};
use connectrpc::{ConnectError, Protocol, Spec, StreamType};
use futures_util::{StreamExt, stream};
use http::uri::Authority;
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::attempts::{Call, HELD_BACK, TOO_MANY};
use super::instance::Instance;
use super::log::Told;
use super::metrics::Metrics;
use super::policy::{MethodPolicy, explain};
use super::pool::{Pool, Wanted};
use super::report::MethodReport;
use super::transport::Transport;
use super::{CallError, ClientSettings, Wire};
use crate::headers::inject;
use crate::service::{MethodInfo, MethodKind, ServiceInfo, Streaming};
use crate::{message, status_wire};

/// A part of the time that a caller gave is kept for the way back, but no more than this: whoever
/// calls in turn must hear that time is up before its own caller gives up.
const MARGIN: (f64, Duration) = (0.02, Duration::from_millis(5));

/// One target, and what calls to it share.
#[derive(Debug)]
pub(super) struct Remote {
    target: Target,
    /// The service that is called, for reports.
    service: Option<&'static ServiceInfo>,
    authority: Option<Authority>,
    pub(super) settings: Arc<ClientSettings>,
    config: ClientConfig,
    pub(super) pool: Pool,
    pub(super) budget: Budget,
    pub(super) throttle: Throttle,
    bulkhead: Arc<Bulkhead>,
    policies: RwLock<HashMap<&'static str, Arc<MethodPolicy>>>,
    pub(super) metrics: Metrics,
    pub(super) telemetry: Telemetry,
}

impl Remote {
    pub(super) fn new(
        target: &Target,
        service: Option<&'static ServiceInfo>,
        settings: ClientSettings,
        discovery: &Discovery,
        telemetry: &Telemetry,
    ) -> Result<Self, Status> {
        let runtime = Handle::current();
        let watch =
            discovery.watch(target).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let now = Instant::now();
        let settings = Arc::new(settings);
        let metrics = Metrics::new(telemetry, &target.to_string());
        let authority = match target {
            Target::Dns { name, .. } => name.to_string().parse().ok(),
            _ => None,
        };
        Ok(Self {
            authority,
            service,
            config: ClientConfig::new(http::Uri::from_static("http://target"))
                .with_protocol(Protocol::Grpc),
            pool: Pool::new(watch, Arc::clone(&settings), runtime, metrics.clone()),
            budget: Budget::new(settings.budget, now),
            throttle: Throttle::new(settings.throttle, now),
            bulkhead: Bulkhead::new(settings.bulkhead),
            policies: RwLock::default(),
            metrics,
            telemetry: telemetry.clone(),
            target: target.clone(),
            settings,
        })
    }

    pub(super) const fn target(&self) -> &Target {
        &self.target
    }

    /// What holds for a method; worked out once.
    pub(super) fn policy(&self, method: &MethodInfo) -> Arc<MethodPolicy> {
        if let Some(policy) = self.policies.read().get(method.path) {
            return Arc::clone(policy);
        }
        let policy = Arc::new(MethodPolicy::new(method, &self.settings, Instant::now()));
        self.policies.write().insert(method.path, Arc::clone(&policy));
        policy
    }

    /// What holds for each method of the service, in words.
    pub(super) fn explain(&self) -> Vec<MethodReport> {
        let methods = self.service.map_or(&[][..], |service| service.methods);
        let report = |method: &'static MethodInfo| MethodReport {
            method: method.path.trim_start_matches('/'),
            policy: explain(method, &self.settings),
        };
        methods.iter().map(report).collect()
    }

    /// Whom a request names: the host that the target names, where it names one, for whoever stands
    /// before the instances and tells services apart by it; else the instance itself.
    pub(super) fn authority_for<'a>(&'a self, instance: &'a Instance) -> &'a Authority {
        self.authority.as_ref().unwrap_or_else(|| instance.authority())
    }

    /// What a call asks of a pick.
    pub(super) fn wanted(&self, key: Option<u64>, patient: bool, repeatable: bool) -> Wanted {
        Wanted { key, patient, repeatable, in_flight: self.bulkhead.in_flight() }
    }

    /// Takes a place among the calls to the target, or waits for one.
    pub(super) async fn enter(&self, deadline: Option<Instant>) -> Result<Permit, Refused> {
        match self.bulkhead.try_enter() {
            Some(permit) => Ok(permit),
            None => {
                let patience = Instant::now() + self.settings.timeout;
                self.bulkhead.enter(deadline.unwrap_or(patience)).await
            }
        }
    }

    /// Runs one call: its span, its deadline, its record.
    async fn call<T, Fut>(
        self: &Arc<Self>,
        method: &'static MethodInfo,
        policy: &MethodPolicy,
        key: Option<&str>,
        call: impl FnOnce(Context) -> Fut,
    ) -> Result<T, Status>
    where
        Fut: Future<Output = Result<T, Status>>,
    {
        let caller = Context::current().without_idempotency_key();
        let (context, mut span) =
            self.telemetry.span(SpanKind::Client, &method.path[1..], &caller, &[]);
        let begun = Instant::now();
        let mut context = with_timeout(context, policy.timeout, begun);
        if let Some(key) = key {
            context = context.with_idempotency_key(key);
        }
        let outcome = if context.is_expired() {
            Err(Status::deadline_exceeded())
        } else {
            let work = call(context.clone());
            context.run(work).await
        };
        if let Err(status) = &outcome {
            span.fail(status);
        }
        self.metrics.record(method, outcome.as_ref().err(), begun.elapsed());
        outcome
    }

    pub(super) async fn unary<Req: Wire, Res: Wire>(
        self: &Arc<Self>,
        method: &'static MethodInfo,
        request: Req,
        key: Option<&str>,
        place: Option<u64>,
    ) -> Result<Res, Status> {
        let policy = self.policy(method);
        let message = message::encode(&request)?.into_enveloped();
        let told = Told::default();
        let answer = self
            .call(method, &policy, key, |context| {
                let (policy, context, told) = (&policy, context, &told);
                async move {
                    let context = &context;
                    Call { remote: self, method, policy, context, message, place, told }.run().await
                }
            })
            .await;
        let answer = answer.map_err(|status| match told.into_inner() {
            Some(log) if status.code() == Code::DeadlineExceeded => {
                status.with_source(log.expired(&self.target))
            }
            _ => status,
        })?;
        Res::decode_from_slice(&answer).map_err(|error| {
            Status::internal(format!("the answer of {} does not decode: {error}", method.path))
        })
    }

    /// Opens a stream.
    async fn open<T, Fut>(
        self: &Arc<Self>,
        method: &'static MethodInfo,
        place: Option<u64>,
        call: impl FnOnce(Transport, CallOptions) -> Fut,
    ) -> Result<T, Status>
    where
        Fut: Future<Output = Result<T, ConnectError>>,
    {
        let policy = self.policy(method);
        self.call(method, &policy, None, |context| {
            let options = options(&context, &self.settings);
            let transport = Transport::new(self, method, &policy, place);
            // Boxed, for connectrpc's futures are many kilobytes large.
            let work = Box::pin(call(transport, options));
            async move { work.await.map_err(|error| self.status(method, &context, error)) }
        })
        .await
    }

    /// What the caller of a stream is told: the service's own status, or why it could not be opened.
    fn status(&self, method: &MethodInfo, context: &Context, error: ConnectError) -> Status {
        let source = error.source_arc();
        let Some(cause) = source.as_ref().and_then(|source| source.downcast_ref::<CallError>())
        else {
            return status_wire::from_connect(&error);
        };
        if context.is_expired() {
            return Status::deadline_exceeded().with_source(error);
        }
        let service = method.service;
        let (message, retry) = match cause.problem {
            HELD_BACK => (format!("{service} fails; calls are held back"), Some(Retry::Never)),
            TOO_MANY => (format!("too many calls to {service} at once"), Some(Retry::Never)),
            _ => (format!("{service} cannot be reached"), None),
        };
        let status = Status::unavailable(message).with_source(error);
        match retry {
            Some(retry) => status.with_retry(retry),
            None => status,
        }
    }

    pub(super) async fn server_stream<Req: Wire, Res: Wire>(
        self: &Arc<Self>,
        method: &'static MethodInfo,
        request: Req,
        place: Option<u64>,
    ) -> Result<Streaming<Res>, Status> {
        let answers = self
            .open(method, place, |transport, options| async move {
                connectrpc::client::call_server_stream::<_, _, View<Res>>(
                    &transport,
                    &self.config,
                    spec(method),
                    request,
                    options,
                )
                .await
            })
            .await?;
        Ok(Streaming::new(stream::try_unfold(answers, |mut answers| async move {
            match answers.message::<Res>().await {
                Ok(Some(message)) => Ok(Some((message.to_owned_message(), answers))),
                Ok(None) => Ok(None),
                Err(error) => Err(status_wire::from_connect(&error)),
            }
        })))
    }

    pub(super) async fn client_stream<Req: Wire, Res: Wire>(
        self: &Arc<Self>,
        method: &'static MethodInfo,
        requests: Streaming<Req>,
        place: Option<u64>,
    ) -> Result<Res, Status> {
        let (abort, mut aborted) = tokio::sync::oneshot::channel();
        let requests =
            stream::unfold((requests, Some(abort)), |(mut requests, abort)| async move {
                match requests.next().await? {
                    Ok(request) => Some((request, (requests, abort))),
                    Err(status) => {
                        if let Some(abort) = abort {
                            // The receiver outlives the call; it cannot be gone here.
                            let _ = abort.send(status);
                        }
                        // The call is dropped, and so cancelled, before the stream would end.
                        std::future::pending().await
                    }
                }
            });
        self.open(method, place, |transport, options| async move {
            let call = connectrpc::client::call_client_stream::<_, Req, View<Res>>(
                &transport,
                &self.config,
                spec(method),
                requests,
                options,
            );
            tokio::select! {
                biased;
                Ok(status) = &mut aborted => Err(status_wire::to_connect(&status)),
                answer = call => answer.map(connectrpc::client::UnaryResponse::into_owned),
            }
        })
        .await
    }

    pub(super) async fn bidi<Req: Wire, Res: Wire>(
        self: &Arc<Self>,
        method: &'static MethodInfo,
        requests: Streaming<Req>,
        place: Option<u64>,
    ) -> Result<Streaming<Res>, Status> {
        let (context, call) = self
            .open(method, place, |transport, options| async move {
                let call = connectrpc::client::call_bidi_stream::<_, Req, View<Res>>(
                    &transport,
                    &self.config,
                    spec(method),
                    options,
                );
                Ok((Context::current(), call.await?))
            })
            .await?;
        // connectrpc opens it in the background: that it cannot be is told with the answers.
        let remote = Arc::clone(self);
        let explain = move |error| remote.status(method, &context, error);
        let (mut sender, receiver) = call.into_split();
        let sending = tokio::spawn(Context::current().scope(async move {
            let mut requests = requests;
            while let Some(request) = requests.next().await {
                let request = request?;
                if sender.send(request).await.is_err() {
                    // The other side has ended the call; its status comes with the answers.
                    break;
                }
            }
            sender.close_send();
            Ok::<_, Status>(())
        }));
        let sending = AbortOnDrop(Some(sending));
        Ok(Streaming::new(stream::try_unfold(
            (receiver, sending, explain),
            |(mut receiver, mut sending, explain)| async move {
                tokio::select! {
                    biased;
                    status = sending.failed() => Err(status),
                    answer = receiver.message::<Res>() => match answer {
                        Ok(Some(message)) => {
                            Ok(Some((message.to_owned_message(), (receiver, sending, explain))))
                        }
                        Ok(None) => Ok(None),
                        Err(error) => Err(explain(error)),
                    }
                }
            },
        )))
    }
}

type View<M> = <M as HasMessageView>::View<'static>;

/// The task that sends; ends with the stream of answers.
struct AbortOnDrop(Option<tokio::task::JoinHandle<Result<(), Status>>>);

impl AbortOnDrop {
    /// Completes only when the caller's own stream failed.
    async fn failed(&mut self) -> Status {
        if let Some(task) = &mut self.0 {
            let ended = task.await;
            self.0 = None;
            if let Ok(Err(status)) = ended {
                return status;
            }
        }
        std::future::pending().await
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

fn spec(method: &'static MethodInfo) -> Spec {
    let shape = match method.kind {
        MethodKind::Unary => StreamType::Unary,
        MethodKind::ServerStream => StreamType::ServerStream,
        MethodKind::ClientStream => StreamType::ClientStream,
        MethodKind::Bidi => StreamType::BidiStream,
    };
    Spec::client(method.path, shape)
}

/// The context as call options.
fn options(context: &Context, settings: &ClientSettings) -> CallOptions {
    let mut headers = http::HeaderMap::new();
    inject(context, &mut headers);
    let mut options = CallOptions::default().with_max_message_size(settings.message_bytes_max);
    for (name, value) in &headers {
        options = options.with_header(name.clone(), value.clone());
    }
    match context.remaining() {
        Some(remaining) => options.with_timeout(remaining),
        None => options,
    }
}

/// Bounds the deadline by a time of its own, and what is inherited by the margin.
fn with_timeout(context: Context, timeout: Option<Duration>, now: Instant) -> Context {
    let inherited = context.deadline().map(|deadline| {
        let remaining = deadline.saturating_duration_since(now);
        remaining - remaining.mul_f64(MARGIN.0).min(MARGIN.1)
    });
    match [inherited, timeout].into_iter().flatten().min() {
        Some(time) => context.with_deadline(now + time),
        None => context,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_before_its_caller_does() {
        let now = Instant::now();
        let within = |inherited: Option<u64>, own: Option<u64>| {
            let context = Context::root();
            let context = match inherited {
                Some(millis) => context.with_deadline(now + Duration::from_millis(millis)),
                None => context,
            };
            let context = with_timeout(context, own.map(Duration::from_millis), now);
            context.remaining().map(|remaining| remaining.as_micros())
        };
        assert_eq!(within(None, None), None);
        assert_eq!(within(None, Some(100)), Some(100_000));
        assert_eq!(within(Some(100), None), Some(98_000));
        assert_eq!(within(Some(100), Some(50)), Some(50_000));
        assert_eq!(within(Some(10_000), Some(20_000)), Some(9_995_000));
        assert_eq!(within(Some(0), None), Some(0));
    }
}
