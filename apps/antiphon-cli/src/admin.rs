//! Asks the admin port of a running process.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(5);

/// A page of the admin port at `address`, which is JSON.
///
/// # Errors
/// Nobody answers there in time, or not so.
pub(crate) async fn page<T: DeserializeOwned>(
    address: SocketAddr,
    path: &str,
) -> antiphon::Result<T> {
    let asked = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let request = hyper::Request::get(path)
            .header(hyper::header::HOST, address.to_string())
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?;
        if !status.is_success() {
            return Err(format!("{path} answers {status}"));
        }
        serde_json::from_slice(&body.to_bytes()).map_err(|error| format!("{path}: {error}"))
    };
    let answer = tokio::time::timeout(WITHIN, asked).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {WITHIN:?}"))).map_err(|cause| {
        format!(
            "cannot ask the admin port at {address}: {cause}; is the process running, and is \
             admin.listen the right one? (--admin names another)"
        )
        .into()
    })
}
