//! A small client: HTTP/2 and HTTP/1.1 requests with every header in sight.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Answer {
    /// The code of gRPC, wherever it is.
    pub(crate) fn code(&self) -> &str {
        let value = self.trailers.get("grpc-status").or_else(|| self.headers.get("grpc-status"));
        value.map_or("none", |value| value.to_str().unwrap())
    }

    pub(crate) fn message(&self) -> &str {
        let value = self.trailers.get("grpc-message").or_else(|| self.headers.get("grpc-message"));
        value.map_or("", |value| value.to_str().unwrap())
    }

    /// The messages in the frames of the body.
    pub(crate) fn messages(&self) -> Vec<Bytes> {
        let mut rest = self.body.clone();
        let mut messages = Vec::new();
        while rest.len() >= 5 {
            let head = rest.split_to(5);
            let length = u32::from_be_bytes(head[1..5].try_into().unwrap()) as usize;
            messages.push(rest.split_to(length));
        }
        messages
    }
}

/// A connection over HTTP/2.
#[derive(Clone, Debug)]
pub(crate) struct Http2(pub(crate) SendRequest<Bytes>);

pub(crate) fn frame(message: &[u8]) -> Bytes {
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(message);
    frame.into()
}

impl Http2 {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Self(send)
    }

    pub(crate) fn request(path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::post(format!("http://test{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    pub(crate) async fn send(&self, request: Request<()>, body: Bytes) -> Answer {
        self.try_send(request, body).await.unwrap()
    }

    pub(crate) async fn try_send(
        &self,
        request: Request<()>,
        body: Bytes,
    ) -> Result<Answer, h2::Error> {
        let mut send = self.0.clone().ready().await?;
        let (response, mut stream) = send.send_request(request, false)?;
        // The server may have answered already without waiting for the body.
        let _ = stream.send_data(body, true);
        read(response.await?).await
    }

    /// A unary call of gRPC.
    pub(crate) async fn grpc(&self, method: &str, message: &[u8]) -> Answer {
        self.grpc_with(method, message, &[]).await
    }

    pub(crate) async fn grpc_with(
        &self,
        method: &str,
        message: &[u8],
        headers: &[(&str, &str)],
    ) -> Answer {
        self.send(grpc_request(method, headers), frame(message)).await
    }
}

pub(crate) fn grpc_request(method: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut all = vec![("content-type", "application/grpc"), ("te", "trailers")];
    all.extend_from_slice(headers);
    Http2::request(&format!("/t.v1.Echo/{method}"), &all)
}

async fn read(response: Response<h2::RecvStream>) -> Result<Answer, h2::Error> {
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: bytes.into(), trailers })
}

/// Sends bytes over HTTP/1.1 and reads until the server closes.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an end like another.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A request over HTTP/1.1 with `connection: close`, answered as head and body.
pub(crate) async fn http1(address: SocketAddr, head: &str, body: &[u8]) -> (String, String) {
    let mut bytes = format!(
        "{head}\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    let answer = raw(address, &bytes).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.to_owned(), body.to_owned())
}
