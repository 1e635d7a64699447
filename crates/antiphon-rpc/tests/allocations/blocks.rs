//! How many blocks of memory a call takes: the whole stack of the client against connectrpc's bare
//! client, at the same server. The server's own share is the same in both and goes out.

use std::alloc::System;
use std::sync::{Arc, OnceLock};

use antiphon_core::{BoxFuture, Health, ShutdownHandle, Status};
use antiphon_discovery::Discovery;
use antiphon_rpc::client::{Channel, ClientSettings};
use antiphon_rpc::server::{Server, ServerSettings};
use antiphon_rpc::{
    Codec, Encoded, Idempotency, MethodInfo, MethodKind, Service, ServiceInfo, Streaming,
};
use antiphon_telemetry::Telemetry;
use buffa_types::google::protobuf::StringValue;
use bytes::Bytes;
use connectrpc::client::{CallOptions, ClientConfig, Http2Connection};
use connectrpc::{Protocol, Spec, StreamType};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PATH: &str = "/t.v1.Fleet/Get";
const CALLS: usize = 2_000;

static METHODS: [MethodInfo; 1] = [MethodInfo {
    service: "t.v1.Fleet",
    name: "Get",
    path: PATH,
    kind: MethodKind::Unary,
    idempotency: Idempotency::NoSideEffects,
    timeout: None,
    retry: false,
    hedge: false,
}];

struct Answering;

impl Service for Answering {
    fn info(&self) -> &'static ServiceInfo {
        static INFO: OnceLock<ServiceInfo> = OnceLock::new();
        INFO.get_or_init(|| {
            let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client/support");
            let mut compiler = protox::Compiler::new([here]).unwrap();
            compiler.include_imports(true).open_file("fleet.proto").unwrap();
            let descriptor_set = compiler.encode_file_descriptor_set().leak();
            ServiceInfo { name: "t.v1.Fleet", methods: &METHODS, descriptor_set }
        })
    }

    fn unary(
        &self,
        _: usize,
        request: Bytes,
        _: Codec,
    ) -> BoxFuture<'static, Result<Encoded, Status>> {
        Box::pin(async move {
            Encoded::build(request.len(), |buffer| {
                buffer.extend_from_slice(&request);
                Ok(())
            })
        })
    }

    fn stream(
        &self,
        _: usize,
        _: Streaming<Bytes>,
        _: Codec,
    ) -> BoxFuture<'static, Result<Streaming<Encoded>, Status>> {
        Box::pin(async { Err(Status::unimplemented("unary only")) })
    }
}

fn request() -> StringValue {
    StringValue { value: "x".repeat(64), ..Default::default() }
}

/// Blocks per call, once everything is warm.
async fn blocks<F: Future<Output = ()>>(call: impl Fn() -> F) -> f64 {
    for _ in 0..CALLS {
        call().await;
    }
    let before = ALLOCATOR.stats();
    for _ in 0..CALLS {
        call().await;
    }
    let stats = ALLOCATOR.stats() - before;
    (stats.allocations + stats.reallocations) as f64 / CALLS as f64
}

#[tokio::test]
async fn the_stack_takes_at_most_six_blocks_more_than_the_bare_client() {
    let settings = ServerSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        workers: 1,
        ..ServerSettings::default()
    };
    let service: Arc<dyn Service> = Arc::new(Answering);
    let server =
        Server::bind(vec![service], settings, &Telemetry::new(), &Health::new()).await.unwrap();
    let address = server.address();
    let (_handle, shutdown) = ShutdownHandle::new();
    tokio::spawn(async move { antiphon_core::Component::run(server, shutdown).await.unwrap() });

    let discovery = Discovery::new(antiphon_discovery::Settings::default());
    let target = format!("static:{address}").parse().unwrap();
    let channel =
        Channel::new(&target, ClientSettings::default(), &discovery, &Telemetry::new()).unwrap();
    let ours = blocks(|| async {
        let _: StringValue = channel.unary(&METHODS[0], request()).await.unwrap();
    })
    .await;

    let uri: http::Uri = format!("http://{address}").parse().unwrap();
    let connection = Http2Connection::connect_plaintext(uri.clone()).await.unwrap().shared(16);
    let config = ClientConfig::new(uri).with_protocol(Protocol::Grpc);
    let bare = blocks(|| async {
        type View = <StringValue as buffa::HasMessageView>::View<'static>;
        let spec = Spec::client(PATH, StreamType::Unary);
        let options = CallOptions::default().with_timeout(std::time::Duration::from_secs(10));
        let answer = connectrpc::client::call_unary::<_, _, View>(
            &connection,
            &config,
            spec,
            request(),
            options,
        )
        .await
        .unwrap();
        drop(answer.into_owned());
    })
    .await;
    println!("blocks per call, with the server's: {ours:.1} ours, {bare:.1} bare");
    assert!(ours <= bare + 6.0, "{ours:.1} against {bare:.1}");
}
