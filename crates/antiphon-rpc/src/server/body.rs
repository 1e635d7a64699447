//! What goes over the wire below the protocols: one type of request body and one of response body,
//! whatever answers.

use std::fmt;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use antiphon_core::{BoxError, Code, Status};
use bytes::Bytes;
use connectrpc::ConnectRpcBody;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::Sleep;

/// The body of an answer.
pub struct Body(Kind);

enum Kind {
    Full(Option<Bytes>),
    Trailed { message: Option<Bytes>, trailers: Option<HeaderMap> },
    Connect(ConnectRpcBody),
    Stream(Pin<Box<dyn HttpBody<Data = Bytes, Error = BoxError> + Send>>),
}

impl Body {
    /// No bytes at all.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Kind::Full(None))
    }

    /// All the bytes at once; sent with `content-length`.
    #[must_use]
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self(Kind::Full((!bytes.is_empty()).then_some(bytes)))
    }

    /// One piece of data, then trailers: a unary answer of gRPC.
    #[must_use]
    pub(crate) const fn trailed(message: Bytes, trailers: HeaderMap) -> Self {
        Self(Kind::Trailed { message: Some(message), trailers: Some(trailers) })
    }

    /// Bytes that come one after the other. An error ends the answer abnormally (a reset stream, a
    /// closed connection), so the client cannot take it for a whole one.
    pub fn stream<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self(Kind::Stream(Box::pin(body.map_err(Into::into))))
    }
}

impl From<ConnectRpcBody> for Body {
    fn from(body: ConnectRpcBody) -> Self {
        Self(Kind::Connect(body))
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Full(_) => "Body(full)",
            Kind::Trailed { .. } => "Body(message and trailers)",
            Kind::Connect(_) => "Body(connectrpc)",
            Kind::Stream(_) => "Body(stream)",
        })
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().0 {
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Trailed { message, trailers } => Poll::Ready(
                message
                    .take()
                    .map(Frame::data)
                    .or_else(|| trailers.take().map(Frame::trailers))
                    .map(Ok),
            ),
            Kind::Connect(body) => {
                let frame = ready!(Pin::new(body).poll_frame(task));
                Poll::Ready(frame.map(|frame| frame.map_err(|never| match never {})))
            }
            Kind::Stream(body) => body.as_mut().poll_frame(task),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Trailed { message, trailers } => message.is_none() && trailers.is_none(),
            // connectrpc's bodies do not say; asking once more costs little.
            Kind::Connect(_) => false,
            Kind::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::Trailed { .. } => SizeHint::default(),
            // Without this, a unary answer over HTTP/1.1 would go out in chunks.
            Kind::Connect(ConnectRpcBody::Full(body)) => body.size_hint(),
            Kind::Connect(_) => SizeHint::default(),
            Kind::Stream(body) => body.size_hint(),
        }
    }
}

/// The body of a request, with a bound on how long the client may stay silent.
#[derive(Debug)]
pub struct RequestBody {
    source: Source,
    idle_max: Duration,
    // Made only when the client is not as fast as the handler, which is rare.
    idle: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
enum Source {
    Wire(Incoming),
    Read(Option<Bytes>),
}

/// Why a request body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client sent nothing for longer than it may.
    #[error("the client sent nothing for {0:?}")]
    Silent(Duration),
    /// The connection or the stream broke.
    #[error("the request body broke off")]
    Broken(#[source] hyper::Error),
    /// It is longer than the limit, in bytes.
    #[error("the request body is longer than {0} bytes")]
    TooLong(usize),
}

impl From<BodyError> for Status {
    fn from(error: BodyError) -> Self {
        let message = error.to_string();
        match error {
            BodyError::Silent(_) => {
                Self::new(Code::DeadlineExceeded, message).with_http_status(408)
            }
            BodyError::Broken(_) => Self::new(Code::Cancelled, message).with_http_status(400),
            BodyError::TooLong(_) => {
                Self::new(Code::ResourceExhausted, message).with_http_status(413)
            }
        }
    }
}

impl From<Bytes> for RequestBody {
    /// A body that was read already.
    fn from(bytes: Bytes) -> Self {
        Self { source: Source::Read(Some(bytes)), idle_max: Duration::MAX, idle: None }
    }
}

impl RequestBody {
    pub(crate) const fn new(incoming: Incoming, idle_max: Duration) -> Self {
        Self { source: Source::Wire(incoming), idle_max, idle: None }
    }

    /// The whole body; trailers are left out.
    ///
    /// # Errors
    /// [`BodyError::TooLong`] above `bytes_max`, found out while reading and not only by trusting
    /// `content-length`; the other errors when the body does not arrive.
    pub async fn collect(mut self, bytes_max: usize) -> Result<Bytes, BodyError> {
        self.read(bytes_max).await
    }

    /// [`Self::collect`] for a body that stays where it is.
    pub(crate) async fn read(&mut self, bytes_max: usize) -> Result<Bytes, BodyError> {
        if self.size_hint().lower() > bytes_max as u64 {
            return Err(BodyError::TooLong(bytes_max));
        }
        let Some(first) = self.next_data().await? else {
            return Ok(Bytes::new());
        };
        // Most bodies are one piece, which then needs no copy.
        let mut next = self.next_data().await?;
        if next.is_none() && first.len() <= bytes_max {
            return Ok(first);
        }
        let mut whole = Vec::from(first);
        loop {
            let more = next.as_ref().map_or(0, Bytes::len);
            if whole.len() + more > bytes_max {
                return Err(BodyError::TooLong(bytes_max));
            }
            let Some(piece) = next else {
                return Ok(whole.into());
            };
            whole.extend_from_slice(&piece);
            next = self.next_data().await?;
        }
    }

    /// The next piece that is not empty.
    async fn next_data(&mut self) -> Result<Option<Bytes>, BodyError> {
        while !self.is_end_stream() {
            let Some(frame) = self.frame().await else {
                break;
            };
            if let Ok(data) = frame?.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let incoming = match &mut this.source {
            Source::Wire(incoming) => incoming,
            Source::Read(bytes) => return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
        };
        if let Poll::Ready(frame) = Pin::new(incoming).poll_frame(task) {
            this.idle = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)));
        }
        let idle_max = this.idle_max;
        let idle = this.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle_max)));
        ready!(idle.as_mut().poll(task));
        Poll::Ready(Some(Err(BodyError::Silent(idle_max))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Wire(incoming) => incoming.is_end_stream(),
            Source::Read(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Wire(incoming) => incoming.size_hint(),
            Source::Read(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
        }
    }
}
