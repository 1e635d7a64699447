//! A context in HTTP headers.

use antiphon_core::{CarrierMut, Context, Priority};
use http::{HeaderMap, HeaderName, HeaderValue};

/// How much it matters that the call is answered; absent where it is as usual.
pub(crate) static PRIORITY: HeaderName = HeaderName::from_static("x-priority");

/// Writes what a call takes along of its context, but for the deadline and the attempts.
pub(crate) fn inject(context: &Context, headers: &mut HeaderMap) {
    context.inject(&mut HeadersMut(headers));
    if context.priority() != Priority::Default {
        headers.insert(PRIORITY.clone(), HeaderValue::from_static(context.priority().name()));
    }
}

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
