//! The headers that the layers read, found in one pass: looking each up by name would cost more than
//! all the rest of the layers.

use antiphon_core::{Carrier, Context, Priority, Status};
use http::{HeaderMap, HeaderValue};

/// As the documents of the contract say.
const KEY_BYTES_MAX: usize = 255;

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
    previous_attempts: Option<&'a HeaderValue>,
    priority: Option<&'a HeaderValue>,
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
                "grpc-previous-rpc-attempts" => &mut arrived.previous_attempts,
                "x-priority" => &mut arrived.priority,
                _ => continue,
            };
            place.get_or_insert(value);
        }
        arrived
    }

    /// The context of the call, which has this priority.
    pub(super) fn context(&self, priority: Priority) -> Context {
        let mut context = Context::extract(self);
        let attempts = self.previous_attempts();
        if attempts > 0 {
            context = context.with_previous_attempts(attempts);
        }
        if priority != Priority::Default {
            context = context.with_priority(priority);
        }
        context
    }

    /// How many attempts the caller made before this one; 0 where it says nothing that can be read.
    fn previous_attempts(&self) -> u32 {
        let said = self.previous_attempts.and_then(|value| value.to_str().ok());
        said.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// How much the caller says it matters; a word that is none is as if it were not there.
    pub(super) fn priority(&self) -> Option<Priority> {
        self.priority.and_then(|value| Priority::from_name(value.to_str().ok()?))
    }

    /// A key that cannot be kept is refused: to pass over it would be to do twice what the caller
    /// wants done once.
    ///
    /// # Errors
    /// INVALID_ARGUMENT: the key is empty, too long, or not visible ASCII.
    pub(super) fn check_idempotency_key(&self) -> Result<(), Status> {
        let Some(key) = self.idempotency_key else { return Ok(()) };
        let fits = (1..=KEY_BYTES_MAX).contains(&key.len()) && key.to_str().is_ok();
        if fits {
            return Ok(());
        }
        let message = format!(
            "the header idempotency-key must have 1 to {KEY_BYTES_MAX} visible ASCII characters"
        );
        Err(Status::invalid_argument(message))
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
    use crate::headers::inject;

    #[test]
    fn a_key_that_cannot_be_kept_is_refused_and_not_passed_over() {
        let check = |key: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("idempotency-key", HeaderValue::from_bytes(key).unwrap());
            Arrived::new(&headers).check_idempotency_key()
        };
        assert!(Arrived::new(&HeaderMap::new()).check_idempotency_key().is_ok());
        assert!(check(b"order 7").is_ok());
        assert!(check(&[b'k'; 255]).is_ok());
        for bad in [&b""[..], &[b'k'; 256], "sch\u{f6}n".as_bytes()] {
            assert_eq!(check(bad).unwrap_err().code(), antiphon_core::Code::InvalidArgument);
        }
    }

    /// Shows as well that no name is missing here that the context has.
    #[test]
    fn a_whole_context_arrives() {
        let context = Context::root()
            .with_correlation_id("order-1")
            .with_causation_id("message-2")
            .with_idempotency_key("key-3")
            .with_baggage("tenant", "blue")
            .with_priority(Priority::Sheddable);
        let mut headers = HeaderMap::new();
        inject(&context, &mut headers);
        headers.insert("tracestate", HeaderValue::from_static("vendor=1"));
        let arrived = Arrived::new(&headers);
        assert_eq!(arrived.priority(), Some(Priority::Sheddable));
        let back = Context::extract(&arrived);
        assert_eq!(back.trace().trace_id, context.trace().trace_id);
        assert_eq!(back.trace().state, "vendor=1");
        assert_eq!(back.correlation_id(), "order-1");
        assert_eq!(back.causation_id(), Some("message-2"));
        assert_eq!(back.idempotency_key(), Some("key-3"));
        assert_eq!(back.baggage_entry("tenant"), Some("blue"));
    }
}
