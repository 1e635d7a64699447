//! `/openapi.json`, `/asyncapi.json`, and Swagger UI at `/docs`, all from the binary itself.
//!
//! Large assets are stored compressed and sent as they are to clients that take gzip. A route of the
//! contract at one of these paths goes before the page.

use std::io::Read;
use std::sync::{Arc, OnceLock};

use antiphon_contract::openapi::Info;
use antiphon_contract::{Contract, asyncapi, openapi};
use bytes::Bytes;
use flate2::read::GzDecoder;
use http::header::{
    ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    ETAG, IF_NONE_MATCH, LOCATION, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use super::settings::RestSettings;
use crate::server::Body;
use crate::service::Service;

/// The version of Swagger UI, which names its assets in caches.
const VERSION: &str = "5.35.0";

/// What the page may load: its own parts, and images that the style sheet holds.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      frame-ancestors 'none'";

macro_rules! asset {
    ($name:literal) => {
        include_bytes!(concat!("../../assets/swagger-ui/", $name))
    };
}

/// The documents and pages of a server.
pub(super) struct Docs {
    contract: Contract,
    services: Vec<&'static str>,
    title: String,
    version: String,
    openapi: OnceLock<Document>,
    asyncapi: OnceLock<Document>,
}

/// A document that is made when it is first asked for.
#[derive(Clone)]
struct Document {
    text: Bytes,
    tag: HeaderValue,
}

struct Page {
    content_type: &'static str,
    content: Content,
    tag: Option<HeaderValue>,
}

enum Content {
    Plain(Bytes),
    /// Compressed with gzip.
    Gzip(&'static [u8]),
}

impl std::fmt::Debug for Docs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Docs").field("services", &self.services).finish_non_exhaustive()
    }
}

impl Docs {
    pub(super) fn new(
        contract: Contract,
        services: &[Arc<dyn Service>],
        settings: &RestSettings,
    ) -> Self {
        Self {
            contract,
            services: services.iter().map(|service| service.info().name).collect(),
            title: settings.title.clone(),
            version: settings.version.clone(),
            openapi: OnceLock::new(),
            asyncapi: OnceLock::new(),
        }
    }

    /// The page at a path.
    pub(super) fn answer(
        &self,
        verb: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Option<Response<Body>> {
        if path == "/docs/" {
            return Some(moved("../docs"));
        }
        let page = self.page(path)?;
        if verb != Method::GET && verb != Method::HEAD {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = if verb == Method::OPTIONS {
                StatusCode::NO_CONTENT
            } else {
                StatusCode::METHOD_NOT_ALLOWED
            };
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
            return Some(response);
        }
        Some(page.response(headers))
    }

    fn page(&self, path: &str) -> Option<Page> {
        let versioned = |content_type, content| Page { content_type, content, tag: None };
        Some(match path {
            "/openapi.json" => self.openapi.get_or_init(|| self.make_openapi()).page(),
            "/asyncapi.json" => self.asyncapi.get_or_init(|| self.make_asyncapi()).page(),
            "/docs" => versioned(
                "text/html; charset=utf-8",
                Content::Plain(Bytes::from_static(asset!("index.html"))),
            ),
            "/docs/start.js" => versioned(
                "text/javascript; charset=utf-8",
                Content::Plain(Bytes::from_static(asset!("start.js"))),
            ),
            "/docs/favicon.png" => versioned(
                "image/png",
                Content::Plain(Bytes::from_static(asset!("favicon-32x32.png"))),
            ),
            "/docs/swagger-ui.css" => {
                versioned("text/css; charset=utf-8", Content::Gzip(asset!("swagger-ui.css.gz")))
            }
            "/docs/swagger-ui-bundle.js" => versioned(
                "text/javascript; charset=utf-8",
                Content::Gzip(asset!("swagger-ui-bundle.js.gz")),
            ),
            _ => return None,
        })
    }

    fn info(&self) -> Info<'_> {
        Info { title: &self.title, version: &self.version }
    }

    fn make_openapi(&self) -> Document {
        Document::new(&openapi::document(&self.contract, &self.services, self.info()))
    }

    fn make_asyncapi(&self) -> Document {
        Document::new(&asyncapi::document(&self.contract, self.info()))
    }
}

impl Document {
    fn new(document: &serde_json::Value) -> Self {
        let text = document.to_string();
        let tag = HeaderValue::try_from(format!("\"{:016x}\"", fingerprint(text.as_bytes())));
        Self { text: text.into(), tag: tag.unwrap_or_else(|_| HeaderValue::from_static("\"\"")) }
    }

    fn page(&self) -> Page {
        Page {
            content_type: "application/json",
            content: Content::Plain(self.text.clone()),
            tag: Some(self.tag.clone()),
        }
    }
}

impl Page {
    fn response(self, headers: &HeaderMap) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        let compressed = matches!(self.content, Content::Gzip(_)) && takes_gzip(headers);
        // The two forms of an asset are two representations, so they have two tags.
        let form = if compressed { "-gzip" } else { "" };
        let tag = self.tag.unwrap_or_else(|| {
            HeaderValue::try_from(format!("\"swagger-ui-{VERSION}{form}\""))
                .unwrap_or_else(|_| HeaderValue::from_static("\"\""))
        });
        let answered = response.headers_mut();
        if matches!(self.content, Content::Gzip(_)) {
            answered.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        answered.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        answered.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        answered.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        let known = is_known(headers, &tag);
        answered.insert(ETAG, tag);
        if known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        answered.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        let content = match self.content {
            Content::Plain(content) => content,
            Content::Gzip(content) if compressed => {
                answered.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                Bytes::from_static(content)
            }
            Content::Gzip(content) => decompress(content),
        };
        *response.body_mut() = Body::full(content);
        response
    }
}

fn moved(to: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(LOCATION, HeaderValue::from_static(to));
    response
}

fn decompress(content: &[u8]) -> Bytes {
    let mut plain = Vec::with_capacity(content.len() * 4);
    // Our own assets are whole; a broken one would come out short.
    let _ = GzDecoder::new(content).read_to_end(&mut plain);
    plain.into()
}

/// Whether the client takes gzip (RFC 9110, section 12.5.3).
fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
            let refused = |part: &str| {
                part.strip_prefix("q=")
                    .and_then(|q| q.parse::<f32>().ok())
                    .is_some_and(|q| q <= 0.0)
            };
            gzip && !parts.any(refused)
        })
}

/// Whether the client holds this representation already.
fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|known| known.trim_ascii())
        .any(|known| known == b"*" || known.strip_prefix(b"W/").unwrap_or(known) == tag.as_bytes())
}

/// FNV-1a (Fowler, Noll, Vo), 64 bits.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
