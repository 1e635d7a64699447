//! What every call passes, whatever the protocol. Outside in:
//!
//! 1. accept limits: connections in all, and per address (`listener`)
//! 2. protocol sniff under a timer (`connection`)
//! 3. hyper: header time and size, idle time, write stalls, HTTP/2 limits, connection age
//!    (`connection`)
//! 4. context, span, metrics and access log, recorded also for calls that are dropped
//! 5. panics become INTERNAL
//! 6. paths that only an attack writes are refused
//! 7. health and reflection pass the limits by
//! 8. limits on calls in progress: the process's and the method's adaptive one
//! 9. deadline, held within bounds
//! 10. body and message size, silent clients (`body`)
//! 11. decoding, validation, handler (generated code behind [`Service`])
//!
//! [`Calls::enter`] is 4 to 9; it gives a [`Call`], which runs 10 and 11 and records how they end.
//! Every protocol uses these two and nothing else, so a layer is written once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use antiphon_core::{Code, Context, Retry, Status};
use antiphon_telemetry::{SpanKind, Telemetry};
use http::HeaderMap;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::arrived::Arrived;
use super::call::Call;
use super::deadline;
use super::methods::{Method, Methods, ServedTwice, procedure};
use super::metrics::{ServerMetrics, Shed};
use super::settings::ServerSettings;
use crate::service::Service;

/// When a call that was turned away may be tried again.
const RETRY_AFTER_SHEDDING: Duration = Duration::from_secs(1);

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
    in_progress: AtomicUsize,
    /// Tells that nothing is in progress any more.
    idle: Notify,
    /// Becomes true when streams must come to their end.
    ending: watch::Sender<bool>,
}

impl Calls {
    /// The calls to `services`.
    ///
    /// # Errors
    /// [`ServedTwice`] when two services have one name.
    pub fn new(
        services: &[Arc<dyn Service>],
        settings: ServerSettings,
        telemetry: &Telemetry,
    ) -> Result<Self, ServedTwice> {
        let metrics = ServerMetrics::new(telemetry);
        Ok(Self(Arc::new(Shared {
            methods: Methods::new(services, &settings, &metrics)?,
            settings,
            telemetry: telemetry.clone(),
            metrics,
            in_progress: AtomicUsize::new(0),
            idle: Notify::new(),
            ending: watch::Sender::new(false),
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

    /// Lets a call in. Every `Ok` and every `Err` is counted, timed and logged, exactly once.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a timeout that is none, DEADLINE_EXCEEDED when the caller's time is
    /// over, UNAVAILABLE when more calls are in progress than the service can work on.
    pub fn enter(
        &self,
        method: &Arc<Method>,
        headers: &HeaderMap,
        protocol: Protocol,
    ) -> Result<Call, Status> {
        let begun = Instant::now();
        let shared = &self.0;
        let arrived = Arrived::new(headers);
        let mut context = Context::extract(&arrived);
        let previous_attempts = arrived.previous_attempts();
        if previous_attempts > 0 {
            context = context.with_previous_attempts(previous_attempts);
        }
        let time = deadline::asked(&arrived)
            .and_then(|asked| deadline::allowed(asked, method.info, &shared.settings.timeouts));
        if let Ok(Some(time)) = time {
            context = context.with_deadline(begun + time);
        }
        let key = arrived.check_idempotency_key();
        let name = procedure(method.info.path);
        let (context, span) = shared.telemetry.span(SpanKind::Server, name, &context, &[]);
        let mut call = Call::new(self.clone(), Arc::clone(method), protocol, context, span, begun);
        match self.admit(&mut call).and(time).and(key) {
            Ok(_) => Ok(call),
            Err(status) => Err(call.fail(status)),
        }
    }

    /// The limits on calls in progress.
    fn admit(&self, call: &mut Call) -> Result<(), Status> {
        let shared = &self.0;
        let in_progress = shared.in_progress.fetch_add(1, Ordering::Relaxed) + 1;
        shared.metrics.active_calls.inc();
        if call.method().exempt {
            return Ok(());
        }
        if in_progress > shared.settings.calls_max {
            return Err(self.shed(Shed::CallsMax));
        }
        if let Some(limit) = &call.method().limit {
            if !limit.try_enter() {
                call.method().metrics.limit(limit.limit());
                return Err(self.shed(Shed::Concurrency));
            }
            call.limited();
        }
        Ok(())
    }

    fn shed(&self, why: Shed) -> Status {
        self.0.metrics.shed(why);
        Status::new(Code::Unavailable, "more calls are in progress than this server can work on")
            .with_reason("OVERLOADED", "antiphon")
            .with_retry(Retry::After(RETRY_AFTER_SHEDDING))
    }

    /// A call ended; called once for each that [`Self::admit`] counted.
    pub(super) fn left(&self) {
        self.0.metrics.active_calls.dec();
        if self.0.in_progress.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }

    /// Waits until no call is in progress.
    pub(super) async fn idle(&self) {
        loop {
            let idle = self.0.idle.notified();
            if self.0.in_progress.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Ends the streams that are open: their clients get UNAVAILABLE and can go elsewhere.
    pub(super) fn end_streams(&self) {
        self.0.ending.send_replace(true);
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
