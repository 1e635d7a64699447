//! What generated code and the transports agree on.

use std::fmt;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

pub use antiphon_contract::{Idempotency, MethodKind};
use antiphon_core::{BoxFuture, Status};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Protobuf's binary form.
    Proto,
    /// Protobuf's canonical JSON form.
    Json,
}

/// A service as the contract declares it.
#[derive(Debug)]
pub struct ServiceInfo {
    /// The full name: `shop.inventory.v1.InventoryService`.
    pub name: &'static str,
    /// The methods; their place is their number.
    pub methods: &'static [MethodInfo],
    /// The descriptor set of the contract, with everything it imports.
    pub descriptor_set: &'static [u8],
}

/// A method as the contract declares it.
#[derive(Debug)]
pub struct MethodInfo {
    /// The full name of the service.
    pub service: &'static str,
    /// The name: `GetStock`.
    pub name: &'static str,
    /// The path over gRPC and Connect: `/shop.inventory.v1.InventoryService/GetStock`.
    pub path: &'static str,
    /// Who streams.
    pub kind: MethodKind,
    /// What a second call does.
    pub idempotency: Idempotency,
    /// The time a call may take when the caller sets none, and the most that the caller may set.
    pub timeout: Option<Duration>,
    /// Clients may try again what the server says that it did not take, even where `idempotency` does
    /// not say that a second call is harmless.
    pub retry: bool,
    /// Clients may ask a second instance before the first has answered.
    pub hedge: bool,
}

/// A message written down, with room in front for the envelope of gRPC and Connect streams, so that
/// framing costs no copy.
#[derive(Clone)]
pub struct Encoded(Bytes);

/// Flags and length: what stands before a message in an envelope.
const ENVELOPE: usize = 5;

impl Encoded {
    /// Writes a message of `len` bytes (a hint) through `write`.
    ///
    /// # Errors
    /// What `write` returns.
    pub fn build<E>(
        len: usize,
        write: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut buffer = BytesMut::with_capacity(ENVELOPE + len);
        buffer.put_bytes(0, ENVELOPE);
        write(&mut buffer)?;
        let length = u32::try_from(buffer.len() - ENVELOPE).unwrap_or(u32::MAX);
        buffer[1..ENVELOPE].copy_from_slice(&length.to_be_bytes());
        Ok(Self(buffer.freeze()))
    }

    /// The message alone.
    #[must_use]
    pub fn message(&self) -> Bytes {
        self.0.slice(ENVELOPE..)
    }

    /// The message in an uncompressed envelope.
    #[must_use]
    pub fn into_enveloped(self) -> Bytes {
        self.0
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoded({} bytes)", self.0.len() - ENVELOPE)
    }
}

/// Messages that come one after the other, and possibly an error at the end.
pub struct Streaming<T>(Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>);

impl<T> Streaming<T> {
    /// From any stream.
    pub fn new(stream: impl Stream<Item = Result<T, Status>> + Send + 'static) -> Self {
        Self(Box::pin(stream))
    }
}

impl<T> Stream for Streaming<T> {
    type Item = Result<T, Status>;
    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(task)
    }
}

impl<T> fmt::Debug for Streaming<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Streaming")
    }
}

/// A service that can be called with bytes. Implemented by generated `…Server` types: decode,
/// validate by the contract's rules, call the handler, encode.
///
/// 1. The context of the call is current when the method is called and while its future is polled;
///    deadlines, panics and limits are the caller's business.
/// 2. `method` is a place in [`ServiceInfo::methods`]; a wrong one, or one of another kind, is
///    [`antiphon_core::Code::Unimplemented`].
/// 3. A payload that does not decode is [`antiphon_core::Code::InvalidArgument`].
pub trait Service: Send + Sync + 'static {
    /// What it is.
    fn info(&self) -> &'static ServiceInfo;

    /// Calls a unary method.
    fn unary(
        &self,
        method: usize,
        request: Bytes,
        codec: Codec,
    ) -> BoxFuture<'static, Result<Encoded, Status>>;

    /// Calls a method of any other kind. A single request is a stream of one, and so is a single
    /// answer.
    fn stream(
        &self,
        method: usize,
        requests: Streaming<Bytes>,
        codec: Codec,
    ) -> BoxFuture<'static, Result<Streaming<Encoded>, Status>>;
}
