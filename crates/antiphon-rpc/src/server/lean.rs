//! The lean path: unary gRPC over HTTP/2 without compression, which most calls are.
//!
//! One map look-up, the layers, the service; one data frame and the trailers back. Nothing here is
//! boxed but the handler's own future. What this cannot do is done by [`general`](super::general).

use std::sync::Arc;

use antiphon_core::{Code, Status};
use bytes::{Buf, Bytes};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method as Verb, Request, Response, Version};

use super::body::{Body, RequestBody};
use super::layers::{Calls, Protocol};
use super::methods::Method;
use crate::service::{Codec, MethodKind};
use crate::status_wire;

/// Flags and length in front of a message.
const FRAME_HEAD: usize = 5;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// Whether a call can take this path.
pub(super) fn is_lean(method: &Method, request: &Request<RequestBody>) -> bool {
    let headers = request.headers();
    method.info.kind == MethodKind::Unary
        && request.version() == Version::HTTP_2
        && request.method() == Verb::POST
        && headers.get(CONTENT_TYPE).is_some_and(|kind| {
            matches!(kind.as_bytes(), b"application/grpc" | b"application/grpc+proto")
        })
        && headers.get("grpc-encoding").is_none_or(|encoding| encoding == "identity")
}

/// Answers a call.
pub(super) async fn answer(
    calls: &Calls,
    method: &Arc<Method>,
    request: Request<RequestBody>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let call = match calls.enter(method, &head.headers, Protocol::Grpc) {
        Ok(call) => call,
        Err(status) => return failed(&status),
    };
    let bytes_max = calls.settings().message_bytes_max;
    let answered = call.answer(async {
        let frame = body.collect(FRAME_HEAD + bytes_max).await?;
        let message = unframe(frame)?;
        method.service.unary(method.index, message, Codec::Proto).await
    });
    match answered.await {
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
        return Err(Status::unimplemented("a unary call carries exactly one message; there is none"));
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
            return Err(Status::invalid_argument(format!("unknown flags in a frame: {flags:#04x}")));
        }
    }
    let length = frame.get_u32() as usize;
    match frame.len() {
        held if held < length => Err(Status::invalid_argument(format!(
            "the message breaks off: {held} bytes out of {length}"
        ))),
        held if held > length => Err(Status::unimplemented(
            "a unary call carries exactly one message; there is more",
        )),
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
