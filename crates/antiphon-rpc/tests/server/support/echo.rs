//! A service written by hand, as generated code would be: bytes in, bytes out.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use antiphon_core::{BoxFuture, Code, Context, Status};
use antiphon_rpc::{
    Codec, Encoded, Idempotency, MethodInfo, MethodKind, Service, ServiceInfo, Streaming,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;

const fn method(name: &'static str, path: &'static str, kind: MethodKind) -> MethodInfo {
    let idempotency = match name.as_bytes() {
        b"Echo" => Idempotency::NoSideEffects,
        _ => Idempotency::Unknown,
    };
    let (retry, hedge) = (false, false);
    MethodInfo { service: "t.v1.Echo", name, path, kind, idempotency, timeout: None, retry, hedge }
}

static METHODS: &[MethodInfo] = &[
    method("Echo", "/t.v1.Echo/Echo", MethodKind::Unary),
    method("Fail", "/t.v1.Echo/Fail", MethodKind::Unary),
    method("Panic", "/t.v1.Echo/Panic", MethodKind::Unary),
    method("Wait", "/t.v1.Echo/Wait", MethodKind::Unary),
    method("Context", "/t.v1.Echo/Context", MethodKind::Unary),
    method("Count", "/t.v1.Echo/Count", MethodKind::ServerStream),
    method("Join", "/t.v1.Echo/Join", MethodKind::ClientStream),
    method("Chat", "/t.v1.Echo/Chat", MethodKind::Bidi),
    method("Forever", "/t.v1.Echo/Forever", MethodKind::ServerStream),
    method("Flood", "/t.v1.Echo/Flood", MethodKind::ServerStream),
];

fn info() -> &'static ServiceInfo {
    static INFO: OnceLock<ServiceInfo> = OnceLock::new();
    INFO.get_or_init(|| {
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/server/support");
        let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto");
        let mut compiler = protox::Compiler::new([here, ours]).unwrap();
        compiler.include_imports(true).open_file("echo.proto").unwrap();
        let descriptor_set = compiler.encode_file_descriptor_set().leak();
        ServiceInfo { name: "t.v1.Echo", methods: METHODS, descriptor_set }
    })
}

/// What happened to the service.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Handlers that began.
    pub(crate) begun: AtomicUsize,
    /// Handlers that were dropped before their end.
    pub(crate) dropped: AtomicUsize,
    /// What `Wait` waits for when it is asked for `release`.
    pub(crate) release: Arc<Semaphore>,
}

impl Default for Seen {
    fn default() -> Self {
        let (begun, dropped) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { begun, dropped, release: Arc::new(Semaphore::new(0)) }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Echo(pub(crate) Arc<Seen>);

struct CountDrop(Arc<Seen>, bool);

impl Drop for CountDrop {
    fn drop(&mut self) {
        if !self.1 {
            self.0.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

pub(crate) fn encode(bytes: &[u8]) -> Result<Encoded, Status> {
    Encoded::build(bytes.len(), |buffer| {
        buffer.extend_from_slice(bytes);
        Ok(())
    })
}

impl Service for Echo {
    fn info(&self) -> &'static ServiceInfo {
        info()
    }

    fn unary(
        &self,
        method: usize,
        request: Bytes,
        _codec: Codec,
    ) -> BoxFuture<'static, Result<Encoded, Status>> {
        let seen = Arc::clone(&self.0);
        seen.begun.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            match method {
                0 => encode(&request),
                1 => Err(Status::new(Code::FailedPrecondition, "no: 100 %")
                    .with_reason("OUT_OF_STOCK", "t.v1")
                    .with_source("password=hunter2")),
                2 => panic!("boom: password=hunter2"),
                3 => {
                    let mut guard = CountDrop(Arc::clone(&seen), false);
                    if &request[..] == b"release" {
                        seen.release.acquire().await.unwrap().forget();
                    } else {
                        let millis = std::str::from_utf8(&request).unwrap().parse().unwrap();
                        tokio::time::sleep(Duration::from_millis(millis)).await;
                    }
                    guard.1 = true;
                    encode(&request)
                }
                4 => {
                    let context = Context::current();
                    let text = format!(
                        "{} {} {:?}",
                        context.correlation_id(),
                        context.trace().trace_id,
                        context.remaining().map(|left| left.as_secs()),
                    );
                    encode(text.as_bytes())
                }
                _ => Err(Status::unimplemented("no such method")),
            }
        })
    }

    fn stream(
        &self,
        method: usize,
        mut requests: Streaming<Bytes>,
        _codec: Codec,
    ) -> BoxFuture<'static, Result<Streaming<Encoded>, Status>> {
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            Ok(match method {
                5 => {
                    let request = requests.next().await.unwrap()?;
                    let count: usize = std::str::from_utf8(&request).unwrap().parse().unwrap();
                    let items = (0..count).map(|n| encode(n.to_string().as_bytes()));
                    Streaming::new(stream::iter(items))
                }
                6 => {
                    let mut all = Vec::new();
                    while let Some(request) = requests.next().await {
                        all.extend_from_slice(&request?);
                    }
                    Streaming::new(stream::once(async move { encode(&all) }))
                }
                7 => Streaming::new(requests.map(|request| encode(&request?))),
                9 => Streaming::new(stream::repeat_with(|| encode(b"more"))),
                8 => Streaming::new(
                    stream::once(async { encode(b"first") }).chain(stream::pending()),
                ),
                _ => return Err(Status::unimplemented("no such method")),
            })
        })
    }
}
