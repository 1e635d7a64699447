//! One request to the collector.

use std::time::Duration;

use antiphon_core::BoxError;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::TracesError;

/// Where OTLP over HTTP takes traces.
const PATH: &str = "/v1/traces";
/// The port of OTLP over HTTP.
const PORT: u16 = 4_318;
/// An answer longer than this is not one of a collector.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Where a collector listens.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    uri: Uri,
    host: String,
    port: u16,
}

/// Why spans were not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    /// Trying again may help.
    #[error("{0}")]
    Again(String, Option<Duration>),
    /// The collector will never take these spans.
    #[error("the collector refused the spans: {0}")]
    Refused(String),
}

impl Endpoint {
    pub(super) fn parse(text: &str) -> Result<Self, TracesError> {
        let refuse = |problem| TracesError::Endpoint { endpoint: text.to_owned(), problem };
        let uri: Uri = text.parse().map_err(|_| refuse("it is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(refuse(
                    "TLS is not supported here, run a collector beside the service",
                ));
            }
            _ => return Err(refuse("it must begin with http://")),
        }
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| refuse("it names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(PORT);
        let path = match uri.path() {
            "" | "/" => PATH,
            path => path,
        };
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path).build();
        Ok(Self { uri: uri.map_err(|_| refuse("it is not a URL"))?, host, port })
    }

    /// Sends one encoded request.
    pub(super) async fn upload(&self, body: Bytes, timeout: Duration) -> Result<(), UploadError> {
        match tokio::time::timeout(timeout, self.exchange(body)).await {
            Ok(Ok((status, retry_after, answer))) => judge(status, retry_after, &answer),
            Ok(Err(error)) => Err(UploadError::Again(self.explain(&error), None)),
            Err(_) => {
                let problem = format!("{} did not answer within {timeout:?}", self.uri);
                Err(UploadError::Again(problem, None))
            }
        }
    }

    fn explain(&self, error: &BoxError) -> String {
        format!("cannot send spans to {}: {error}", self.uri)
    }

    /// A connection per request: one a second is not worth a pool, and none is stale after a pause.
    async fn exchange(
        &self,
        body: Bytes,
    ) -> Result<(StatusCode, Option<Duration>, Bytes), BoxError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.uri.path())
            .header(HOST, self.uri.authority().map_or("", |authority| authority.as_str()))
            .header(CONTENT_TYPE, "application/x-protobuf")
            .body(Full::new(body))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?;
        connection.abort();
        Ok((status, retry_after, answer.to_bytes()))
    }
}

/// What an answer means, as the OTLP specification says.
fn judge(
    status: StatusCode,
    retry_after: Option<Duration>,
    answer: &[u8],
) -> Result<(), UploadError> {
    let words = || format!("{status} {}", String::from_utf8_lossy(answer).trim());
    match status.as_u16() {
        200..=299 => Ok(()),
        429 | 502 | 503 | 504 => Err(UploadError::Again(words(), retry_after)),
        _ => Err(UploadError::Refused(words())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_path_means_the_usual_one() {
        for (text, uri, port) in [
            ("http://127.0.0.1:9999", "http://127.0.0.1:9999/v1/traces", 9_999),
            ("http://collector/", "http://collector/v1/traces", 4_318),
            ("http://[::1]:5/x/y", "http://[::1]:5/x/y", 5),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!(endpoint.uri.to_string(), uri);
            assert_eq!(endpoint.port, port);
            assert!(!endpoint.host.contains('['));
        }
    }

    #[test]
    fn answers_mean_what_the_specification_says() {
        let status = |code| StatusCode::from_u16(code).unwrap();
        assert!(judge(status(200), None, b"").is_ok());
        for code in [429, 502, 503, 504] {
            assert!(matches!(judge(status(code), None, b""), Err(UploadError::Again(..))));
        }
        for code in [400, 401, 404, 500] {
            assert!(matches!(judge(status(code), None, b""), Err(UploadError::Refused(_))));
        }
    }
}
