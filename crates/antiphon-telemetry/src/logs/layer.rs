//! Turns `tracing` events into lines.

use std::time::{SystemTime, UNIX_EPOCH};

use antiphon_core::Context;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context as LayerContext, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::fields::{Collect, Fields, Redaction};
use super::{Sink, json, pretty};

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Pretty { colours: bool },
}

/// Writes a line per event.
#[derive(Debug)]
pub(super) struct LogLayer {
    format: Format,
    service: String,
    redaction: Redaction,
    sink: Sink,
}

/// Everything a line says.
pub(super) struct Line<'a> {
    pub(super) at: Moment,
    pub(super) metadata: &'a Metadata<'static>,
    pub(super) service: &'a str,
    /// The fields of the event, and those of the `tracing` spans around it.
    pub(super) fields: Fields,
    pub(super) context: Option<&'a Context>,
}

/// Wall-clock time to the nanosecond, which is what log collectors sort by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) seconds: u64,
    pub(super) nanos: u32,
}

impl Moment {
    #[expect(clippy::disallowed_methods, reason = "a line is written when it is written")]
    fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { seconds: since.as_secs(), nanos: since.subsec_nanos() }
    }
}

impl LogLayer {
    pub(super) fn new(format: Format, service: String, redaction: Redaction, sink: Sink) -> Self {
        Self { format, service, redaction, sink }
    }

    fn collect(&self, fields: &mut Fields, record: impl FnOnce(&mut Collect<'_>)) {
        record(&mut Collect { fields, redaction: &self.redaction });
    }
}

impl<S> Layer<S> for LogLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: LayerContext<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        self.collect(&mut fields, |collect| attributes.record(collect));
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: LayerContext<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            self.collect(fields, |collect| values.record(collect));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: LayerContext<'_, S>) {
        let mut fields = Fields::default();
        self.collect(&mut fields, |collect| event.record(collect));
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                for (name, value) in &outer.rest {
                    if !fields.rest.iter().any(|(known, _)| known == name) {
                        fields.rest.push((name, value.clone()));
                    }
                }
            }
        }
        let line = Context::with_current(|context| {
            let line = Line {
                at: Moment::now(),
                metadata: event.metadata(),
                service: &self.service,
                fields,
                context,
            };
            match self.format {
                Format::Json => json::line(&line),
                Format::Pretty { colours } => pretty::line(&line, colours),
            }
        });
        self.sink.write(line);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use antiphon_core::{SpanId, TraceContext, TraceId};
    use parking_lot::Mutex;
    use std::sync::Arc;
    use std::time::Duration;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::registry::Registry;

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is logged while `work` runs.
    pub(in crate::logs) async fn logged(format: Format, work: impl FnOnce()) -> String {
        let page = Page::default();
        let sink = Sink::spawn(page.clone(), 100, |_| String::new()).unwrap();
        let redaction = Redaction::new(&[]);
        let layer = LogLayer::new(format, "shop".to_owned(), redaction, sink.clone());
        tracing::subscriber::with_default(Registry::default().with(layer), work);
        sink.flush(Duration::from_secs(5)).await;
        let bytes = page.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// A context with ids that are easy to find.
    pub(in crate::logs) fn context() -> Context {
        let trace = TraceContext {
            trace_id: TraceId(0xabc),
            span_id: SpanId(0xdef),
            sampled: true,
            state: String::new(),
        };
        Context::root().with_trace(trace).with_correlation_id("order-1")
    }
}
