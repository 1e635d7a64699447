//! One REST request: route, call, answer.

use std::future::{poll_fn, ready};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use antiphon_core::{BoxFuture, Code, Status};
use bytes::Bytes;
use futures_util::{Stream, stream as streams};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method as Verb, Request, Response, StatusCode};
use http_body::Body as _;

use super::negotiate::{self, EVENT_STREAM, JSON, NDJSON};
use super::request::{BodyPlan, Said};
use super::routes::{Miss, Route};
use super::stream::{Format, StreamBody};
use super::{Shared, problem, websocket};
use crate::server::{Body, BodyError, Call, CallStream, Protocol, RequestBody};
use crate::service::{Codec, Encoded, Streaming};

impl Shared {
    /// Lets a request in at once, and gives what answers it.
    pub(super) fn answer(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        peer: IpAddr,
    ) -> BoxFuture<'static, Response<Body>> {
        let route = match self.routes.find(request.method(), request.uri().path()) {
            Ok(route) => Arc::clone(route),
            Err(miss) => return Box::pin(ready(self.no_route(&request, miss))),
        };
        let (parts, body) = request.into_parts();
        let call = match self.calls.enter(&route.method, &parts.headers, peer, Protocol::Rest) {
            Ok(call) => call,
            Err(status) => return Box::pin(ready(problem::response(&status, None))),
        };
        let shared = Arc::clone(self);
        if route.is_unary() {
            Box::pin(async move { shared.unary(&route, call, parts, body).await })
        } else {
            Box::pin(async move { shared.server_stream(&route, call, parts, body).await })
        }
    }

    fn no_route(&self, request: &Request<RequestBody>, miss: Miss) -> Response<Body> {
        let path = request.uri().path();
        match miss {
            Miss::Nothing => {
                if let Some(page) = self.docs.answer(request.method(), path, request.headers()) {
                    return page;
                }
                let status = Status::not_found(format!("there is nothing at {path}"));
                problem::response(&status, None)
            }
            Miss::Only(allowed) => {
                let mut response = if request.method() == Verb::OPTIONS {
                    let mut response = Response::new(Body::empty());
                    *response.status_mut() = StatusCode::NO_CONTENT;
                    response
                } else {
                    let verb = request.method();
                    let message = format!("{path} does not answer {verb}; it answers {allowed}");
                    let status = Status::new(Code::Unimplemented, message).with_http_status(405);
                    problem::response(&status, None)
                };
                if let Ok(allowed) = HeaderValue::try_from(allowed) {
                    response.headers_mut().insert(ALLOW, allowed);
                }
                response
            }
            Miss::WebSocket => websocket::needed(path),
        }
    }

    async fn unary(
        &self,
        route: &Route,
        mut call: Call,
        parts: Parts,
        body: RequestBody,
    ) -> Response<Body> {
        let context = call.context().clone();
        let read = call.reads(async {
            if !route.answer.is_raw {
                negotiate::choose(&parts.headers, &[JSON])?;
            }
            self.read(route, &parts, body).await
        });
        let answered = match read.await {
            Ok(message) => {
                let method = &route.method;
                let answer = async {
                    let answer = method.service.unary(method.index, message, Codec::Json).await?;
                    route.answer.response(&self.schema, answer.message())
                };
                call.answer(answer).await
            }
            Err(status) => Err(call.fail(status)),
        };
        match answered {
            Ok(response) => response,
            Err(status) => problem::response(&status, Some(&context)),
        }
    }

    /// The request message.
    async fn read(&self, route: &Route, parts: &Parts, body: RequestBody) -> Result<Bytes, Status> {
        let plan = &route.request;
        let body = match plan.body {
            BodyPlan::None if body.is_end_stream() => Bytes::new(),
            BodyPlan::None => match body.collect(0).await {
                Ok(nothing) => nothing,
                Err(BodyError::TooLong(_)) => {
                    let message = format!("{} takes no body", parts.uri.path());
                    return Err(Status::invalid_argument(message));
                }
                Err(error) => return Err(error.into()),
            },
            _ => body.collect(self.calls.settings().body_bytes_max).await?,
        };
        let content_type = parts.headers.get(CONTENT_TYPE);
        if !body.is_empty() && matches!(plan.body, BodyPlan::All | BodyPlan::Field { .. }) {
            negotiate::require_json(&parts.headers)?;
        }
        let content_type = content_type.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        plan.message(&self.schema, said(&parts.uri), content_type, body)
    }

    async fn server_stream(
        &self,
        route: &Arc<Route>,
        call: Call,
        parts: Parts,
        body: RequestBody,
    ) -> Response<Body> {
        let context = call.context().clone();
        let opened = self.open(call, route, &parts, body).await;
        match opened {
            Ok(response) => response,
            Err(status) => problem::response(&status, Some(&context)),
        }
    }

    async fn open(
        &self,
        call: Call,
        route: &Arc<Route>,
        parts: &Parts,
        body: RequestBody,
    ) -> Result<Response<Body>, Status> {
        let mut kind = NDJSON;
        let opened = call.open(async {
            if !route.answer.is_raw {
                kind = negotiate::choose(&parts.headers, &[NDJSON, EVENT_STREAM])?;
            }
            let message = self.read(route, parts, body).await?;
            let requests = Streaming::new(streams::iter([Ok(message)]));
            let method = &route.method;
            method.service.stream(method.index, requests, Codec::Json).await
        });
        let mut answers = opened.await?;
        let first = match first_answer(&mut answers, route.answer.is_raw).await {
            Some(Err(status)) => return Err(status),
            Some(Ok(encoded)) => Some(encoded),
            None => None,
        };
        let content_type = match &first {
            Some(encoded) if route.answer.is_raw => {
                route.answer.raw(&self.schema, encoded.message())?.content_type
            }
            _ => HeaderValue::from_static(kind),
        };
        let format = match kind {
            _ if route.answer.is_raw => Format::Raw,
            EVENT_STREAM => Format::Events,
            _ => Format::Lines,
        };
        let body = StreamBody::new(
            answers,
            first,
            format,
            Arc::clone(&self.schema),
            Arc::clone(route),
            self.settings.keep_alive,
        );
        let mut response = Response::new(Body::stream(body));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, content_type);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // Asks nginx not to hold events back.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        Ok(response)
    }
}

/// What a stream has to say at once. A stream that fails before its first message is answered with a
/// problem, unless the handler needs time: the client should know soon that the stream is open.
async fn first_answer(
    answers: &mut CallStream<Encoded>,
    patient: bool,
) -> Option<Result<Encoded, Status>> {
    poll_fn(|task| match Pin::new(&mut *answers).poll_next(task) {
        Poll::Ready(answer) => Poll::Ready(answer),
        // The type of raw bytes is known with the first message only.
        Poll::Pending if patient => Poll::Pending,
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// The answer to HEAD: all that GET would say but the body.
pub(super) fn without_body(mut response: Response<Body>) -> Response<Body> {
    if let Some(length) = response.body().size_hint().exact()
        && !matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    *response.body_mut() = Body::empty();
    response
}

fn said(uri: &http::Uri) -> Said<'_> {
    Said { path: uri.path(), query: uri.query().unwrap_or_default() }
}
