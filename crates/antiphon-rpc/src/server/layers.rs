//! What every call passes, whatever the protocol. Outside in:
//!
//! 1. accept limits: connections in all, and per address (`listener`)
//! 2. protocol sniff under a timer (`connection`)
//! 3. hyper: header time and size, idle time, write stalls, HTTP/2 limits, connection age
//!    (`connection`)
//! 4. paths that only an attack writes are refused
//! 5. admission, which health and reflection pass by: rate limits, limits on calls in progress, the
//!    processor, fairness between clients, all by priority (`admission`)
//! 6. context, deadline within bounds, span; metrics and access log, also for calls that are dropped
//! 7. panics become INTERNAL
//! 8. a call whose deadline passed while it waited for the processor is not begun
//! 9. body and message size, silent clients (`body`)
//! 10. decoding, validation, handler (generated code behind [`Service`])
//!
//! [`Calls::enter`] is 5 and 6, done when the request is read; it gives a [`Call`], which runs the
//! rest when there is time for it, and records how that ends. Every protocol uses these two and
//! nothing else, so a layer is written once.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use antiphon_core::Status;
use antiphon_resilience::CpuLoad;
use antiphon_resilience::cpu::usage;
use antiphon_telemetry::{SpanKind, Telemetry};
use http::HeaderMap;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::admission::{Admission, Asks, Client, Places, Refused};
use super::arrived::Arrived;
use super::call::Call;
use super::deadline;
use super::methods::{Method, Methods, ServicesError, procedure};
use super::metrics::ServerMetrics;
use super::settings::ServerSettings;
use crate::service::Service;

/// How a call arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// gRPC-Web, binary or text.
    GrpcWeb,
    /// Connect, protobuf or JSON.
    Connect,
    /// REST by the contract's HTTP rules, with its streams as NDJSON or Server-Sent Events.
    Rest,
    /// A stream over WebSocket.
    WebSocket,
}

impl Protocol {
    /// Every protocol, in the order of declaration.
    pub const ALL: [Self; 5] =
        [Self::Grpc, Self::GrpcWeb, Self::Connect, Self::Rest, Self::WebSocket];

    /// The name in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::GrpcWeb => "grpc_web",
            Self::Connect => "connectrpc",
            Self::Rest => "rest",
            Self::WebSocket => "websocket",
        }
    }
}

/// The calls of a server: its methods, and the layers that every call passes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Calls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: ServerSettings,
    methods: Methods,
    telemetry: Telemetry,
    metrics: ServerMetrics,
    admission: Admission,
    in_progress: InProgress,
    /// Tells that nothing is in progress any more.
    idle: Notify,
    /// Becomes true when streams must come to their end.
    ending: watch::Sender<bool>,
    /// The same, for a look at each answer.
    is_ending: AtomicBool,
}

/// How many calls there are.
#[derive(Debug, Default)]
struct InProgress {
    limited: AtomicU32,
    /// Of health and reflection, which pass the limits by, and are no reason to refuse others.
    exempt: AtomicU32,
}

impl InProgress {
    fn of(&self, method: &Method) -> &AtomicU32 {
        if method.exempt { &self.exempt } else { &self.limited }
    }

    fn is_none(&self) -> bool {
        [&self.limited, &self.exempt].iter().all(|count| count.load(Ordering::Acquire) == 0)
    }
}

impl Calls {
    /// The calls to `services`.
    ///
    /// # Errors
    /// [`ServicesError`] when two services have one name, or a rate limit is for none of them.
    pub fn new(
        services: &[Arc<dyn Service>],
        settings: ServerSettings,
        telemetry: &Telemetry,
    ) -> Result<Self, ServicesError> {
        let metrics = ServerMetrics::new(telemetry);
        Ok(Self(Arc::new(Shared {
            methods: Methods::new(services, &settings, &metrics)?,
            admission: Admission::new(&settings, usage::read(), Instant::now()),
            settings,
            telemetry: telemetry.clone(),
            metrics,
            in_progress: InProgress::default(),
            idle: Notify::new(),
            ending: watch::Sender::new(false),
            is_ending: AtomicBool::new(false),
        })))
    }

    /// The method at a path like `/package.Service/Method`.
    #[must_use]
    pub fn method(&self, path: &str) -> Option<&Arc<Method>> {
        self.0.methods.get(path)
    }

    /// The settings of the server.
    #[must_use]
    pub fn settings(&self) -> &ServerSettings {
        &self.0.settings
    }

    pub(super) fn metrics(&self) -> &ServerMetrics {
        &self.0.metrics
    }

    /// Every method that is served.
    pub(super) fn methods(&self) -> impl Iterator<Item = &Arc<Method>> {
        self.0.methods.all()
    }

    pub(super) fn cpu(&self) -> &CpuLoad {
        &self.0.admission.cpu
    }

    /// Lets a call from `peer` in. Every `Ok` and every `Err` is counted and timed, exactly once.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a timeout that is none, DEADLINE_EXCEEDED when the caller's time is
    /// over, UNAVAILABLE when more calls are in progress than the service can work on,
    /// RESOURCE_EXHAUSTED above a rate limit. Where instances share one, the call may be refused later,
    /// when it is answered.
    ///
    /// # Panics
    /// Outside of a Tokio runtime, where a rate limit is shared.
    pub fn enter(
        &self,
        method: &Arc<Method>,
        headers: &HeaderMap,
        peer: IpAddr,
        protocol: Protocol,
    ) -> Result<Call, Status> {
        let begun = Instant::now();
        let shared = &self.0;
        let arrived = Arrived::new(headers);
        let priority = shared.admission.priority(&arrived);
        let client = self.client(headers, peer);
        let places = self
            .admit(method, Asks { client, priority, now: begun })
            .map_err(|refused| self.refuse(method, protocol, refused, begun))?;
        let time = deadline::asked(&arrived)
            .and_then(|asked| deadline::allowed(asked, method.info, &shared.settings.timeouts));
        let mut context = arrived.context(priority);
        if let Ok(Some(time)) = time {
            context = context.with_deadline(begun + time);
        }
        let name = procedure(method.info.path);
        let (context, span) = shared.telemetry.span(SpanKind::Server, name, &context, &[]);
        let (calls, method) = (self.clone(), Arc::clone(method));
        let call = Call::new(calls, method, protocol, context, span, begun, places);
        match time.and(arrived.check_idempotency_key()) {
            Ok(()) => Ok(call),
            Err(status) => Err(call.fail(status)),
        }
    }

    /// Whose call it is.
    fn client<'a>(&self, headers: &'a HeaderMap, peer: IpAddr) -> Client<'a> {
        let header = self.0.settings.client_header.as_ref();
        let name = header.and_then(|header| headers.get(header));
        name.map_or_else(|| Client::at(peer), |name| Client::Named(name.as_bytes()))
    }

    /// Counts a call and passes it through the limits.
    fn admit(&self, method: &Method, asks: Asks<'_>) -> Result<Places, Refused> {
        let shared = &self.0;
        let in_progress = shared.in_progress.of(method).fetch_add(1, Ordering::Relaxed) + 1;
        shared.metrics.active_calls.inc();
        if method.exempt {
            return Ok(Places::default());
        }
        let admitted = shared.admission.admit(method, asks, in_progress);
        if admitted.is_err() {
            self.left(method);
        }
        admitted
    }

    /// Records a call that was not let in.
    fn refuse(
        &self,
        method: &Method,
        protocol: Protocol,
        refused: Refused,
        begun: Instant,
    ) -> Status {
        method.metrics.refused(protocol, refused.code, begun.elapsed());
        self.turned_away(method, protocol, refused)
    }

    /// Notes that a call was turned away, and why.
    pub(super) fn turned_away(
        &self,
        method: &Method,
        protocol: Protocol,
        refused: Refused,
    ) -> Status {
        self.0.metrics.shed(refused.why);
        let (rpc, why) = (procedure(method.info.path), refused.why.label());
        tracing::debug!(rpc, protocol = protocol.name(), why, "call turned away");
        refused.status()
    }

    /// A call ended; called once for each that [`Self::admit`] counted.
    pub(super) fn left(&self, method: &Method) {
        self.0.metrics.active_calls.dec();
        if self.0.in_progress.of(method).fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }

    /// Waits until no call is in progress.
    pub(super) async fn idle(&self) {
        loop {
            let idle = self.0.idle.notified();
            if self.0.in_progress.is_none() {
                return;
            }
            idle.await;
        }
    }

    /// Ends the streams that are open: their clients get UNAVAILABLE and can go elsewhere.
    pub(super) fn end_streams(&self) {
        self.0.is_ending.store(true, Ordering::Release);
        self.0.ending.send_replace(true);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.0.is_ending.load(Ordering::Acquire)
    }

    pub(super) fn ending(&self) -> watch::Receiver<bool> {
        self.0.ending.subscribe()
    }
}

/// Refuses paths that no client of ours writes and that mean different things to different parsers.
///
/// # Errors
/// INVALID_ARGUMENT with what is wrong.
pub(super) fn sanitise(path: &str) -> Result<(), Status> {
    let refuse =
        |what: &str| Err(Status::invalid_argument(format!("the path must not contain {what}")));
    if path.bytes().any(|byte| byte == b'\\' || byte.is_ascii_control()) {
        return refuse("backslashes or control characters");
    }
    let mut escapes = path.split('%');
    escapes.next();
    for escape in escapes {
        match escape.get(..2).map(|hex| u8::from_str_radix(hex, 16)) {
            Some(Ok(byte)) if byte.is_ascii_control() || byte == b'\\' => {
                return refuse("escaped backslashes or control characters");
            }
            Some(Ok(_)) => {}
            _ => return refuse("'%' without two hexadecimal digits"),
        }
    }
    let dots = |segment: &str| match segment {
        "." | ".." => true,
        // Only what has escapes is worth a copy.
        _ if segment.contains('%') => {
            let plain = segment.replace("%2e", ".").replace("%2E", ".");
            plain == "." || plain == ".."
        }
        _ => false,
    };
    if path.split('/').any(dots) {
        return refuse("'.' or '..' as a segment");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use antiphon_core::Code;

    #[test]
    fn plain_paths_pass() {
        for path in ["/", "/v1/orders/1:cancel", "/v1/a%2Fb", "/v1/caf%C3%A9", "/v1/a.b/..c"] {
            assert!(sanitise(path).is_ok(), "{path}");
        }
    }

    #[test]
    fn paths_that_only_an_attack_writes_are_refused() {
        for path in ["/a/../b", "/a/%2e%2E/b", "/a/.", "/a%00", "/a%5Cb", "/a\\b", "/a%", "/a%zz"] {
            assert_eq!(sanitise(path).unwrap_err().code(), Code::InvalidArgument, "{path}");
        }
    }
}
