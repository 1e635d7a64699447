//! What a page is asked and what it answers.

use antiphon_core::Status;
use bytes::Bytes;
use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;

/// A question to a page.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// The method: `GET` to read, `POST` to do something.
    pub method: Method,
    /// What stands below the page's own path, decoded, without slashes at its ends: `order-1/retry`.
    pub rest: String,
    /// The query parameters in their order, decoded.
    pub query: Vec<(String, String)>,
    /// The `Accept` header; empty when there is none.
    pub accept: String,
    /// The body.
    pub body: Bytes,
}

impl PageRequest {
    /// The first query parameter of this name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// An answer of a page.
#[derive(Clone, Debug)]
pub struct Page {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
}

impl Page {
    /// Anything, as JSON that people can read too.
    ///
    /// # Errors
    /// The value cannot be written as JSON.
    pub fn json(value: &(impl Serialize + ?Sized)) -> Result<Self, Status> {
        let mut body = serde_json::to_vec_pretty(value).map_err(Status::internal)?;
        body.push(b'\n');
        Ok(Self::new("application/json", body))
    }

    /// Plain text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::new("text/plain; charset=utf-8", text.into())
    }

    /// HTML.
    #[must_use]
    pub fn html(html: impl Into<String>) -> Self {
        Self::new("text/html; charset=utf-8", html.into())
    }

    /// Anything else.
    #[must_use]
    pub fn new(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status: StatusCode::OK, content_type, body: body.into() }
    }

    /// With another status than 200.
    #[must_use]
    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }
}

/// Reads a query string; `+` is a space, as forms write it.
pub(super) fn parse_query(query: &str) -> Vec<(String, String)> {
    let decode =
        |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = parse_query("state=parked&note=a%20b+c&&flag");
        let expected = [("state", "parked"), ("note", "a b c"), ("flag", "")];
        assert_eq!(query, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
