//! One attempt of a unary call on the wire: gRPC over HTTP/2.
//!
//! The message is encoded once for all attempts; sending it again costs a reference. What became of an
//! attempt is told as exactly as HTTP/2 allows, for that decides whether another one is harmless.

use std::cmp::Ordering;
use std::time::Duration;

use antiphon_core::{Code, Status};
use antiphon_resilience::Verdict;
use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;

use super::compression::{decompress, too_large};
use super::instance::CallBody;
use crate::status_wire;

/// Flags and length in front of a message.
const FRAME_HEAD: usize = 5;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("grpc-rust-antiphon/", env!("CARGO_PKG_VERSION")));
static GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// How an attempt failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// Nothing of it left this process.
    NotSent(String),
    /// The server did not look at it.
    Refused(String),
    /// It broke off; whether it had an effect is unknown.
    Broken(String),
    /// The server answered so.
    Answered(Status),
}

impl Fault {
    /// What it says about the instance, and how long that asks to be left alone.
    pub(super) fn verdict(&self) -> (Verdict, Option<Duration>) {
        match self {
            Self::NotSent(_) | Self::Refused(_) => (Verdict::Neutral, None),
            Self::Broken(_) => (Verdict::Failed, None),
            Self::Answered(status) => (Verdict::of_answer(status), status.retry_after()),
        }
    }
}

/// A request with the headers that every call has.
pub(super) fn request(
    authority: &Authority,
    path: &'static str,
    remaining: Option<Duration>,
    body: CallBody,
) -> Request<CallBody> {
    let mut request = Request::new(body);
    *request.uri_mut() = Uri::from_static(path);
    address(&mut request, authority);
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.reserve(12);
    headers.insert(TE, TRAILERS);
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(USER_AGENT, AGENT);
    if let Some(remaining) = remaining {
        headers.insert(GRPC_TIMEOUT.clone(), timeout(remaining));
    }
    request
}

/// Says to whom a request goes; the path stays.
pub(super) fn address(request: &mut Request<CallBody>, authority: &Authority) {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority.clone());
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

/// At most eight digits, as gRPC demands, and rounded up: a server must not give up before its caller.
fn timeout(time: Duration) -> HeaderValue {
    const DIGITS_MAX: u128 = 99_999_999;
    let micros = time.as_micros() + u128::from(!time.subsec_nanos().is_multiple_of(1_000));
    let (amount, unit) = [(1, 'u'), (1_000, 'm'), (1_000_000, 'S')]
        .into_iter()
        .map(|(per, unit)| (micros.div_ceil(per), unit))
        .find(|(amount, _)| *amount <= DIGITS_MAX)
        .unwrap_or((DIGITS_MAX, 'S'));
    let text = format!("{amount}{unit}");
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("99999999S"))
}

/// Sends a request and reads the one message of the answer.
///
/// # Cancel safety
/// Dropping the future cancels the call at the server.
pub(super) async fn exchange(
    sender: SendRequest<CallBody>,
    request: Request<CallBody>,
    bytes_max: usize,
) -> Result<Bytes, Fault> {
    let response = send(sender, request).await.map_err(|(fault, _)| fault)?;
    let status = response.status();
    let (head, mut body) = response.into_parts();
    // Some servers say it in the head, and with the details once more in trailers.
    if let Some(outcome) = status_wire::from_trailers(&head.headers)
        && body.is_end_stream()
    {
        return Err(match outcome {
            Err(status) => Fault::Answered(status),
            Ok(()) => Fault::Broken("the answer has a status and no message".into()),
        });
    }
    check(status, &head.headers)?;
    let mut received = Received::default();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| fault(&error))?;
        match frame.into_data() {
            Ok(data) => received.add(data, bytes_max)?,
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    let said = trailers.as_ref().and_then(status_wire::from_trailers);
    match said.or_else(|| status_wire::from_trailers(&head.headers)) {
        Some(Ok(())) => received.message(&head.headers, bytes_max),
        Some(Err(status)) => Err(Fault::Answered(status)),
        None => Err(Fault::Broken("the answer ended without a status".into())),
    }
}

/// Sends a request; gives it back where it did not leave.
pub(super) async fn send(
    mut sender: SendRequest<CallBody>,
    request: Request<CallBody>,
) -> Result<Response<Incoming>, (Fault, Option<Request<CallBody>>)> {
    let sending = sender.try_send_request(request);
    // Where the connection ends in this moment, only that brings the request back: see `Lease`.
    drop(sender);
    sending.await.map_err(|mut error| match error.take_message() {
        Some(request) => (Fault::NotSent("the connection was closing".into()), Some(request)),
        None => (fault(error.error()), None),
    })
}

/// What an error of the transport says about the attempt.
pub(super) fn fault(error: &hyper::Error) -> Fault {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            let refused = h2.reason() == Some(h2::Reason::REFUSED_STREAM);
            // The server leaves in order, and the call came after the last that it takes. With any
            // other reason the calls before that end the same way, though they were begun.
            let left = h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR);
            if h2.is_remote() && (refused || left) {
                return Fault::Refused(chain(error));
            }
        }
        cause = error.source();
    }
    Fault::Broken(chain(error))
}

/// Who answers something else than gRPC is a proxy, or no such service (gRPC,
/// `doc/http-grpc-status-mapping.md`).
pub(super) fn check(status: http::StatusCode, headers: &HeaderMap) -> Result<(), Fault> {
    let code = match status.as_u16() {
        200 => {
            let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
            if kind.starts_with(b"application/grpc") {
                return Ok(());
            }
            Code::Unknown
        }
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("nothing");
    let message = format!("the answer is not gRPC but HTTP {status} with {kind}");
    Err(Fault::Answered(Status::new(code, message)))
}

/// What has arrived of an answer: nearly always one piece.
#[derive(Default)]
struct Received {
    whole: Bytes,
    pieces: BytesMut,
}

impl Received {
    fn add(&mut self, data: Bytes, bytes_max: usize) -> Result<(), Fault> {
        let length = self.whole.len().max(self.pieces.len()) + data.len();
        if length > FRAME_HEAD + bytes_max {
            return Err(Fault::Answered(too_large(bytes_max)));
        }
        if self.pieces.is_empty() && self.whole.is_empty() {
            self.whole = data;
        } else {
            if self.pieces.is_empty() {
                self.pieces.extend_from_slice(&self.whole);
            }
            self.pieces.extend_from_slice(&data);
        }
        Ok(())
    }

    /// The message in a frame that must be the only one.
    fn message(self, headers: &HeaderMap, bytes_max: usize) -> Result<Bytes, Fault> {
        let mut frame = if self.pieces.is_empty() { self.whole } else { self.pieces.freeze() };
        let wrong = |problem: &str| {
            Err(Fault::Answered(Status::new(Code::Internal, format!("the answer {problem}"))))
        };
        if frame.len() < FRAME_HEAD {
            return wrong("has no message");
        }
        let flags = frame.get_u8();
        match (frame.get_u32() as usize).cmp(&frame.len()) {
            Ordering::Equal if flags == 0 => Ok(frame),
            Ordering::Equal => {
                decompress(headers.get(&GRPC_ENCODING), &frame, bytes_max).map_err(Fault::Answered)
            }
            Ordering::Greater => wrong("breaks off within its message"),
            Ordering::Less => wrong("has more than one message"),
        }
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_eight_digits_at_most_and_are_never_shorter() {
        for (time, text) in [
            (Duration::from_nanos(1), "1u"),
            (Duration::from_millis(250), "250000u"),
            (Duration::from_micros(99_999_999), "99999999u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_micros(100_000_001), "100001m"),
            (Duration::from_secs(200_000), "200000S"),
            (Duration::MAX, "99999999S"),
        ] {
            assert_eq!(timeout(time), text, "{time:?}");
        }
    }

    fn received(pieces: &[&'static [u8]]) -> Result<Bytes, String> {
        let mut received = Received::default();
        let mut read = || {
            for piece in pieces {
                received.add(Bytes::from_static(piece), 8)?;
            }
            std::mem::take(&mut received).message(&HeaderMap::new(), 8)
        };
        read().map_err(|fault| match fault {
            Fault::Answered(status) => format!("{status:?}"),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_message_may_come_in_pieces() {
        assert_eq!(received(&[b"\0\0\0\0\x02hi"]).unwrap(), "hi");
        assert_eq!(received(&[b"\0\0", b"\0\0\x02h", b"i"]).unwrap(), "hi");
        assert_eq!(received(&[b"\0\0\0\0\0"]).unwrap(), "");
    }

    #[test]
    fn what_is_not_one_message_is_named() {
        for (pieces, problem) in [
            (&[][..], "no message"),
            (&[&b"\0\0\0"[..]], "no message"),
            (&[b"\x01\0\0\0\x02hi"], "does not say how"),
            (&[b"\0\0\0\0\x03hi"], "breaks off"),
            (&[b"\0\0\0\0\x01hi"], "more than one"),
            (&[b"\0\0\0\0\x09", b"123456789"], "larger than 8 bytes"),
        ] {
            let error = received(pieces).unwrap_err();
            assert!(error.contains(problem), "{pieces:?}: {error}");
        }
    }

    #[test]
    fn answers_that_are_not_grpc_are_told_by_their_http_status() {
        let code = |status: u16| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
            match check(http::StatusCode::from_u16(status).unwrap(), &headers) {
                Err(Fault::Answered(status)) => status.code(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(code(503), Code::Unavailable);
        assert_eq!(code(404), Code::Unimplemented);
        assert_eq!(code(200), Code::Unknown);
        assert_eq!(code(500), Code::Unknown);
    }
}
