//! The position of the work in its distributed trace (W3C Trace Context, level 1).

use std::fmt;
use std::str::FromStr;

/// Sixteen bytes that name a trace; never zero in a valid trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TraceId(pub u128);

/// Eight bytes that name a span; never zero in a valid span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SpanId(pub u64);

impl SpanId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(fastrand::u64(1..))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Trace, parent span, and whether somebody records it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span that is the parent of what happens next; zero while no span has begun.
    pub span_id: SpanId,
    /// Whether the trace is recorded; decided when its first span begins.
    pub sampled: bool,
    /// Vendors' own positions, passed on untouched; empty when there are none.
    pub state: String,
}

impl TraceContext {
    /// A new trace in which no span has begun.
    #[must_use]
    pub fn root() -> Self {
        let trace_id =
            TraceId(u128::from(fastrand::u64(1..)) << 64 | u128::from(fastrand::u64(1..)));
        Self { trace_id, span_id: SpanId(0), sampled: false, state: String::new() }
    }

    /// Whether no span has begun yet, so that nobody decided whether the trace is recorded.
    #[must_use]
    pub const fn is_root(&self) -> bool {
        self.span_id.0 == 0
    }

    /// The span id to write down. The standard has no way to say that there is none yet, so such a
    /// position is written with the lower half of its trace id, which no recorded span ever has.
    #[must_use]
    pub const fn written_span_id(&self) -> SpanId {
        if self.is_root() { SpanId(self.trace_id.0 as u64 | 1) } else { self.span_id }
    }

    /// The same trace with another parent span.
    #[must_use]
    pub fn child(&self, span_id: SpanId) -> Self {
        Self { span_id, ..self.clone() }
    }
}

/// The text is not a `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C traceparent (expected 00-<32 hex>-<16 hex>-<2 hex>)")]
pub struct InvalidTraceParent;

impl FromStr for TraceContext {
    type Err = InvalidTraceParent;

    /// Reads a `traceparent` of version 00, or of a later version that begins the same way.
    fn from_str(text: &str) -> Result<Self, InvalidTraceParent> {
        let lower_hex = |part: &str| {
            part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        };
        let (version, rest) = text.split_once('-').ok_or(InvalidTraceParent)?;
        let (trace, rest) = rest.split_once('-').ok_or(InvalidTraceParent)?;
        let (span, flags) = rest.split_once('-').ok_or(InvalidTraceParent)?;
        let (flags, more) = match flags.split_once('-') {
            Some((flags, more)) => (flags, Some(more)),
            None => (flags, None),
        };
        let shaped =
            version.len() == 2 && trace.len() == 32 && span.len() == 16 && flags.len() == 2;
        let known = version != "ff" && (version != "00" || more.is_none());
        if !shaped || !known || ![version, trace, span, flags].into_iter().all(lower_hex) {
            return Err(InvalidTraceParent);
        }
        let trace_id = u128::from_str_radix(trace, 16).map_err(|_| InvalidTraceParent)?;
        let span_id = u64::from_str_radix(span, 16).map_err(|_| InvalidTraceParent)?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| InvalidTraceParent)?;
        if trace_id == 0 || span_id == 0 {
            return Err(InvalidTraceParent);
        }
        Ok(Self {
            trace_id: TraceId(trace_id),
            span_id: SpanId(span_id),
            sampled: flags & 1 == 1,
            state: String::new(),
        })
    }
}

impl fmt::Display for TraceContext {
    /// Writes the `traceparent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{}-{}-{flags:02x}", self.trace_id, self.written_span_id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparents_round_trip() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace: TraceContext = text.parse().unwrap();
        assert!(trace.sampled);
        assert_eq!(trace.to_string(), text);
    }

    #[test]
    fn a_trace_without_spans_is_written_as_one_that_nobody_records() {
        let root = TraceContext::root();
        let read: TraceContext = root.to_string().parse().unwrap();
        assert!(root.is_root());
        assert!(!read.is_root() && !read.sampled);
        assert_eq!(read.trace_id, root.trace_id);
    }

    #[test]
    fn what_the_standard_calls_invalid_is_refused() {
        for text in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7a-01",
        ] {
            assert!(text.parse::<TraceContext>().is_err(), "{text:?}");
        }
        assert!(
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x"
                .parse::<TraceContext>()
                .is_ok()
        );
    }
}
