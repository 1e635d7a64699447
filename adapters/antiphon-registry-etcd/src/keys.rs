//! The keys of services and instances.

use antiphon_discovery::Authority;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stays as it is; a `/` in a name does not, so that no service is below another.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_');

/// What all keys of a service begin with.
pub(crate) fn service(prefix: &str, name: &str) -> String {
    format!("{prefix}/{}/", utf8_percent_encode(name, PLAIN))
}

/// The key of an instance.
pub(crate) fn instance(service: &str, address: &Authority) -> String {
    format!("{service}{address}")
}

/// The first key after all that begin with this one, which ends with `/`.
pub(crate) fn end(service: &str) -> Vec<u8> {
    let mut end = service.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_of_a_service_is_in_the_range_of_another() {
        let names = ["", "a", "a/b", "a2", "a%2Fb", "A", "a b", "ä"];
        for one in names {
            for other in names.into_iter().filter(|other| *other != one) {
                let (from, to) = (service("/p", one), end(&service("/p", one)));
                let key = instance(&service("/p", other), &"h:1".parse().unwrap());
                let inside = key.as_bytes() >= from.as_bytes() && key.as_bytes() < &to[..];
                assert!(!inside, "{key} is in {from}");
            }
        }
        assert_eq!(service("/p", "shop.orders-v1"), "/p/shop.orders-v1/");
        assert_eq!(end("/p/a/"), b"/p/a0");
    }
}
