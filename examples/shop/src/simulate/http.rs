//! One customer's connection to the shop.

use antiphon::BoxError;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use std::time::Duration;

/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// Keeps one HTTP/1.1 connection open and makes a new one when it is gone.
pub(super) struct Client {
    to: String,
    open: Option<SendRequest<Full<Bytes>>>,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

impl Answer {
    /// A refusal in one line.
    pub(super) fn problem(&self) -> String {
        let problem: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let said = problem["reason"].as_str().filter(|reason| !reason.is_empty());
        let said = said.or_else(|| problem["detail"].as_str()).unwrap_or("no details");
        format!("{} {said}", self.status)
    }
}

impl Client {
    pub(super) fn new(to: &str) -> Self {
        Self { to: to.to_owned(), open: None }
    }

    pub(super) async fn get(&mut self, path: &str) -> Result<Answer, BoxError> {
        let request = Request::builder().method(Method::GET).uri(path).header("host", &self.to);
        self.send(request.body(Full::default())?).await
    }

    pub(super) async fn post(
        &mut self,
        path: &str,
        key: &str,
        body: &Value,
    ) -> Result<Answer, BoxError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("host", &self.to)
            .header("content-type", "application/json")
            .header("idempotency-key", key);
        self.send(request.body(Full::from(body.to_string()))?).await
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, BoxError> {
        let outcome = tokio::time::timeout(ANSWER_MAX, self.exchange(request)).await;
        match outcome {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                self.open = None;
                Err(error)
            }
            Err(_) => {
                self.open = None;
                Err(format!("no answer within {ANSWER_MAX:?}").into())
            }
        }
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, BoxError> {
        let mut sender = match self.open.take() {
            Some(sender) if !sender.is_closed() => sender,
            _ => self.connect().await?,
        };
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        self.open = Some(sender);
        Ok(Answer { status, body })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, BoxError> {
        let stream = TcpStream::connect(&self.to).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
