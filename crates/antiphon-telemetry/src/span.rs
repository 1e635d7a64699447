//! Spans: recorded only when the trace is sampled.

use std::fmt;

use antiphon_core::{Clock, Code, Context, SpanId, Status, Timestamp, TraceContext};
use tokio::time::Instant;

use crate::Telemetry;
use crate::traces::Tracer;

/// A span has no more attributes than this; more say less.
const ATTRIBUTES_MAX: usize = 64;
/// A span has no more links than this: one per message of the largest batch that is worth it.
const LINKS_MAX: usize = 128;

/// The role of a span (OpenTelemetry).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// Answers a call.
    Server,
    /// Makes a call.
    Client,
    /// Sends a message.
    Producer,
    /// Handles a message.
    Consumer,
    /// Neither.
    Internal,
}

/// A piece of work in a trace; ends when it is dropped. Costs nothing when it is not recorded.
#[must_use = "a span ends when it is dropped"]
pub struct Span(Option<Box<Recording>>);

struct Recording {
    tracer: Tracer,
    begun: Instant,
    span: Finished,
}

/// A span as it is exported.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) position: TraceContext,
    pub(crate) parent: SpanId,
    pub(crate) kind: SpanKind,
    pub(crate) name: String,
    pub(crate) start: Timestamp,
    pub(crate) end: Timestamp,
    pub(crate) attributes: Vec<(&'static str, String)>,
    pub(crate) links: Vec<TraceContext>,
    /// Why it failed, if it did.
    pub(crate) error: Option<String>,
}

impl Telemetry {
    /// Begins a span below the context's position, and gives the context for the work inside it.
    ///
    /// The first span of a trace decides whether the trace is recorded; all others follow it. Where
    /// nothing is recorded, the context comes back as it was.
    ///
    /// `links` are other positions that the work belongs to as well.
    pub fn span(
        &self,
        kind: SpanKind,
        name: &str,
        context: &Context,
        links: &[TraceContext],
    ) -> (Context, Span) {
        let parent = context.trace();
        let tracer = self.tracer().filter(|tracer| {
            if parent.is_root() { tracer.samples(parent.trace_id) } else { parent.sampled }
        });
        let Some(tracer) = tracer else {
            return (context.clone(), Span(None));
        };
        let position = TraceContext { sampled: true, ..parent.child(SpanId::random()) };
        let start = Clock::system().now();
        let span = Finished {
            position: position.clone(),
            parent: parent.span_id,
            kind,
            name: name.to_owned(),
            start,
            end: start,
            attributes: Vec::new(),
            links: links.iter().take(LINKS_MAX).cloned().collect(),
            error: None,
        };
        let recording = Recording { tracer: tracer.clone(), begun: Instant::now(), span };
        (context.clone().with_trace(position), Span(Some(Box::new(recording))))
    }
}

impl Span {
    /// Whether anything is recorded: ask before computing attributes that cost.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.0.is_some()
    }

    /// Adds a fact; the last one under a name wins.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        let Some(recording) = &mut self.0 else { return };
        let attributes = &mut recording.span.attributes;
        match attributes.iter().position(|(known, _)| *known == name) {
            Some(place) => attributes[place].1 = value.into(),
            None if attributes.len() < ATTRIBUTES_MAX => attributes.push((name, value.into())),
            None => {}
        }
    }

    /// Marks the span as failed, if the status is a failure from its point of view: an answer that
    /// tells the caller of its own mistake is no failure of the server.
    pub fn fail(&mut self, status: &Status) {
        if self.0.is_none() {
            return;
        }
        self.set("rpc.response.status_code", status.code().name());
        if !status.reason().is_empty() {
            self.set("error.reason", status.reason());
        }
        let Some(recording) = &mut self.0 else { return };
        if recording.span.kind != SpanKind::Server || is_server_failure(status.code()) {
            recording.span.error = Some(status.message().to_owned());
            self.set("error.type", status.code().name());
        }
    }
}

/// The codes that OpenTelemetry's conventions for gRPC count as errors of a server.
fn is_server_failure(code: Code) -> bool {
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

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(recording) = self.0.take() {
            let Recording { tracer, begun, mut span } = *recording;
            // The wall clock may be set while the span runs; how long it took must not change.
            span.end = span.start + begun.elapsed();
            tracer.send(span);
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(recording) => write!(f, "Span({})", recording.span.name),
            None => f.write_str("Span(not recorded)"),
        }
    }
}
