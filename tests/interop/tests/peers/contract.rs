//! The contract that all of them serve and call: `interop.v1.Peer`.
//!
//! Every message is a `StringValue`, which all languages bring along, and holds JSON: an [`Ask`], which
//! says how it is to be answered, and an [`Answer`], which says what the server saw of the call.
//! Servers remember what they have seen of each `id`; `Look` tells it, as [`Seen`].

use std::sync::OnceLock;

use antiphon_rpc::{Idempotency, MethodInfo, MethodKind, ServiceInfo};
use serde::{Deserialize, Serialize};

const fn method(name: &'static str, path: &'static str, kind: MethodKind) -> MethodInfo {
    let idempotency = match name.as_bytes() {
        b"Put" => Idempotency::Unknown,
        _ => Idempotency::NoSideEffects,
    };
    MethodInfo {
        service: "interop.v1.Peer",
        name,
        path,
        kind,
        idempotency,
        timeout: None,
        retry: false,
        hedge: false,
    }
}

static METHODS: [MethodInfo; 4] = [
    method("Get", "/interop.v1.Peer/Get", MethodKind::Unary),
    method("Put", "/interop.v1.Peer/Put", MethodKind::Unary),
    method("Look", "/interop.v1.Peer/Look", MethodKind::Unary),
    method("Count", "/interop.v1.Peer/Count", MethodKind::ServerStream),
];
/// May be tried again.
pub(crate) static GET: &MethodInfo = &METHODS[0];
/// The same, but nobody may do it twice.
pub(crate) static PUT: &MethodInfo = &METHODS[1];
/// What was seen of an id, which is the whole request.
pub(crate) static LOOK: &MethodInfo = &METHODS[2];
/// Counts as far as it is asked to, then waits.
pub(crate) static COUNT: &MethodInfo = &METHODS[3];

/// How a call is to be answered.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ask {
    /// Which calls belong together.
    pub(crate) id: String,
    /// So many attempts fail as UNAVAILABLE.
    pub(crate) fails: u32,
    /// What those say as `grpc-retry-pushback-ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pushback: Option<String>,
    /// How long it takes.
    pub(crate) waits_ms: u64,
    /// The size of the padding, or of each message of a stream.
    pub(crate) bytes: usize,
    /// How many messages a stream has.
    pub(crate) counts: u32,
}

impl Ask {
    pub(crate) fn id(id: &str) -> Self {
        Self { id: id.to_owned(), ..Self::default() }
    }
}

/// What a server tells of a call.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Of the server.
    pub(crate) name: String,
    /// How often the id was asked.
    pub(crate) attempt: u32,
    /// What `grpc-previous-rpc-attempts` said.
    pub(crate) previous: u32,
    /// The time that was left when it arrived.
    pub(crate) remaining_ms: Option<f64>,
    pub(crate) padding: String,
}

/// What a server has seen of an id.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// When each attempt arrived, by a clock of the server, in milliseconds.
    pub(crate) at: Vec<f64>,
    /// How many were given up while they waited.
    pub(crate) cancelled: u32,
}

/// The service as our server serves it.
pub(crate) fn info() -> &'static ServiceInfo {
    static INFO: OnceLock<ServiceInfo> = OnceLock::new();
    INFO.get_or_init(|| {
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers");
        let mut compiler = protox::Compiler::new([here]).unwrap();
        compiler.include_imports(true).open_file("peer.proto").unwrap();
        let descriptor_set = compiler.encode_file_descriptor_set().leak();
        ServiceInfo { name: "interop.v1.Peer", methods: &METHODS, descriptor_set }
    })
}
