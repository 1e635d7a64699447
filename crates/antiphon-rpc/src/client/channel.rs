//! What generated clients call through.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use antiphon_core::Status;
use antiphon_discovery::{Discovery, Target};
use antiphon_resilience::balance::stable_hash;
use antiphon_telemetry::Telemetry;
use arc_swap::ArcSwap;
use buffa::HasMessageView;
use connectrpc::{JsonDeserialize, JsonSerialize};

use super::remote::Remote;
use super::{ClientSettings, report};
use crate::service::{MethodInfo, ServiceInfo, Streaming};

/// A protobuf message as generated code makes it: what can be sent and received.
pub trait Wire:
    buffa::Message + HasMessageView + JsonSerialize + JsonDeserialize + Send + 'static
{
}

impl<M> Wire for M where
    M: buffa::Message + HasMessageView + JsonSerialize + JsonDeserialize + Send + 'static
{
}

/// Leads to one target. Cheap to clone, shared by all tasks; connections are made when they are
/// needed and kept.
#[derive(Clone)]
pub struct Channel {
    kind: Kind,
    idempotency_key: Option<Arc<str>>,
    /// Where calls go under consistent hashing.
    place: Option<u64>,
}

#[derive(Clone)]
enum Kind {
    /// A handler of this process, as the generated code's object-safe twin of the service trait.
    Local(Arc<dyn Any + Send + Sync>),
    Remote(Arc<Line>),
}

/// The way to a target, which other settings may replace as a whole.
struct Line {
    remote: ArcSwap<Remote>,
    service: Option<&'static ServiceInfo>,
    discovery: Discovery,
    telemetry: Telemetry,
}

impl Line {
    fn lay(
        target: &Target,
        service: Option<&'static ServiceInfo>,
        settings: ClientSettings,
        discovery: &Discovery,
        telemetry: &Telemetry,
    ) -> Result<Arc<Remote>, Status> {
        let remote = Arc::new(Remote::new(target, service, settings, discovery, telemetry)?);
        report::remember(telemetry, &remote);
        Ok(remote)
    }
}

impl Channel {
    /// A channel to instances elsewhere. Connects at the first call.
    ///
    /// Connections live on the runtime that is current here.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// # Errors
    /// The target cannot be watched: it is [`Target::Inproc`], for which there is
    /// [`Channel::inproc`], or in a registry that `discovery` does not have.
    pub fn new(
        target: &Target,
        settings: ClientSettings,
        discovery: &Discovery,
        telemetry: &Telemetry,
    ) -> Result<Self, Status> {
        Self::to(target, None, settings, discovery, telemetry)
    }

    /// The same, for calls of one service: what holds for its methods is a part of the reports.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn to_service(
        target: &Target,
        service: &'static ServiceInfo,
        settings: ClientSettings,
        discovery: &Discovery,
        telemetry: &Telemetry,
    ) -> Result<Self, Status> {
        Self::to(target, Some(service), settings, discovery, telemetry)
    }

    fn to(
        target: &Target,
        service: Option<&'static ServiceInfo>,
        settings: ClientSettings,
        discovery: &Discovery,
        telemetry: &Telemetry,
    ) -> Result<Self, Status> {
        let remote = Line::lay(target, service, settings, discovery, telemetry)?;
        let line = Line {
            remote: ArcSwap::new(remote),
            service,
            discovery: discovery.clone(),
            telemetry: telemetry.clone(),
        };
        Ok(Self { kind: Kind::Remote(Arc::new(line)), idempotency_key: None, place: None })
    }

    /// From the next call on, calls go to this target, with these settings. Those under way end as they
    /// began. Nothing happens where neither differs, and in a channel inside the process. Whether
    /// anything did.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// # Errors
    /// As [`Self::new`]; then everything stays as it was.
    pub fn reload(&self, target: &Target, settings: ClientSettings) -> Result<bool, Status> {
        let Kind::Remote(line) = &self.kind else { return Ok(false) };
        let current = line.remote.load();
        if current.target() == target && *current.settings == settings {
            return Ok(false);
        }
        let remote = Line::lay(target, line.service, settings, &line.discovery, &line.telemetry)?;
        line.remote.store(remote);
        Ok(true)
    }

    /// A channel to a service of this process. `T` is the generated object-safe twin of the service
    /// trait.
    #[must_use]
    pub fn inproc<T: ?Sized + Send + Sync + 'static>(service: Arc<T>) -> Self {
        Self { kind: Kind::Local(Arc::new(service)), idempotency_key: None, place: None }
    }

    /// The service behind [`Channel::inproc`], for generated clients.
    #[must_use]
    pub fn local<T: ?Sized + Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        match &self.kind {
            Kind::Local(service) => service.downcast_ref::<Arc<T>>().cloned(),
            Kind::Remote(_) => None,
        }
    }

    /// The same channel, whose calls carry this idempotency key: repeating one does not do it twice.
    #[must_use]
    pub fn keyed(&self, key: &str) -> Self {
        Self { idempotency_key: Some(key.into()), ..self.clone() }
    }

    /// The same channel, whose calls all go to one instance as long as it is there: where the settings
    /// balance by `consistent_hash`, the one that this key belongs to. Elsewhere nothing changes.
    #[must_use]
    pub fn placed(&self, key: &str) -> Self {
        Self { place: Some(stable_hash(key.as_bytes())), ..self.clone() }
    }

    /// The key of [`Channel::keyed`].
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&str> {
        self.idempotency_key.as_deref()
    }

    fn remote(&self) -> Result<Arc<Remote>, Status> {
        match &self.kind {
            Kind::Remote(line) => Ok(line.remote.load_full()),
            Kind::Local(_) => Err(Status::unimplemented(
                "this channel leads to another service of the same process",
            )),
        }
    }

    /// One request, one answer.
    ///
    /// # Errors
    /// The service's status; `UNAVAILABLE` with a [`super::CallError`] as its source when it could
    /// not be reached; `DEADLINE_EXCEEDED`.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call; whether it had an effect is unknown.
    pub async fn unary<Req: Wire, Res: Wire>(
        &self,
        method: &'static MethodInfo,
        request: Req,
    ) -> Result<Res, Status> {
        self.remote()?.unary(method, request, self.idempotency_key(), self.place).await
    }

    /// One request, many answers.
    ///
    /// # Errors
    /// As [`Channel::unary`]; later failures are items of the stream.
    pub async fn server_stream<Req: Wire, Res: Wire>(
        &self,
        method: &'static MethodInfo,
        request: Req,
    ) -> Result<Streaming<Res>, Status> {
        self.remote()?.server_stream(method, request, self.place).await
    }

    /// Many requests, one answer.
    ///
    /// # Errors
    /// As [`Channel::unary`]. An error item in `requests` cancels the call.
    pub async fn client_stream<Req: Wire, Res: Wire>(
        &self,
        method: &'static MethodInfo,
        requests: Streaming<Req>,
    ) -> Result<Res, Status> {
        self.remote()?.client_stream(method, requests, self.place).await
    }

    /// Many requests, many answers.
    ///
    /// # Errors
    /// As [`Channel::server_stream`]. An error item in `requests` cancels the call.
    pub async fn bidi<Req: Wire, Res: Wire>(
        &self,
        method: &'static MethodInfo,
        requests: Streaming<Req>,
    ) -> Result<Streaming<Res>, Status> {
        self.remote()?.bidi(method, requests, self.place).await
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Local(_) => f.write_str("Channel(inproc:)"),
            Kind::Remote(line) => write!(f, "Channel({})", line.remote.load().target()),
        }
    }
}
