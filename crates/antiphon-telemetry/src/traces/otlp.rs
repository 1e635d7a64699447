//! Spans in the messages of the OpenTelemetry protocol, written field by field.
//!
//! Nine messages of `opentelemetry/proto/collector/trace/v1` are all there is to it; the crates that
//! bring them as types bring an SDK along. The test reads what is written here with those types.

use antiphon_core::{Timestamp, TraceContext};
use buffa::encoding::{Tag, WireType, encode_varint};
use buffa::types::put_len_delimited_header;

use crate::settings::Service;
use crate::span::{Finished, SpanKind};

/// The flag of a sampled span (W3C Trace Context).
const SAMPLED: u32 = 1;
/// `STATUS_CODE_ERROR`.
const ERROR: u64 = 2;

/// An `ExportTraceServiceRequest` with all these spans.
pub(super) fn request(service: &Service, spans: &[Finished]) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 * spans.len());
    message(&mut out, 1, |resource_spans| {
        message(resource_spans, 1, |resource| {
            attribute(resource, 1, "service.name", &service.name);
            attribute(resource, 1, "service.version", &service.version);
            attribute(resource, 1, "service.instance.id", &service.instance);
            attribute(resource, 1, "telemetry.sdk.name", "antiphon");
            attribute(resource, 1, "telemetry.sdk.language", "rust");
            attribute(resource, 1, "telemetry.sdk.version", env!("CARGO_PKG_VERSION"));
        });
        message(resource_spans, 2, |scope_spans| {
            message(scope_spans, 1, |scope| {
                text(scope, 1, "antiphon");
                text(scope, 2, env!("CARGO_PKG_VERSION"));
            });
            for finished in spans {
                message(scope_spans, 2, |out| span(out, finished));
            }
        });
    });
    out
}

fn span(out: &mut Vec<u8>, finished: &Finished) {
    bytes(out, 1, &finished.position.trace_id.0.to_be_bytes());
    bytes(out, 2, &finished.position.span_id.0.to_be_bytes());
    text(out, 3, &finished.position.state);
    // A root has no parent, which is said by leaving the field out.
    if finished.parent.0 != 0 {
        bytes(out, 4, &finished.parent.0.to_be_bytes());
    }
    text(out, 5, &finished.name);
    number(out, 6, kind(finished.kind));
    fixed64(out, 7, nanos(finished.start));
    fixed64(out, 8, nanos(finished.end));
    for (name, value) in &finished.attributes {
        attribute(out, 9, name, value);
    }
    for position in &finished.links {
        message(out, 13, |out| link(out, position));
    }
    if let Some(words) = &finished.error {
        message(out, 15, |status| {
            text(status, 2, words);
            number(status, 3, ERROR);
        });
    }
    fixed32(out, 16, SAMPLED);
}

fn link(out: &mut Vec<u8>, position: &TraceContext) {
    bytes(out, 1, &position.trace_id.0.to_be_bytes());
    bytes(out, 2, &position.written_span_id().0.to_be_bytes());
    text(out, 3, &position.state);
    fixed32(out, 6, if position.sampled { SAMPLED } else { 0 });
}

/// A `KeyValue` whose value is a text.
fn attribute(out: &mut Vec<u8>, field: u32, name: &str, value: &str) {
    message(out, field, |pair| {
        text(pair, 1, name);
        // Written even if it is empty: it is one of a choice.
        message(pair, 2, |any| {
            put_len_delimited_header(1, value.len() as u64, any);
            any.extend_from_slice(value.as_bytes());
        });
    });
}

fn kind(kind: SpanKind) -> u64 {
    match kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
        SpanKind::Producer => 4,
        SpanKind::Consumer => 5,
    }
}

fn nanos(moment: Timestamp) -> u64 {
    u64::try_from(moment.as_micros()).unwrap_or(0).saturating_mul(1_000)
}

fn message(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    put_len_delimited_header(field, inner.len() as u64, out);
    out.extend_from_slice(&inner);
}

fn text(out: &mut Vec<u8>, field: u32, value: &str) {
    bytes(out, field, value.as_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    if !value.is_empty() {
        put_len_delimited_header(field, value.len() as u64, out);
        out.extend_from_slice(value);
    }
}

fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    Tag::new(field, WireType::Varint).encode(out);
    encode_varint(value, out);
}

fn fixed64(out: &mut Vec<u8>, field: u32, value: u64) {
    Tag::new(field, WireType::Fixed64).encode(out);
    out.extend_from_slice(&value.to_le_bytes());
}

fn fixed32(out: &mut Vec<u8>, field: u32, value: u32) {
    Tag::new(field, WireType::Fixed32).encode(out);
    out.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use antiphon_core::{SpanId, TraceId};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
    use opentelemetry_proto::tonic::trace::v1 as wire;
    use prost::Message;

    fn wire_attribute(name: &str, value: &str) -> KeyValue {
        let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
        KeyValue { key: name.to_owned(), value: Some(value), ..KeyValue::default() }
    }

    #[test]
    fn the_official_types_read_every_field() {
        let position = TraceContext {
            trace_id: TraceId(0x0102),
            span_id: SpanId(3),
            sampled: true,
            state: "vendor=1".to_owned(),
        };
        let finished = Finished {
            parent: SpanId(9),
            kind: SpanKind::Consumer,
            name: "process orders".to_owned(),
            start: Timestamp::from_micros(5),
            end: Timestamp::from_micros(7),
            attributes: vec![("messaging.system", "sqlite".to_owned()), ("empty", String::new())],
            links: vec![TraceContext { span_id: SpanId(4), ..position.clone() }],
            error: Some("no stock".to_owned()),
            position,
        };
        let service = Service::new("orders", "1.2.3");
        let request = request(&service, std::slice::from_ref(&finished));
        let request = ExportTraceServiceRequest::decode(&*request).unwrap();
        let resource = request.resource_spans[0].resource.as_ref().unwrap();
        assert!(resource.attributes.contains(&wire_attribute("service.name", "orders")));
        let scope = &request.resource_spans[0].scope_spans[0];
        assert_eq!(scope.scope.as_ref().unwrap().name, "antiphon");
        let expected = wire::Span {
            trace_id: 0x0102_u128.to_be_bytes().to_vec(),
            span_id: 3_u64.to_be_bytes().to_vec(),
            parent_span_id: 9_u64.to_be_bytes().to_vec(),
            trace_state: "vendor=1".to_owned(),
            flags: 1,
            name: "process orders".to_owned(),
            kind: wire::span::SpanKind::Consumer.into(),
            start_time_unix_nano: 5_000,
            end_time_unix_nano: 7_000,
            attributes: vec![
                wire_attribute("messaging.system", "sqlite"),
                wire_attribute("empty", ""),
            ],
            links: vec![wire::span::Link {
                trace_id: 0x0102_u128.to_be_bytes().to_vec(),
                span_id: 4_u64.to_be_bytes().to_vec(),
                trace_state: "vendor=1".to_owned(),
                flags: 1,
                ..wire::span::Link::default()
            }],
            status: Some(wire::Status {
                message: "no stock".to_owned(),
                code: wire::status::StatusCode::Error.into(),
            }),
            ..wire::Span::default()
        };
        assert_eq!(scope.spans, [expected]);
    }

    #[test]
    fn kinds_have_the_numbers_of_the_protocol() {
        for (ours, theirs) in [
            (SpanKind::Internal, wire::span::SpanKind::Internal),
            (SpanKind::Server, wire::span::SpanKind::Server),
            (SpanKind::Client, wire::span::SpanKind::Client),
            (SpanKind::Producer, wire::span::SpanKind::Producer),
            (SpanKind::Consumer, wire::span::SpanKind::Consumer),
        ] {
            assert_eq!(kind(ours), u64::try_from(theirs as i32).unwrap());
        }
    }
}
