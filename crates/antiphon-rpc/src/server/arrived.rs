//! The headers that the layers read, found in one pass: looking each up by name would cost more than
//! all the rest of the layers.

use antiphon_core::Carrier;
use http::{HeaderMap, HeaderValue};

/// The headers of a request that say something about the call. Of several with one name, the first
/// counts.
#[derive(Debug, Default)]
pub(super) struct Arrived<'a> {
    traceparent: Option<&'a HeaderValue>,
    tracestate: Option<&'a HeaderValue>,
    baggage: Option<&'a HeaderValue>,
    correlation_id: Option<&'a HeaderValue>,
    causation_id: Option<&'a HeaderValue>,
    idempotency_key: Option<&'a HeaderValue>,
    /// What gRPC and gRPC-Web callers ask for: `250m`, `10S` (gRPC over HTTP/2, "Timeout").
    pub(super) grpc_timeout: Option<&'a HeaderValue>,
    /// What Connect callers ask for, in milliseconds.
    pub(super) connect_timeout: Option<&'a HeaderValue>,
}

impl<'a> Arrived<'a> {
    pub(super) fn new(headers: &'a HeaderMap) -> Self {
        let mut arrived = Self::default();
        for (name, value) in headers {
            let place = match name.as_str() {
                "traceparent" => &mut arrived.traceparent,
                "tracestate" => &mut arrived.tracestate,
                "baggage" => &mut arrived.baggage,
                "x-correlation-id" => &mut arrived.correlation_id,
                "x-causation-id" => &mut arrived.causation_id,
                "idempotency-key" => &mut arrived.idempotency_key,
                "grpc-timeout" => &mut arrived.grpc_timeout,
                "connect-timeout-ms" => &mut arrived.connect_timeout,
                _ => continue,
            };
            place.get_or_insert(value);
        }
        arrived
    }
}

impl Carrier for Arrived<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let value = match name {
            "traceparent" => self.traceparent,
            "tracestate" => self.tracestate,
            "baggage" => self.baggage,
            "x-correlation-id" => self.correlation_id,
            "x-causation-id" => self.causation_id,
            "idempotency-key" => self.idempotency_key,
            _ => None,
        };
        value?.to_str().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::HeadersMut;
    use antiphon_core::Context;

    /// Shows as well that no name is missing here that the context has.
    #[test]
    fn a_whole_context_arrives() {
        let context = Context::root()
            .with_correlation_id("order-1")
            .with_causation_id("message-2")
            .with_idempotency_key("key-3")
            .with_baggage("tenant", "blue");
        let mut headers = HeaderMap::new();
        context.inject(&mut HeadersMut(&mut headers));
        headers.insert("tracestate", HeaderValue::from_static("vendor=1"));
        let back = Context::extract(&Arrived::new(&headers));
        assert_eq!(back.trace().trace_id, context.trace().trace_id);
        assert_eq!(back.trace().state, "vendor=1");
        assert_eq!(back.correlation_id(), "order-1");
        assert_eq!(back.causation_id(), Some("message-2"));
        assert_eq!(back.idempotency_key(), Some("key-3"));
        assert_eq!(back.baggage_entry("tenant"), Some("blue"));
    }
}
