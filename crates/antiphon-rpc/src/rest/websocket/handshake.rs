//! The opening handshake (RFC 6455, section 4.2).

use antiphon_core::{Code, Status};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, HOST, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::super::problem;
use crate::server::Body;
use crate::service::Codec;

const VERSION: &str = "13";
const JSON: &str = "antiphon.json";
const PROTO: &str = "antiphon.proto";

/// What was agreed on.
#[derive(Debug)]
pub(super) struct Handshake {
    pub(super) accept: HeaderValue,
    pub(super) protocol: Option<&'static str>,
    pub(super) codec: Codec,
}

/// Why there is no WebSocket.
#[derive(Debug)]
pub(super) struct Refused(Status);

impl Refused {
    pub(super) fn response(&self) -> Response<Body> {
        let mut response = problem::response(&self.0, None);
        if self.0.http_status() == 426 {
            let headers = response.headers_mut();
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        response
    }
}

/// Answers a plain request for what only a WebSocket can carry.
pub(in super::super) fn needed(path: &str) -> Response<Body> {
    let message = format!("{path} is a WebSocket; open it over HTTP/1.1 with `Upgrade: websocket`");
    Refused(Status::new(Code::InvalidArgument, message).with_http_status(426)).response()
}

/// Whether a request begins a WebSocket.
pub(in super::super) fn is_asked_for<B>(request: &Request<B>) -> bool {
    request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && lists(request.headers(), &UPGRADE, "websocket")
        && lists(request.headers(), &CONNECTION, "upgrade")
}

impl Handshake {
    /// Reads the headers of a request that [asks for](is_asked_for) a WebSocket.
    pub(super) fn read(headers: &HeaderMap, origins: &[String]) -> Result<Self, Refused> {
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != VERSION) {
            let message = format!("only version {VERSION} of WebSocket is spoken here");
            return refuse(Code::InvalidArgument, 426, message);
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).map_or(&b""[..], HeaderValue::as_bytes);
        if STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16) {
            check_origin(headers, origins)?;
        } else {
            let message = "sec-websocket-key must be 16 bytes in base64".to_owned();
            return refuse(Code::InvalidArgument, 400, message);
        }
        let accept = HeaderValue::try_from(derive_accept_key(key))
            .map_err(|error| Refused(Status::internal(error)))?;
        let (protocol, codec) = if lists(headers, &SEC_WEBSOCKET_PROTOCOL, JSON) {
            (Some(JSON), Codec::Json)
        } else if lists(headers, &SEC_WEBSOCKET_PROTOCOL, PROTO) {
            (Some(PROTO), Codec::Proto)
        } else {
            (None, Codec::Json)
        };
        Ok(Self { accept, protocol, codec })
    }
}

/// Lets in what does not come from a page, pages of this host, and pages of the listed origins.
fn check_origin(headers: &HeaderMap, origins: &[String]) -> Result<(), Refused> {
    let Some(origin) = headers.get(ORIGIN) else {
        return Ok(());
    };
    let origin = origin.to_str().unwrap_or_default();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let own = origin
        .split_once("://")
        .is_some_and(|(_, authority)| !host.is_empty() && authority.eq_ignore_ascii_case(host));
    if own || origins.iter().any(|listed| listed.eq_ignore_ascii_case(origin)) {
        return Ok(());
    }
    let message = format!("pages of {origin} may not open WebSockets here");
    refuse(Code::PermissionDenied, 403, message)
}

fn refuse<T>(code: Code, http: u16, message: String) -> Result<T, Refused> {
    Err(Refused(Status::new(code, message).with_http_status(http)))
}

/// Whether a header that lists tokens has this one.
fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|listed| listed.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
        // The example of RFC 6455, section 1.3.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        headers.insert("sec-websocket-key", key);
        for (name, value) in pairs {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_example_of_the_rfc_is_accepted() {
        let handshake = Handshake::read(&headers(&[]), &[]).unwrap();
        assert_eq!(handshake.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!((handshake.protocol, handshake.codec), (None, Codec::Json));
    }

    #[test]
    fn the_subprotocol_says_how_messages_are_written() {
        for (offered, protocol, codec) in [
            ("antiphon.json", Some(JSON), Codec::Json),
            ("chat, antiphon.proto", Some(PROTO), Codec::Proto),
            ("antiphon.proto,antiphon.json", Some(JSON), Codec::Json),
            ("chat", None, Codec::Json),
        ] {
            let headers = headers(&[("sec-websocket-protocol", offered)]);
            let handshake = Handshake::read(&headers, &[]).unwrap();
            assert_eq!((handshake.protocol, handshake.codec), (protocol, codec), "{offered}");
        }
    }

    #[test]
    fn what_is_no_handshake_is_refused() {
        for (changed, status) in [
            (("sec-websocket-version", "8"), 426),
            (("sec-websocket-key", "short"), 400),
            (("sec-websocket-key", "c2hvcnQ="), 400),
        ] {
            let refused = Handshake::read(&headers(&[changed]), &[]).unwrap_err();
            let response = refused.response();
            assert_eq!(response.status(), status, "{changed:?}");
            assert_eq!(response.headers().contains_key("sec-websocket-version"), status == 426);
        }
    }

    #[test]
    fn pages_of_strangers_are_kept_out() {
        let listed = ["https://admin.example".to_owned()];
        for (origin, good) in [
            ("http://shop.example:8080", true),
            ("https://SHOP.example:8080", true),
            ("https://admin.example", true),
            ("https://shop.example", false),
            ("https://evil.example", false),
            ("https://shop.example:8080.evil.example", false),
            ("null", false),
            ("", false),
        ] {
            let headers = headers(&[("origin", origin), ("host", "shop.example:8080")]);
            assert_eq!(Handshake::read(&headers, &listed).is_ok(), good, "{origin}");
        }
    }
}
