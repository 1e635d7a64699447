//! The general path: streams, compression, gRPC-Web and Connect, through connectrpc's service.
//!
//! The layers stand outside: a call is let in before connectrpc sees the request, travels with it in
//! an extension, and is taken out where connectrpc dispatches. A call that never gets there (a broken
//! envelope, an unknown compression) is recorded by what connectrpc answered.

use std::future::{poll_fn, ready};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;

use antiphon_core::{BoxFuture, Code, Status};
use bytes::Bytes;
use connectrpc::dispatcher::{RequestStream, StreamingResult, UnaryResult};
use connectrpc::{
    CodecFormat, CompressionRegistry, ConnectError, ConnectRpcService, Dispatcher, EncodedBody,
    Limits, MethodDescriptor, Payload, RequestContext,
};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::time::timeout;
use tower::Service as _;

use super::body::{Body, RequestBody};
use super::call::Call;
use super::deadline::{CONNECT_TIMEOUT, GRPC_TIMEOUT};
use super::layers::{Calls, Protocol};
use super::lean;
use super::methods::Method;
use super::web_text;
use crate::service::{Codec, Idempotency, MethodKind, Streaming};
use crate::status_wire;

/// Answers what the lean path does not.
#[derive(Clone)]
pub(super) struct General {
    calls: Calls,
    service: ConnectRpcService<Adapter>,
}

impl General {
    pub(super) fn new(calls: &Calls) -> Self {
        let bytes_max = calls.settings().message_bytes_max;
        // Envelopes and, for a message that compresses badly, a little more.
        let body_max = bytes_max.saturating_add(64 * 1024);
        let limits = Limits::unlimited()
            .with_max_message_size(bytes_max)
            .with_max_request_body_size(body_max);
        let service = ConnectRpcService::new(Adapter(calls.clone()))
            .with_limits(limits)
            .with_compression(CompressionRegistry::default());
        Self { calls: calls.clone(), service }
    }

    /// Lets a call in at once, and gives what answers it.
    pub(super) fn answer(
        &self,
        method: &Arc<Method>,
        request: Request<RequestBody>,
        peer: IpAddr,
    ) -> BoxFuture<'static, Response<Body>> {
        let protocol = protocol_of(request.headers());
        match self.calls.enter(method, request.headers(), peer, protocol) {
            Ok(call) => {
                let general = self.clone();
                Box::pin(async move { general.run(call, request).await })
            }
            Err(status) => Box::pin(ready(refused(&status, request.headers()))),
        }
    }

    async fn run(&self, mut call: Call, request: Request<RequestBody>) -> Response<Body> {
        if !web_text::is_text(request.headers()) {
            return self.dispatched(call, request).await;
        }
        let (mut head, body) = request.into_parts();
        web_text::as_binary(&mut head.headers);
        match call.reads(self.decoded(body)).await {
            Ok(bytes) => {
                let request = Request::from_parts(head, bytes.into());
                web_text::encode(self.dispatched(call, request).await)
            }
            Err(status) => refused(&call.fail(status), &head.headers),
        }
    }

    /// A body in text, which is read whole before anything else: within the time that a call may take,
    /// also where a stream has no deadline.
    async fn decoded(&self, body: RequestBody) -> Result<Bytes, Status> {
        let bytes_max = self.service.limits().max_request_body_size() / 3 * 4;
        let time = self.calls.settings().timeouts.max;
        match timeout(time, body.collect(bytes_max)).await {
            Ok(text) => web_text::decode(&text?),
            Err(_) => Err(Status::deadline_exceeded()),
        }
    }

    async fn dispatched(&self, call: Call, mut request: Request<RequestBody>) -> Response<Body> {
        let deadline = call.context().deadline();
        let waiting = Waiting(Arc::new(Mutex::new(Some(call))));
        request.extensions_mut().insert(waiting.clone());
        // The deadline is kept by the call; connectrpc must not keep another one.
        let headers = request.headers_mut();
        headers.remove(&GRPC_TIMEOUT);
        headers.remove(&CONNECT_TIMEOUT);
        let kind = content_type_only(headers);
        let mut service = self.service.clone();
        let mut dispatching = pin!(service.call(request));
        let mut answering = pin!(poll_fn(|task| {
            let answer = dispatching.as_mut().poll(task);
            if answer.is_pending() {
                waiting.waits_for_caller();
            }
            answer
        }));
        let response = match deadline {
            None => answering.await,
            Some(deadline) => match tokio::time::timeout_at(deadline, &mut answering).await {
                Ok(response) => response,
                // Before the handler has it, nobody else watches the time of the call.
                Err(_) => match waiting.take() {
                    Some(call) => return refused(&call.fail(Status::deadline_exceeded()), &kind),
                    None => answering.await,
                },
            },
        };
        let mut response = response.unwrap_or_else(|never| match never {}).map(Body::from);
        if let Some(call) = waiting.take() {
            call.fail(undispatched(&mut response));
        }
        once(&mut response);
        response
    }
}

/// A call on its way to where connectrpc dispatches.
#[derive(Clone)]
struct Waiting(Arc<Mutex<Option<Call>>>);

impl Waiting {
    fn take(&self) -> Option<Call> {
        self.0.lock().take()
    }

    /// Until it is dispatched, what is missing is a part of the request.
    fn waits_for_caller(&self) {
        if let Some(call) = &mut *self.0.lock() {
            call.waits_for_caller();
        }
    }
}

fn protocol_of(headers: &HeaderMap) -> Protocol {
    match connectrpc::Protocol::detect(headers).map(|detected| detected.protocol) {
        Some(connectrpc::Protocol::Grpc) => Protocol::Grpc,
        Some(connectrpc::Protocol::GrpcWeb) => Protocol::GrpcWeb,
        _ => Protocol::Connect,
    }
}

fn content_type_only(headers: &HeaderMap) -> HeaderMap {
    let name = http::header::CONTENT_TYPE;
    headers.get(&name).map(|kind| (name, kind.clone())).into_iter().collect()
}

/// A status in the form of the protocol that `headers` speak.
pub(super) fn refused(status: &Status, headers: &HeaderMap) -> Response<Body> {
    if protocol_of(headers) == Protocol::Grpc {
        let mut response = lean::failed(status);
        response.headers_mut().extend(content_type_only(headers));
        return response;
    }
    status_wire::to_connect(status).into_http_response(headers).map(Body::from)
}

/// Where connectrpc knows at once that a call failed it says so twice: in the head, without the details,
/// and in the trailers. Clients that read the head would miss the reason and the pushback.
fn once(response: &mut Response<Body>) {
    if !response.body().is_end_stream() {
        response.headers_mut().remove(&status_wire::GRPC_STATUS);
        response.headers_mut().remove(&status_wire::GRPC_MESSAGE);
    }
}

/// The status of an answer that connectrpc gave without asking the service.
fn undispatched(response: &mut Response<Body>) -> Status {
    if let Some(Err(status)) = status_wire::from_trailers(response.headers()) {
        return status;
    }
    // gRPC-Web has the status in the body, whose first and only frame is there already.
    if response.status() == StatusCode::OK
        && let Some(Some(Ok(frame))) = response.body_mut().frame().now_or_never()
        && let Ok(data) = frame.into_data()
    {
        let code = web_status(&data);
        *response.body_mut() = Body::full(data);
        return Status::new(code, "the request was refused");
    }
    let code = match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::NOT_IMPLEMENTED | StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::BAD_REQUEST => Code::InvalidArgument,
        status if status.is_client_error() => Code::InvalidArgument,
        _ => Code::Unknown,
    };
    Status::new(code, "the request was refused")
}

/// The code in the trailers frame of gRPC-Web.
fn web_status(frame: &[u8]) -> Code {
    let text = String::from_utf8_lossy(frame.get(5..).unwrap_or_default());
    text.lines()
        .find_map(|line| line.strip_prefix("grpc-status: "))
        .and_then(|number| number.trim().parse().ok())
        .and_then(Code::from_number)
        .unwrap_or(Code::Unknown)
}

/// Our services, as connectrpc dispatches to them.
struct Adapter(Calls);

impl Adapter {
    fn call(&self, context: &RequestContext) -> Result<Call, ConnectError> {
        let call = context.extensions().get::<Waiting>().and_then(Waiting::take);
        let mut call =
            call.ok_or_else(|| ConnectError::internal("the call did not pass the layers"))?;
        call.is_read();
        Ok(call)
    }

    fn single(
        &self,
        context: &RequestContext,
        requests: Streaming<Bytes>,
        format: CodecFormat,
    ) -> UnaryResult {
        let call = match self.call(context) {
            Ok(call) => call,
            Err(error) => return Box::pin(async { Err(error) }),
        };
        let method = Arc::clone(call.method());
        let answer = async move {
            let answers = method.service.stream(method.index, requests, codec(format)).await?;
            only(answers).await
        };
        Box::pin(async move { encoded(call.answer(answer).await) })
    }

    fn many(
        &self,
        context: &RequestContext,
        requests: Streaming<Bytes>,
        format: CodecFormat,
    ) -> StreamingResult {
        let call = match self.call(context) {
            Ok(call) => call,
            Err(error) => return Box::pin(async { Err(error) }),
        };
        let method = Arc::clone(call.method());
        Box::pin(async move {
            // Within the layers from its first line, which may panic, and which a limit may forbid.
            let answers =
                async { method.service.stream(method.index, requests, codec(format)).await };
            match call.open(answers).await {
                Ok(answers) => {
                    let answers = answers
                        .map_ok(|answer| EncodedBody::from(answer.message()))
                        .map_err(|status| status_wire::to_connect(&status));
                    Ok(connectrpc::Response::new(answers.boxed()))
                }
                Err(status) => Err(status_wire::to_connect(&status)),
            }
        })
    }
}

/// The single answer of a stream of one.
async fn only<T>(mut answers: Streaming<T>) -> Result<T, Status> {
    let none = || Status::internal("the handler of a call with one answer gave none");
    answers.next().await.unwrap_or_else(|| Err(none()))
}

fn encoded(
    answer: Result<crate::service::Encoded, Status>,
) -> Result<connectrpc::EncodedResponse, ConnectError> {
    match answer {
        Ok(answer) => Ok(connectrpc::Response::new(EncodedBody::from(answer.message()))),
        Err(status) => Err(status_wire::to_connect(&status)),
    }
}

const fn codec(format: CodecFormat) -> Codec {
    match format {
        CodecFormat::Json => Codec::Json,
        _ => Codec::Proto,
    }
}

impl Dispatcher for Adapter {
    fn lookup(&self, path: &str) -> Option<MethodDescriptor> {
        let method = self.0.method(path)?;
        Some(match method.info.kind {
            MethodKind::Unary => {
                MethodDescriptor::unary(method.info.idempotency == Idempotency::NoSideEffects)
            }
            MethodKind::ServerStream => MethodDescriptor::server_streaming(),
            MethodKind::ClientStream => MethodDescriptor::client_streaming(),
            MethodKind::Bidi => MethodDescriptor::bidi_streaming(),
        })
    }

    fn call_unary(
        &self,
        _path: &str,
        context: RequestContext,
        request: Payload,
        format: CodecFormat,
    ) -> UnaryResult {
        let call = match self.call(&context) {
            Ok(call) => call,
            Err(error) => return Box::pin(async { Err(error) }),
        };
        let method = Arc::clone(call.method());
        let request = request.bytes().clone();
        Box::pin(async move {
            let answer = async { method.service.unary(method.index, request, codec(format)).await };
            encoded(call.answer(answer).await)
        })
    }

    fn call_server_streaming(
        &self,
        _path: &str,
        context: RequestContext,
        request: Bytes,
        format: CodecFormat,
    ) -> StreamingResult {
        let requests = Streaming::new(stream::once(async { Ok(request) }));
        self.many(&context, requests, format)
    }

    fn call_client_streaming(
        &self,
        _path: &str,
        context: RequestContext,
        requests: RequestStream,
        format: CodecFormat,
    ) -> UnaryResult {
        self.single(&context, incoming(requests), format)
    }

    fn call_bidi_streaming(
        &self,
        _path: &str,
        context: RequestContext,
        requests: RequestStream,
        format: CodecFormat,
    ) -> StreamingResult {
        self.many(&context, incoming(requests), format)
    }
}

fn incoming(requests: RequestStream) -> Streaming<Bytes> {
    Streaming::new(requests.map_err(|error| status_wire::from_connect(&error)))
}
