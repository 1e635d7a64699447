//! Calls that leave the process: instances, transport, context, metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use antiphon_core::{BoxFuture, Context, Status};
use antiphon_telemetry::{SpanKind, Telemetry};
use buffa::HasMessageView;
use connectrpc::client::{CallOptions, ClientBody, ClientConfig, ClientTransport};
use connectrpc::{ConnectError, Protocol, Spec, StreamType};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::connection::Instance;
use super::local::with_timeout;
use super::metrics::Metrics;
use super::{ClientSettings, Target, Wire};
use crate::headers::HeadersMut;
use crate::service::{MethodInfo, MethodKind, Streaming};
use crate::status_wire;

/// Why a call did not get an answer from any instance.
#[derive(Debug, thiserror::Error)]
#[error("{target}: instance {instance}: {cause}")]
pub struct CallError {
    /// The target as configured.
    pub target: String,
    /// The instance that was tried last; `none` when the target has none.
    pub instance: String,
    /// What went wrong.
    pub cause: String,
}

/// The instances of one target.
#[derive(Debug)]
pub(super) struct Remote {
    target: Target,
    settings: ClientSettings,
    config: ClientConfig,
    runtime: Handle,
    instances: Mutex<Instances>,
    next: AtomicUsize,
    metrics: Metrics,
    telemetry: Telemetry,
}

#[derive(Debug, Default)]
struct Instances {
    list: Vec<Arc<Instance>>,
    looked_up: Option<Instant>,
}

impl Remote {
    pub(super) fn new(
        target: &Target,
        settings: ClientSettings,
        telemetry: &Telemetry,
    ) -> Result<Self, Status> {
        let authority = match target {
            Target::Static(instances) => instances.first().map(ToString::to_string),
            Target::Dns(name) => Some(name.to_string()),
            Target::Inproc => None,
        };
        let uri = authority.and_then(|authority| format!("http://{authority}").parse().ok());
        let uri = uri.ok_or_else(|| {
            Status::invalid_argument(format!("the target `{target}` has no address to connect to"))
        })?;
        Ok(Self {
            target: target.clone(),
            config: ClientConfig::new(uri).with_protocol(Protocol::Grpc),
            runtime: Handle::current(),
            instances: Mutex::default(),
            next: AtomicUsize::new(0),
            metrics: Metrics::new(telemetry, &target.to_string()),
            telemetry: telemetry.clone(),
            settings,
        })
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// The instances, looked up anew when the last answer is old. The last good answer is kept when
    /// the name cannot be looked up.
    async fn instances(&self) -> Result<Vec<Arc<Instance>>, CallError> {
        let addresses = match &self.target {
            Target::Static(instances) => {
                let known = self.instances.lock().list.clone();
                if !known.is_empty() {
                    return Ok(known);
                }
                instances.iter().map(ToString::to_string).collect()
            }
            Target::Dns(name) => {
                {
                    let known = self.instances.lock();
                    let fresh = |at: Instant| at.elapsed() < self.settings.resolve_interval;
                    if !known.list.is_empty() && known.looked_up.is_some_and(fresh) {
                        return Ok(known.list.clone());
                    }
                }
                match tokio::net::lookup_host((name.host.as_str(), name.port)).await {
                    Ok(found) => found.map(|address| address.to_string()).collect(),
                    Err(error) => {
                        let known = self.instances.lock().list.clone();
                        if known.is_empty() {
                            return Err(self.failure("none", error.to_string()));
                        }
                        tracing::warn!(target.name = %self.target, %error, "keeping known instances");
                        return Ok(known);
                    }
                }
            }
            Target::Inproc => Vec::new(),
        };
        Ok(self.keep(addresses))
    }

    /// Takes over a new set of addresses; connections to those that stay are kept.
    fn keep(&self, addresses: Vec<String>) -> Vec<Arc<Instance>> {
        let mut instances = self.instances.lock();
        let list = addresses
            .into_iter()
            .map(|address| {
                let known = instances.list.iter().find(|known| known.address() == address);
                known.cloned().unwrap_or_else(|| {
                    let settings = self.settings.clone();
                    Arc::new(Instance::new(address, settings, self.runtime.clone()))
                })
            })
            .collect();
        instances.list = list;
        instances.looked_up = Some(Instant::now());
        instances.list.clone()
    }

    /// Names that resolve to nothing that answers are looked up again at the next call.
    fn doubt(&self) {
        self.instances.lock().looked_up = None;
    }

    fn failure(&self, instance: &str, cause: String) -> CallError {
        CallError { target: self.target.to_string(), instance: instance.to_owned(), cause }
    }

    async fn send(
        self: Arc<Self>,
        request: http::Request<ClientBody>,
    ) -> Result<http::Response<hyper::body::Incoming>, CallError> {
        let instances = self.instances().await?;
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut failed = None;
        // Connecting has no effect on the other side, so another instance may be tried; a request
        // that has left is never sent again here.
        for at in 0..instances.len() {
            let instance = &instances[(first + at) % instances.len()];
            match instance.connection().await {
                Ok(mut connection) => {
                    return connection
                        .send_request(request)
                        .await
                        .map_err(|error| self.failure(instance.address(), chain(&error)));
                }
                Err(failure) => {
                    failed = Some(self.failure(instance.address(), failure.to_string()));
                }
            }
        }
        self.doubt();
        Err(failed.unwrap_or_else(|| self.failure("none", "the target has no instances".into())))
    }

    /// Runs one call: its span, its context on the wire, its deadline, its record.
    async fn call<T, Fut>(
        self: &Arc<Self>,
        method: &'static MethodInfo,
        key: Option<&str>,
        call: impl FnOnce(CallOptions) -> Fut,
    ) -> Result<T, Status>
    where
        Fut: Future<Output = Result<T, ConnectError>>,
    {
        let caller = Context::current().without_idempotency_key();
        let (context, mut span) =
            self.telemetry.span(SpanKind::Client, &method.path[1..], &caller, &[]);
        let mut context = with_timeout(context, method, self.settings.timeout);
        if let Some(key) = key {
            context = context.with_idempotency_key(key);
        }
        let begun = Instant::now();
        let outcome = match options(&context, &self.settings) {
            Some(options) => {
                let work = call(options);
                context.run(async { work.await.map_err(|error| self.status(method, error)) }).await
            }
            None => Err(Status::deadline_exceeded()),
        };
        if let Err(status) = &outcome {
            span.fail(status);
        }
        self.metrics.record(method, outcome.as_ref().err(), begun.elapsed());
        outcome
    }

    /// What the caller is told: the service's own status, or that it could not be reached.
    fn status(&self, method: &MethodInfo, error: ConnectError) -> Status {
        let unreachable = error.source_arc().is_some_and(|source| source.is::<CallError>());
        if unreachable {
            return Status::unavailable(format!("{} cannot be reached", method.service))
                .with_source(error);
        }
        status_wire::from_connect(&error)
    }

    pub(super) async fn unary<Req: Wire, Res: Wire>(
        self: &Arc<Self>,
        method: &'static MethodInfo,
        request: Req,
        key: Option<&str>,
    ) -> Result<Res, Status> {
        let transport = Transport(Arc::clone(self));
        self.call(method, key, |options| async move {
            let answer = connectrpc::client::call_unary::<_, _, View<Res>>(
                &transport,
                &transport.0.config,
                spec(method),
                request,
                options,
            )
            .await?;
            Ok(answer.into_owned())
        })
        .await
    }

    pub(super) async fn server_stream<Req: Wire, Res: Wire>(
        self: &Arc<Self>,
        method: &'static MethodInfo,
        request: Req,
    ) -> Result<Streaming<Res>, Status> {
        let transport = Transport(Arc::clone(self));
        let answers = self
            .call(method, None, |options| async move {
                connectrpc::client::call_server_stream::<_, _, View<Res>>(
                    &transport,
                    &transport.0.config,
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
    ) -> Result<Res, Status> {
        let transport = Transport(Arc::clone(self));
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
        self.call(method, None, |options| async move {
            let call = connectrpc::client::call_client_stream::<_, Req, View<Res>>(
                &transport,
                &transport.0.config,
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
    ) -> Result<Streaming<Res>, Status> {
        let transport = Transport(Arc::clone(self));
        let call = self
            .call(method, None, |options| async move {
                connectrpc::client::call_bidi_stream::<_, Req, View<Res>>(
                    &transport,
                    &transport.0.config,
                    spec(method),
                    options,
                )
                .await
            })
            .await?;
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
            (receiver, sending),
            |(mut receiver, mut sending)| async move {
                tokio::select! {
                    biased;
                    status = sending.failed() => Err(status),
                    answer = receiver.message::<Res>() => match answer {
                        Ok(Some(message)) => Ok(Some((message.to_owned_message(), (receiver, sending)))),
                        Ok(None) => Ok(None),
                        Err(error) => Err(status_wire::from_connect(&error)),
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

/// The context as call options; `None` when no time is left.
fn options(context: &Context, settings: &ClientSettings) -> Option<CallOptions> {
    let mut headers = http::HeaderMap::new();
    context.inject(&mut HeadersMut(&mut headers));
    let mut options = CallOptions::default().with_max_message_size(settings.message_bytes_max);
    for (name, value) in &headers {
        options = options.with_header(name.clone(), value.clone());
    }
    match context.remaining() {
        Some(remaining) if remaining.is_zero() => None,
        Some(remaining) => Some(options.with_timeout(remaining)),
        None => Some(options),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[derive(Clone)]
struct Transport(Arc<Remote>);

impl ClientTransport for Transport {
    type ResponseBody = hyper::body::Incoming;
    type Error = CallError;

    fn send(
        &self,
        request: http::Request<ClientBody>,
    ) -> BoxFuture<'static, Result<http::Response<Self::ResponseBody>, CallError>> {
        Box::pin(Arc::clone(&self.0).send(request))
    }
}
