//! Small requests to the services' ports for operators.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::Result;

/// How long an answer may take; a paused process gives none.
const LIMIT: Duration = Duration::from_secs(2);

/// Status and body of an answer.
///
/// # Errors
///
/// When there is no answer.
///
/// # Cancel safety
///
/// The connection is closed.
pub async fn get(to: &str, path: &str) -> Result<(u16, String)> {
    let exchange = async {
        let stream = TcpStream::connect(to).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::get(path).header("host", to).body(Empty::<Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await?.to_bytes();
        driver.abort();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(LIMIT, exchange).await?
}
