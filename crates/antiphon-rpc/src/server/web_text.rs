//! The text form of gRPC-Web: the binary form in base64, for browsers' `XMLHttpRequest`.
//!
//! Requests are read whole (browsers cannot stream them) and may be several pieces of base64, each
//! padded on its own. Answers are written piece by piece, so that streams arrive as they are sent.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use antiphon_core::{BoxError, Status};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use http_body::{Body as HttpBody, Frame};

use super::body::Body;

const TEXT: &str = "application/grpc-web-text";
const BINARY: HeaderValue = HeaderValue::from_static("application/grpc-web+proto");

/// Whether a request is in the text form.
pub(super) fn is_text(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(TEXT.as_bytes()))
}

/// Makes the headers say what the decoded request is.
pub(super) fn as_binary(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, BINARY);
    headers.remove(http::header::CONTENT_LENGTH);
}

/// The binary form of a request.
pub(super) fn decode(text: &[u8]) -> Result<Bytes, Status> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let mut rest = text.trim_ascii();
    while !rest.is_empty() {
        // A piece ends with its padding.
        let end = rest.iter().position(|byte| *byte == b'=').map_or(rest.len(), |first| {
            first + rest[first..].iter().take_while(|byte| **byte == b'=').count()
        });
        let (piece, more) = rest.split_at(end);
        STANDARD
            .decode_vec(piece, &mut out)
            .map_err(|error| Status::invalid_argument(format!("not base64: {error}")))?;
        rest = more;
    }
    Ok(out.into())
}

/// The text form of an answer.
pub(super) fn encode(response: http::Response<Body>) -> http::Response<Body> {
    let (mut head, body) = response.into_parts();
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    http::Response::from_parts(head, Body::stream(Encoded(body)))
}

struct Encoded(Body);

impl HttpBody for Encoded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(task));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| frame.map_data(|data| Bytes::from(STANDARD.encode(data))))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_padded_each_on_its_own() {
        assert_eq!(decode(b"aGk=").unwrap(), "hi");
        assert_eq!(decode(b"aGk=IQ==\n").unwrap(), "hi!");
        assert_eq!(decode(b"aGkh").unwrap(), "hi!");
        assert_eq!(decode(b"").unwrap(), "");
    }

    #[test]
    fn what_is_not_base64_is_refused() {
        for text in ["a", "aGk", "====", "aG k=", "aGk=!"] {
            assert!(decode(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
