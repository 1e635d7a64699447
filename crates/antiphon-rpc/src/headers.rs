//! A context in HTTP headers.

use antiphon_core::CarrierMut;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Writes a context into headers.
#[derive(Debug)]
pub(crate) struct HeadersMut<'a>(pub(crate) &'a mut HeaderMap);

impl CarrierMut for HeadersMut<'_> {
    fn set(&mut self, name: &'static str, value: String) {
        // A value that HTTP cannot carry is left out: the call matters more than its context.
        if let Ok(value) = HeaderValue::try_from(value) {
            self.0.insert(HeaderName::from_static(name), value);
        }
    }
}
