//! The lean path: unary gRPC over HTTP/2 without compression, which most calls are.
//!
//! One map look-up, the layers, the service; one data frame and the trailers back. Nothing here is
//! boxed but the handler's own future. What this cannot do is done by [`general`](super::general).

use std::pin::pin;

use antiphon_core::{Code, Status};
use bytes::{Buf, Bytes};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method as Verb, Response, Version};

use super::body::{Body, RequestBody};
use super::call::Call;
use super::layers::Calls;
use super::methods::Method;
use crate::service::{Codec, MethodKind};
use crate::status_wire;

/// Flags and length in front of a message.
const FRAME_HEAD: usize = 5;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

static GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// Whether a call can take this path.
pub(super) fn is_lean(method: &Method, head: &Parts) -> bool {
    method.info.kind == MethodKind::Unary
        && head.version == Version::HTTP_2
        && head.method == Verb::POST
        && head.headers.get(CONTENT_TYPE).is_some_and(|kind| {
            matches!(kind.as_bytes(), b"application/grpc" | b"application/grpc+proto")
        })
        && head.headers.get(&GRPC_ENCODING).is_none_or(|encoding| encoding == "identity")
}

/// Answers a call. What is kept here across waits is kept small: it is moved when the call begins.
pub(super) async fn answer(calls: &Calls, mut call: Call, mut body: RequestBody) -> Response<Body> {
    let bytes_max = calls.settings().message_bytes_max;
    let read = call.reads(async { Ok(body.read(FRAME_HEAD + bytes_max).await?) }).await;
    let answered = match read.and_then(unframe) {
        Ok(message) => {
            call.begins();
            let method = call.method();
            let answering = method.service.unary(method.index, message, Codec::Proto);
            call.run(pin!(answering)).await
        }
        Err(status) => Err(status),
    };
    match call.ended(answered) {
        Ok(message) => {
            let body = Body::trailed(message.into_enveloped(), status_wire::ok_trailers());
            let mut response = Response::new(body);
            response.headers_mut().insert(CONTENT_TYPE, GRPC);
            response
        }
        Err(status) => failed(&status),
    }
}

/// An answer that is nothing but a status: it travels as headers.
pub(super) fn failed(status: &Status) -> Response<Body> {
    let mut headers = HeaderMap::with_capacity(6);
    headers.insert(CONTENT_TYPE, GRPC);
    status_wire::to_trailers(status, &mut headers);
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = headers;
    response
}

/// The message in a frame that must be the only one.
fn unframe(mut frame: Bytes) -> Result<Bytes, Status> {
    if frame.is_empty() {
        return Err(Status::unimplemented(
            "a unary call carries exactly one message; there is none",
        ));
    }
    if frame.len() < FRAME_HEAD {
        return Err(Status::invalid_argument("the frame of the message breaks off"));
    }
    match frame.get_u8() {
        0 => {}
        1 => {
            return Err(Status::new(
                Code::Internal,
                "the message is marked as compressed, but there is no grpc-encoding",
            ));
        }
        flags => {
            return Err(Status::invalid_argument(format!(
                "unknown flags in a frame: {flags:#04x}"
            )));
        }
    }
    let length = frame.get_u32() as usize;
    match frame.len() {
        held if held < length => Err(Status::invalid_argument(format!(
            "the message breaks off: {held} bytes out of {length}"
        ))),
        held if held > length => {
            Err(Status::unimplemented("a unary call carries exactly one message; there is more"))
        }
        _ => Ok(frame),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_whole_frame_is_a_message() {
        assert_eq!(unframe(Bytes::from_static(b"\0\0\0\0\x02hi")).unwrap(), "hi");
        assert_eq!(unframe(Bytes::from_static(b"\0\0\0\0\0")).unwrap(), "");
    }

    #[test]
    fn broken_frames_are_told_apart() {
        for (frame, code) in [
            (&b""[..], Code::Unimplemented),
            (b"\0\0\0", Code::InvalidArgument),
            (b"\0\0\0\0\x03hi", Code::InvalidArgument),
            (b"\0\xff\xff\xff\xff", Code::InvalidArgument),
            (b"\0\0\0\0\x01hi", Code::Unimplemented),
            (b"\x01\0\0\0\x02hi", Code::Internal),
            (b"\x80\0\0\0\x02hi", Code::InvalidArgument),
        ] {
            assert_eq!(unframe(Bytes::from_static(frame)).unwrap_err().code(), code, "{frame:?}");
        }
    }
}
