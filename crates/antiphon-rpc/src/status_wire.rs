//! A [`Status`] on the wire: in the trailers of gRPC, in the errors of Connect, and back.
//!
//! The code and the message go where each protocol has a place for them; reason, metadata, field
//! violations and retry delay go as details (`google.rpc.ErrorInfo`, `BadRequest`, `RetryInfo`). The
//! source of a status never leaves the process.

mod details;

use std::time::Duration;

use antiphon_core::{Code, Retry, Status};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use connectrpc::{ConnectError, ErrorCode, ErrorDetail};
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use details::Detail;

/// The code of a call, in decimal.
pub(crate) static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// The message, percent-encoded.
pub(crate) static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// `google.rpc.Status`, in base64.
pub(crate) static GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// Milliseconds to wait before another try; negative: do not try again (gRFC A6).
pub(crate) static GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// What gRPC does not allow in a message: all but printable ASCII without '%'.
const MESSAGE_ESCAPES: &AsciiSet = &CONTROLS.add(b'%');
/// Longest message that is sent, in bytes. Clients refuse headers of more than 8 KiB by default, and
/// would then see no status at all.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// The trailers of a call that ended well.
pub(crate) fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS.clone(), HeaderValue::from_static("0"));
    trailers
}

/// Writes a status into the trailers of gRPC (or its headers, when nothing else is sent).
pub(crate) fn to_trailers(status: &Status, trailers: &mut HeaderMap) {
    trailers.insert(GRPC_STATUS.clone(), HeaderValue::from(u16::from(status.code().number())));
    let message = shortened(status.message());
    let escaped = utf8_percent_encode(message, MESSAGE_ESCAPES).to_string();
    if let Ok(value) = HeaderValue::try_from(escaped) {
        trailers.insert(GRPC_MESSAGE.clone(), value);
    }
    let details = details::of(status);
    if !details.is_empty() {
        let bytes = details::write_status(status.code(), message, &details);
        if let Ok(value) = HeaderValue::try_from(STANDARD_NO_PAD.encode(bytes)) {
            trailers.insert(GRPC_DETAILS.clone(), value);
        }
    }
    write_pushback(status, trailers);
}

fn write_pushback(status: &Status, trailers: &mut HeaderMap) {
    let value = match status.retry_said() {
        Some(Retry::After(wait)) => {
            HeaderValue::from(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
        }
        Some(Retry::Never) => HeaderValue::from_static("-1"),
        Some(Retry::Later | Retry::Outage) | None => return,
    };
    trailers.insert(GRPC_PUSHBACK.clone(), value);
}

/// Reads the trailers of gRPC. `None` when they hold no status: the answer broke off.
pub(crate) fn from_trailers(trailers: &HeaderMap) -> Option<Result<(), Status>> {
    let number = trailers.get(&GRPC_STATUS)?.to_str().ok()?;
    let number: u32 = number.parse().ok()?;
    if number == 0 {
        return Some(Ok(()));
    }
    // A code from the future is UNKNOWN, as gRPC asks.
    let code = u8::try_from(number).ok().and_then(Code::from_number).unwrap_or(Code::Unknown);
    let message = trailers.get(&GRPC_MESSAGE).map(HeaderValue::as_bytes).unwrap_or_default();
    let message = String::from_utf8_lossy(message);
    let message = percent_decode_str(&message).decode_utf8_lossy().into_owned();
    let mut status = Status::new(code, message);
    if let Some(bytes) = trailers.get(&GRPC_DETAILS).and_then(|value| unbase64(value.as_bytes())) {
        for detail in details::read_status(&bytes) {
            status = detail.apply(status);
        }
    }
    Some(Err(read_pushback(status, trailers)))
}

fn read_pushback(status: Status, trailers: &HeaderMap) -> Status {
    let Some(value) = trailers.get(&GRPC_PUSHBACK) else {
        return status;
    };
    // Negative and unreadable both mean: do not try again.
    let millis = value.to_str().ok().and_then(|text| text.parse().ok());
    status.with_retry(millis.map_or(Retry::Never, |ms| Retry::After(Duration::from_millis(ms))))
}

/// As connectrpc sends it.
pub(crate) fn to_connect(status: &Status) -> ConnectError {
    let code = u32::from(status.code().number());
    let code = ErrorCode::from_grpc_code(code).unwrap_or(ErrorCode::Unknown);
    let mut error = ConnectError::new(code, shortened(status.message()));
    for detail in details::of(status) {
        error = error.with_detail(ErrorDetail {
            type_url: detail.type_name().to_owned(),
            value: Some(STANDARD_NO_PAD.encode(detail.write())),
            debug: None,
        });
    }
    if let Some(wait) = status.retry_after() {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let headers = error.response_headers_mut();
        headers.insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    let mut trailers = HeaderMap::new();
    write_pushback(status, &mut trailers);
    error.set_trailers(trailers);
    error
}

/// As connectrpc received it.
pub(crate) fn from_connect(error: &ConnectError) -> Status {
    let number = u8::try_from(error.code.grpc_code()).unwrap_or(0);
    let code = Code::from_number(number).unwrap_or(Code::Unknown);
    let mut status = Status::new(code, error.message.clone().unwrap_or_default());
    for detail in &error.details {
        let bytes = detail.value.as_deref().and_then(|text| unbase64(text.as_bytes()));
        if let Some(detail) = bytes.and_then(|bytes| Detail::read(&detail.type_url, &bytes)) {
            status = detail.apply(status);
        }
    }
    status = read_pushback(status, error.trailers());
    match error.source_arc() {
        Some(source) => status.with_source(details::Shared(source)),
        None => status,
    }
}

fn shortened(message: &str) -> &str {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

/// Both forms of base64 are in use.
fn unbase64(text: &[u8]) -> Option<Vec<u8>> {
    STANDARD_NO_PAD.decode(text).or_else(|_| STANDARD.decode(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use antiphon_core::FieldViolation;

    fn rich() -> Status {
        Status::new(Code::FailedPrecondition, "kein Vorrat: 100 % weg\n")
            .with_reason("OUT_OF_STOCK", "shop.inventory.v1")
            .with_metadata("sku", "größe-1")
            .with_metadata("on_hand", "0")
            .with_violations([FieldViolation {
                field: "lines[0].quantity".into(),
                rule: "int32.gt".into(),
                description: "must be greater than 0".into(),
            }])
            .with_retry(Retry::After(Duration::from_millis(1_500)))
    }

    fn assert_same(a: &Status, b: &Status) {
        assert_eq!(a.to_string(), b.to_string());
        assert_eq!((a.reason(), a.domain()), (b.reason(), b.domain()));
        assert_eq!(a.metadata(), b.metadata());
        assert_eq!(a.violations(), b.violations());
        assert_eq!(a.retry_after(), b.retry_after());
    }

    #[test]
    fn trailers_keep_everything_but_the_source() {
        let status = rich().with_source("password=hunter2");
        let mut trailers = HeaderMap::new();
        to_trailers(&status, &mut trailers);
        assert!(!format!("{trailers:?}").contains("hunter2"));
        assert_eq!(trailers[&GRPC_MESSAGE], "kein Vorrat: 100 %25 weg%0A");
        assert_eq!(trailers[&GRPC_PUSHBACK], "1500");
        assert_same(&from_trailers(&trailers).unwrap().unwrap_err(), &status);
    }

    #[test]
    fn connect_errors_keep_everything_but_the_source() {
        let status = rich().with_source("password=hunter2");
        let error = to_connect(&status);
        assert!(!format!("{error:?}").contains("hunter2"));
        assert_eq!(error.response_headers()["retry-after"], "2");
        assert_same(&from_connect(&error), &status);
        let never = to_connect(&Status::unavailable("no").with_retry(Retry::Never));
        assert_eq!(from_connect(&never).retry_said(), Some(Retry::Never));
    }

    #[test]
    fn every_code_round_trips() {
        for code in Code::ALL {
            let status = Status::new(code, "x");
            let mut trailers = HeaderMap::new();
            to_trailers(&status, &mut trailers);
            assert_eq!(from_trailers(&trailers).unwrap().unwrap_err().code(), code);
            assert_eq!(from_connect(&to_connect(&status)).code(), code);
        }
        assert!(from_trailers(&ok_trailers()).unwrap().is_ok());
    }

    #[test]
    fn strange_trailers_are_read_as_well_as_they_can_be() {
        let read = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs
                .iter()
                .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)));
            from_trailers(&headers.collect::<HeaderMap>())
        };
        assert!(read(&[]).is_none());
        assert!(read(&[("grpc-status", "ok")]).is_none());
        let future = read(&[("grpc-status", "99"), ("grpc-message", "50%")]).unwrap().unwrap_err();
        assert_eq!((future.code(), future.message()), (Code::Unknown, "50%"));
        let broken = read(&[("grpc-status", "14"), ("grpc-status-details-bin", "!!")]);
        assert_eq!(broken.unwrap().unwrap_err().code(), Code::Unavailable);
        let stop = read(&[("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")]);
        assert_eq!(stop.unwrap().unwrap_err().retry(), Retry::Never);
    }

    #[test]
    fn a_huge_status_still_fits_into_headers() {
        let violation = |n: usize| FieldViolation {
            field: format!("lines[{n}].sku"),
            rule: "string.min_len".into(),
            description: "must not be empty".into(),
        };
        let status =
            Status::invalid_argument("é".repeat(5_000)).with_violations((0..500).map(violation));
        let mut trailers = HeaderMap::new();
        to_trailers(&status, &mut trailers);
        let bytes: usize = trailers.values().map(HeaderValue::len).sum();
        assert!(bytes < 16 * 1024 - 512, "{bytes}");
        let back = from_trailers(&trailers).unwrap().unwrap_err();
        assert!(back.violations().len() > 20);
    }
}
