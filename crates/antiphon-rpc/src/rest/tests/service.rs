//! A service without generated code: it decodes by descriptors, keeps what it was sent, and answers
//! with that or with what the test prepared.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use antiphon_core::{BoxFuture, Status};
use buffa_descriptor::DescriptorPool;
use buffa_descriptor::reflect::DynamicMessage;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use protox::Compiler;
use protox::file::{ChainFileResolver, GoogleFileResolver, IncludeFileResolver};
use serde_json::Value;
use tokio::sync::Notify;

use crate::service::{
    Codec, Encoded, Idempotency, MethodInfo, MethodKind, Service, ServiceInfo, Streaming,
};

const NAME: &str = "things.v1.Things";

/// The service of `things.proto`.
#[derive(Clone, Default)]
pub(super) struct Things(Arc<State>);

#[derive(Default)]
struct State {
    called: Mutex<&'static str>,
    received: Mutex<Vec<Value>>,
    answers: Mutex<Vec<Result<Value, Status>>>,
    endless: AtomicBool,
    dropped: Notify,
}

fn pool() -> &'static (Arc<DescriptorPool>, &'static ServiceInfo) {
    static POOL: OnceLock<(Arc<DescriptorPool>, &'static ServiceInfo)> = OnceLock::new();
    POOL.get_or_init(|| {
        let here = env!("CARGO_MANIFEST_DIR");
        let mut resolver = ChainFileResolver::new();
        resolver.add(IncludeFileResolver::new(format!("{here}/src/rest/tests/contract").into()));
        resolver.add(IncludeFileResolver::new(format!("{here}/../../proto").into()));
        resolver.add(GoogleFileResolver::new());
        let mut compiler = Compiler::with_file_resolver(resolver);
        compiler.include_imports(true).include_source_info(true);
        compiler.open_file("things.proto").unwrap();
        let set: &'static [u8] = compiler.encode_file_descriptor_set().leak();
        let pool = Arc::new(DescriptorPool::decode(set).unwrap());
        let methods = pool.service_by_name(NAME).unwrap().methods();
        let methods: Vec<MethodInfo> = methods
            .iter()
            .map(|method| MethodInfo {
                service: NAME,
                name: method.name().to_owned().leak(),
                path: format!("/{NAME}/{}", method.name()).leak(),
                kind: match (method.is_client_streaming(), method.is_server_streaming()) {
                    (false, false) => MethodKind::Unary,
                    (false, true) => MethodKind::ServerStream,
                    (true, false) => MethodKind::ClientStream,
                    (true, true) => MethodKind::Bidi,
                },
                idempotency: Idempotency::Unknown,
                timeout: None,
                retry: false,
                hedge: false,
            })
            .collect();
        let info = ServiceInfo { name: NAME, methods: methods.leak(), descriptor_set: set };
        (pool, Box::leak(Box::new(info)))
    })
}

/// The descriptor set of `things.proto`.
pub(in crate::rest) fn descriptor_set() -> &'static [u8] {
    pool().1.descriptor_set
}

impl Things {
    /// Answers with this instead of what was sent, once; several of them in their order. Server
    /// streams answer with all of them.
    pub(super) fn answer(&self, answer: Result<Value, Status>) {
        self.0.answers.lock().push(answer);
    }

    /// Lets server streams stay open after the prepared answers.
    pub(super) fn never_end(&self) {
        self.0.endless.store(true, Ordering::Relaxed);
    }

    /// Waits until a stream of answers was dropped or came to its end.
    pub(super) async fn stream_dropped(&self) {
        self.0.dropped.notified().await;
    }

    /// What was sent since the last time.
    pub(super) fn received(&self) -> Vec<Value> {
        std::mem::take(&mut *self.0.received.lock())
    }

    /// The method that was called last.
    pub(super) fn called(&self) -> &'static str {
        *self.0.called.lock()
    }

    fn prepared(&self) -> Option<Result<Value, Status>> {
        let mut answers = self.0.answers.lock();
        (!answers.is_empty()).then(|| answers.remove(0))
    }

    fn decode(&self, method: usize, bytes: &[u8], codec: Codec) -> Result<Value, Status> {
        let (pool, info) = pool();
        *self.0.called.lock() = info.methods[method].name;
        let input = pool.service_by_name(NAME).unwrap().methods()[method].input();
        let message = match codec {
            Codec::Json => {
                std::str::from_utf8(bytes).map_err(|error| error.to_string()).and_then(|text| {
                    DynamicMessage::from_json(Arc::clone(pool), input, text)
                        .map_err(|error| error.to_string())
                })
            }
            Codec::Proto => DynamicMessage::decode(Arc::clone(pool), input, bytes)
                .map_err(|error| error.to_string()),
        };
        let message = message.map_err(Status::invalid_argument)?;
        let json: Value = serde_json::from_str(&message.to_json().unwrap()).unwrap();
        self.0.received.lock().push(json.clone());
        Ok(json)
    }

    async fn answers(
        self,
        method: usize,
        mut requests: Streaming<Bytes>,
        codec: Codec,
    ) -> Result<Streaming<Encoded>, Status> {
        let guard = Dropped(self.clone());
        match pool().1.methods[method].kind {
            MethodKind::Unary | MethodKind::ServerStream => {
                let request = requests.next().await.expect("one request")?;
                self.decode(method, &request, codec)?;
                let prepared = std::mem::take(&mut *self.0.answers.lock());
                let endless = self.0.endless.load(Ordering::Relaxed);
                let end = stream::poll_fn(move |_| {
                    let _ = &guard;
                    if endless { Poll::Pending } else { Poll::Ready(None) }
                });
                let answers =
                    stream::iter(prepared).map(move |answer| encode(method, &answer?, codec));
                Ok(Streaming::new(answers.chain(end)))
            }
            MethodKind::ClientStream => {
                let mut last = Value::Null;
                let mut count = 0;
                while let Some(request) = requests.next().await {
                    last = self.decode(method, &request?, codec)?;
                    count += 1;
                }
                last["i32"] = count.into();
                let answer = encode(method, &last, codec)?;
                Ok(Streaming::new(stream::iter([Ok(answer)])))
            }
            MethodKind::Bidi => Ok(Streaming::new(requests.map(move |request| {
                let _ = &guard;
                let json = self.decode(method, &request?, codec)?;
                if json["name"] == "fail" {
                    return Err(Status::not_found("nothing here").with_reason("GONE", "things"));
                }
                encode(method, &json, codec)
            }))),
        }
    }
}

fn encode(method: usize, json: &Value, codec: Codec) -> Result<Encoded, Status> {
    let (pool, _) = pool();
    let output = pool.service_by_name(NAME).unwrap().methods()[method].output();
    let message = DynamicMessage::from_json(Arc::clone(pool), output, &json.to_string())
        .map_err(Status::internal)?;
    Encoded::build(64, |buffer| {
        match codec {
            Codec::Json => buffer.extend_from_slice(message.to_json().unwrap().as_bytes()),
            Codec::Proto => buffer.extend_from_slice(&message.encode_to_vec()),
        }
        Ok(())
    })
}

/// Tells when it is dropped.
struct Dropped(Things);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.0.dropped.notify_one();
    }
}

impl Service for Things {
    fn info(&self) -> &'static ServiceInfo {
        pool().1
    }

    fn unary(
        &self,
        method: usize,
        request: Bytes,
        codec: Codec,
    ) -> BoxFuture<'static, Result<Encoded, Status>> {
        let sent = self.decode(method, &request, codec);
        let answer = sent.and_then(|sent| self.prepared().unwrap_or(Ok(sent)));
        Box::pin(async move { encode(method, &answer?, codec) })
    }

    fn stream(
        &self,
        method: usize,
        requests: Streaming<Bytes>,
        codec: Codec,
    ) -> BoxFuture<'static, Result<Streaming<Encoded>, Status>> {
        Box::pin(self.clone().answers(method, requests, codec))
    }
}
