//! Echoes messages, to see what the server costs: `echo_server [antiphon|hyper|connectrpc] ADDRESS`.
//!
//! All three answer unary gRPC on one thread; `hyper` has no layer at all, and `connectrpc` is its
//! built-in server. Load it with `h2load -c8 -m8 -H 'content-type: application/grpc' -H
//! 'te: trailers' -d FRAME http://ADDRESS/echo.v1.Echo/Echo`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use antiphon_core::{BoxError, BoxFuture, Component, Health, ShutdownHandle, Status};
use antiphon_rpc::server::{Server, ServerSettings};
use antiphon_rpc::{
    Codec, Encoded, Idempotency, MethodInfo, MethodKind, Service, ServiceInfo, Streaming,
};
use antiphon_telemetry::Telemetry;
use bytes::Bytes;
use connectrpc::dispatcher::{RequestStream, StreamingResult, UnaryResult};
use connectrpc::{
    CodecFormat, ConnectError, Dispatcher, EncodedBody, MethodDescriptor, Payload, RequestContext,
};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SERVICE: &str = "echo.v1.Echo";

static METHODS: &[MethodInfo] = &[MethodInfo {
    service: SERVICE,
    name: "Echo",
    path: "/echo.v1.Echo/Echo",
    kind: MethodKind::Unary,
    idempotency: Idempotency::Unknown,
    timeout: None,
    retry: false,
    hedge: false,
}];

static INFO: LazyLock<ServiceInfo> = LazyLock::new(|| ServiceInfo {
    name: SERVICE,
    methods: METHODS,
    descriptor_set: descriptor_set().unwrap_or_default().leak(),
});

fn descriptor_set() -> Result<Vec<u8>, protox::Error> {
    let mut compiler = protox::Compiler::new([concat!(env!("CARGO_MANIFEST_DIR"), "/examples")])?;
    compiler.include_imports(true).open_file("echo.proto")?;
    Ok(compiler.encode_file_descriptor_set())
}

struct Echo;

impl Service for Echo {
    fn info(&self) -> &'static ServiceInfo {
        &INFO
    }

    fn unary(
        &self,
        _method: usize,
        request: Bytes,
        _codec: Codec,
    ) -> BoxFuture<'static, Result<Encoded, Status>> {
        Box::pin(async move {
            Encoded::build(request.len(), |out| {
                out.extend_from_slice(&request);
                Ok(())
            })
        })
    }

    fn stream(
        &self,
        _method: usize,
        _requests: Streaming<Bytes>,
        _codec: Codec,
    ) -> BoxFuture<'static, Result<Streaming<Encoded>, Status>> {
        Box::pin(async { Err(Status::unimplemented("there are no streams here")) })
    }
}

impl Dispatcher for Echo {
    fn lookup(&self, path: &str) -> Option<MethodDescriptor> {
        (path == "echo.v1.Echo/Echo").then(|| MethodDescriptor::unary(true))
    }

    fn call_unary(
        &self,
        _path: &str,
        _context: RequestContext,
        request: Payload,
        _format: CodecFormat,
    ) -> UnaryResult {
        let body = Bytes::copy_from_slice(request.bytes());
        Box::pin(async { Ok(connectrpc::Response::new(EncodedBody::from(body))) })
    }

    fn call_server_streaming(
        &self,
        _path: &str,
        _context: RequestContext,
        _request: Bytes,
        _format: CodecFormat,
    ) -> StreamingResult {
        Box::pin(async { Err(ConnectError::unimplemented("there are no streams here")) })
    }

    fn call_client_streaming(
        &self,
        _path: &str,
        _context: RequestContext,
        _requests: RequestStream,
        _format: CodecFormat,
    ) -> UnaryResult {
        Box::pin(async { Err(ConnectError::unimplemented("there are no streams here")) })
    }

    fn call_bidi_streaming(
        &self,
        _path: &str,
        _context: RequestContext,
        _requests: RequestStream,
        _format: CodecFormat,
    ) -> StreamingResult {
        Box::pin(async { Err(ConnectError::unimplemented("there are no streams here")) })
    }
}

async fn antiphon(listen: SocketAddr) -> Result<(), BoxError> {
    let settings = ServerSettings { listen, workers: 1, ..ServerSettings::default() };
    let services: Vec<Arc<dyn Service>> = vec![Arc::new(Echo)];
    let server = Server::bind(services, settings, &Telemetry::new(), &Health::new()).await?;
    let (_handle, shutdown) = ShutdownHandle::new();
    server.run(shutdown).await
}

async fn connectrpc(listen: SocketAddr) -> Result<(), BoxError> {
    let server = connectrpc::Server::bind(listen).await?;
    server.serve_with_service(connectrpc::ConnectRpcService::new(Echo)).await
}

async fn hyper(listen: SocketAddr) -> Result<(), BoxError> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let mut http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        http2.initial_stream_window_size(256 * 1024).initial_connection_window_size(1024 * 1024);
        let connection = http2.serve_connection(TokioIo::new(stream), service_fn(bare));
        tokio::spawn(async move {
            // A connection that breaks is the client's business.
            let _ = connection.await;
        });
    }
}

type Frames = futures_util::stream::Iter<std::array::IntoIter<Result<Frame<Bytes>, Infallible>, 2>>;

async fn bare(request: Request<Incoming>) -> Result<Response<StreamBody<Frames>>, BoxError> {
    let bytes = request.into_body().collect().await?.to_bytes();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(bytes)), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    Ok(response)
}

fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let (what, listen) = (arguments.next().unwrap_or_default(), arguments.next());
    let listen = listen.as_deref().unwrap_or("127.0.0.1:50051").parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match what.as_str() {
            "antiphon" => antiphon(listen).await,
            "connectrpc" => connectrpc(listen).await,
            "hyper" => hyper(listen).await,
            _ => Err("say which: antiphon, hyper or connectrpc".into()),
        }
    })
}
