//! How long a call may take: what the caller asks for, held within what the contract and the
//! settings allow.

use std::time::Duration;

use antiphon_core::Status;
use http::{HeaderName, HeaderValue};

use super::arrived::Arrived;
use crate::service::{MethodInfo, MethodKind};

/// The header of gRPC and gRPC-Web.
pub(super) static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The header of Connect.
pub(super) static CONNECT_TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");

/// Bounds of the time that a call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Less than this is taken for this.
    pub min: Duration,
    /// What a unary call gets when neither the caller nor the contract says.
    pub default: Duration,
    /// The most that the caller of a unary method gets when the contract does not say.
    pub max: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            min: Duration::from_millis(5),
            default: Duration::from_secs(10),
            max: Duration::from_secs(30),
        }
    }
}

/// The time left that the caller states in either form; `None` when it states none.
///
/// # Errors
/// INVALID_ARGUMENT for what is neither form, so that a typing mistake does not become a call
/// without a deadline.
pub(super) fn asked(arrived: &Arrived<'_>) -> Result<Option<Duration>, Status> {
    if let Some(value) = arrived.grpc_timeout {
        return parse(&GRPC_TIMEOUT, value, grpc).map(Some);
    }
    if let Some(value) = arrived.connect_timeout {
        return parse(&CONNECT_TIMEOUT, value, connect).map(Some);
    }
    Ok(None)
}

fn parse(
    name: &HeaderName,
    value: &HeaderValue,
    read: fn(&[u8]) -> Option<Duration>,
) -> Result<Duration, Status> {
    read(value.as_bytes()).ok_or_else(|| {
        let form = if *name == GRPC_TIMEOUT {
            "at most 8 digits and a unit out of H, M, S, m, u, n"
        } else {
            "milliseconds, at most 10 digits"
        };
        Status::invalid_argument(format!("{name}: {value:?} is not a timeout (expected {form})"))
    })
}

fn grpc(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    let amount = number(digits, 8)?;
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3_600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

fn connect(text: &[u8]) -> Option<Duration> {
    number(text, 10).map(Duration::from_millis)
}

fn number(digits: &[u8], digits_max: usize) -> Option<u64> {
    if digits.is_empty() || digits.len() > digits_max {
        return None;
    }
    digits.iter().try_fold(0, |sum: u64, byte| {
        byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0'))
    })
}

/// The time a call gets; `None` is no bound, which only streams can have.
///
/// # Errors
/// DEADLINE_EXCEEDED when the caller's time is already over: nobody waits for the answer.
pub(super) fn allowed(
    asked: Option<Duration>,
    method: &MethodInfo,
    timeouts: &Timeouts,
) -> Result<Option<Duration>, Status> {
    if asked.is_some_and(|asked| asked.is_zero()) {
        return Err(Status::deadline_exceeded());
    }
    let asked = asked.map(|asked| asked.max(timeouts.min));
    // A stream lives as long as there is something to say.
    if method.kind != MethodKind::Unary {
        return Ok(match (asked, method.timeout) {
            (Some(asked), Some(max)) => Some(asked.min(max)),
            (asked, max) => asked.or(max),
        });
    }
    let default = method.timeout.unwrap_or(timeouts.default);
    let max = method.timeout.unwrap_or(timeouts.max);
    Ok(Some(asked.map_or(default, |asked| asked.min(max))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Idempotency;
    use antiphon_core::Code;
    use http::HeaderMap;

    fn ask(name: &HeaderName, value: &str) -> Result<Option<Duration>, Code> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        asked(&Arrived::new(&headers)).map_err(|status| status.code())
    }

    #[test]
    fn both_forms_are_read() {
        let ms = Duration::from_millis;
        for (text, expected) in [
            ("1H", ms(3_600_000)),
            ("2M", ms(120_000)),
            ("3S", ms(3_000)),
            ("250m", ms(250)),
            ("99999999m", ms(99_999_999)),
            ("5000u", ms(5)),
            ("1000000n", ms(1)),
            ("0m", ms(0)),
        ] {
            assert_eq!(ask(&GRPC_TIMEOUT, text), Ok(Some(expected)), "{text}");
        }
        assert_eq!(ask(&CONNECT_TIMEOUT, "1500"), Ok(Some(ms(1_500))));
        assert_eq!(asked(&Arrived::default()).unwrap(), None);
    }

    #[test]
    fn what_is_neither_form_is_refused() {
        for text in ["", "m", "10", "10s", "-1m", "1.5S", "999999999m", "10 m", "+1m", "é"] {
            assert_eq!(ask(&GRPC_TIMEOUT, text), Err(Code::InvalidArgument), "{text:?}");
        }
        for text in ["", "10m", "-1", "1e3", "12345678901", "1.5", " 1"] {
            let value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
            assert!(parse(&CONNECT_TIMEOUT, &value, connect).is_err(), "{text:?}");
        }
    }

    fn method(kind: MethodKind, timeout: Option<Duration>) -> MethodInfo {
        MethodInfo {
            service: "t.Echo",
            name: "Echo",
            path: "/t.Echo/Echo",
            kind,
            idempotency: Idempotency::Unknown,
            timeout,
            retry: false,
            hedge: false,
        }
    }

    #[test]
    fn a_call_gets_what_it_asks_for_within_bounds() {
        let ms = Duration::from_millis;
        let (unary, stream) = (MethodKind::Unary, MethodKind::ServerStream);
        for (kind, contract, asked, expected) in [
            (unary, None, None, Some(ms(10_000))),
            (unary, None, Some(ms(700)), Some(ms(700))),
            (unary, None, Some(ms(1)), Some(ms(5))),
            (unary, None, Some(ms(90_000)), Some(ms(30_000))),
            (unary, Some(ms(60_000)), Some(ms(90_000)), Some(ms(60_000))),
            (unary, Some(ms(2_000)), None, Some(ms(2_000))),
            (stream, None, None, None),
            (stream, None, Some(ms(90_000)), Some(ms(90_000))),
            (stream, Some(ms(2_000)), Some(ms(90_000)), Some(ms(2_000))),
            (stream, Some(ms(2_000)), None, Some(ms(2_000))),
        ] {
            let got = allowed(asked, &method(kind, contract), &Timeouts::default()).unwrap();
            assert_eq!(got, expected, "{kind:?} {contract:?} {asked:?}");
        }
    }

    #[test]
    fn a_call_whose_time_is_over_is_refused() {
        let refused =
            allowed(Some(Duration::ZERO), &method(MethodKind::Unary, None), &Timeouts::default());
        assert_eq!(refused.unwrap_err().code(), Code::DeadlineExceeded);
    }
}
