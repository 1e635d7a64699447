//! How a context enters and leaves a process: by named texts, whatever carries them.

use tokio::time::Instant;

use super::{Context, TraceContext};

/// Longest baggage that is read or written, in bytes of the header's text.
const BAGGAGE_BYTES_MAX: usize = 1_024;
/// Longest correlation id, causation id or idempotency key that is read, in bytes.
const ID_BYTES_MAX: usize = 255;

/// Has named texts: HTTP headers, the attributes of a message.
///
/// Names are lower case. Deadlines are not among them: each protocol writes them its own way.
pub trait Carrier {
    /// The text under `name`.
    fn get(&self, name: &str) -> Option<&str>;
}

/// Takes named texts.
pub trait CarrierMut {
    /// Puts a text under `name`, in place of the one that is there.
    fn set(&mut self, name: &'static str, value: String);
}

/// The names on the wire.
mod name {
    pub(super) const TRACEPARENT: &str = "traceparent";
    pub(super) const TRACESTATE: &str = "tracestate";
    pub(super) const BAGGAGE: &str = "baggage";
    pub(super) const CORRELATION_ID: &str = "x-correlation-id";
    pub(super) const CAUSATION_ID: &str = "x-causation-id";
    pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";
}

impl Context {
    /// The context of work that arrives. What is missing or malformed is as if it were not there:
    /// without a valid trace a new one begins, as W3C Trace Context asks.
    #[must_use]
    pub fn extract(carrier: &impl Carrier) -> Self {
        let trace = match carrier.get(name::TRACEPARENT).and_then(|text| text.parse().ok()) {
            Some(trace) => TraceContext {
                state: carrier.get(name::TRACESTATE).unwrap_or_default().to_owned(),
                ..trace
            },
            None => TraceContext::root(),
        };
        let id = |name| carrier.get(name).filter(|id| !id.is_empty() && id.len() <= ID_BYTES_MAX);
        let mut context = Self::root().with_trace(trace);
        if let Some(id) = id(name::CORRELATION_ID) {
            context = context.with_correlation_id(id);
        }
        if let Some(id) = id(name::CAUSATION_ID) {
            context = context.with_causation_id(id);
        }
        if let Some(key) = id(name::IDEMPOTENCY_KEY) {
            context = context.with_idempotency_key(key);
        }
        if let Some(text) = carrier.get(name::BAGGAGE) {
            context = read_baggage(context, text);
        }
        context
    }

    /// Writes everything but the deadline.
    pub fn inject(&self, carrier: &mut impl CarrierMut) {
        carrier.set(name::TRACEPARENT, self.trace().to_string());
        if !self.trace().state.is_empty() {
            carrier.set(name::TRACESTATE, self.trace().state.clone());
        }
        carrier.set(name::CORRELATION_ID, self.correlation_id().into_owned());
        if let Some(id) = self.causation_id() {
            carrier.set(name::CAUSATION_ID, id.to_owned());
        }
        if let Some(key) = self.idempotency_key() {
            carrier.set(name::IDEMPOTENCY_KEY, key.to_owned());
        }
        if let Some(text) = write_baggage(self) {
            carrier.set(name::BAGGAGE, text);
        }
    }

    /// Whether the deadline has passed.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= Instant::now())
    }
}

fn read_baggage(mut context: Context, text: &str) -> Context {
    if text.len() > BAGGAGE_BYTES_MAX {
        return context;
    }
    for member in text.split(',') {
        // Properties after ';' are metadata of the entry; nobody here reads them.
        let entry = member.split(';').next().unwrap_or_default();
        if let Some((key, value)) = entry.split_once('=') {
            let key = key.trim();
            if !key.is_empty() {
                context = context.with_baggage(key, &unescape(value.trim()));
            }
        }
    }
    context
}

fn write_baggage(context: &Context) -> Option<String> {
    let mut text = String::new();
    for (key, value) in context.baggage() {
        let entry = format!("{key}={}", escape(value));
        if text.len() + entry.len() + 1 > BAGGAGE_BYTES_MAX {
            break;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&entry);
    }
    (!text.is_empty()).then_some(text)
}

/// Percent-encodes what W3C Baggage does not allow in a value.
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        let plain = byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\' | b'%');
        if plain {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn unescape(value: &str) -> String {
    let bytes = value.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%')
            .then(|| value.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SpanId;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Map(BTreeMap<String, String>);

    impl Carrier for Map {
        fn get(&self, name: &str) -> Option<&str> {
            self.0.get(name).map(String::as_str)
        }
    }

    impl CarrierMut for Map {
        fn set(&mut self, name: &'static str, value: String) {
            self.0.insert(name.into(), value);
        }
    }

    #[test]
    fn what_is_injected_is_extracted() {
        let root = Context::root();
        let begun = root.trace().child(SpanId::random());
        let context = root
            .with_trace(begun)
            .with_correlation_id("order-1")
            .with_causation_id("message-2")
            .with_idempotency_key("key-3")
            .with_baggage("tenant", "größe, 50%; x");
        let mut map = Map::default();
        context.inject(&mut map);
        let back = Context::extract(&map);
        assert_eq!(back.trace(), context.trace());
        assert_eq!(back.correlation_id(), "order-1");
        assert_eq!(back.causation_id(), Some("message-2"));
        assert_eq!(back.idempotency_key(), Some("key-3"));
        assert_eq!(back.baggage_entry("tenant"), Some("größe, 50%; x"));
    }

    #[test]
    fn what_is_malformed_or_too_long_is_left_out() {
        let mut map = Map::default();
        map.set(name::TRACEPARENT, "rubbish".into());
        map.set(name::TRACESTATE, "vendor=1".into());
        map.set(name::IDEMPOTENCY_KEY, "k".repeat(256));
        map.set(name::BAGGAGE, "a".repeat(2_000));
        let context = Context::extract(&map);
        assert_ne!(context.trace().trace_id.0, 0);
        assert_eq!(context.trace().state, "");
        assert_eq!(context.idempotency_key(), None);
        assert!(context.baggage().is_empty());
    }

    #[test]
    fn baggage_is_cut_at_whole_entries() {
        let mut context = Context::root();
        for n in 0..100 {
            context = context.with_baggage(&format!("key-{n}"), &"v".repeat(40));
        }
        let text = write_baggage(&context).unwrap();
        assert!(text.len() <= BAGGAGE_BYTES_MAX);
        assert!(text.ends_with(&"v".repeat(40)));
    }
}
