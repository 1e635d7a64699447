//! A context in HTTP headers.

use antiphon_core::{Carrier, CarrierMut};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Reads a context from headers.
#[derive(Debug)]
pub struct Headers<'a>(pub &'a HeaderMap);

impl Carrier for Headers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str().ok()
    }
}

/// Writes a context into headers.
#[derive(Debug)]
pub struct HeadersMut<'a>(pub &'a mut HeaderMap);

impl CarrierMut for HeadersMut<'_> {
    fn set(&mut self, name: &'static str, value: String) {
        // A value that HTTP cannot carry is left out: the call matters more than its context.
        if let Ok(value) = HeaderValue::try_from(value) {
            self.0.insert(HeaderName::from_static(name), value);
        }
    }
}
