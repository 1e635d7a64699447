//! The nodes of services and instances.

use antiphon_discovery::Authority;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stays as it is. ZooKeeper forbids some characters and knows no escapes.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_').remove(b':');

/// The node of a service.
pub(crate) fn service(root: &str, name: &str) -> String {
    format!("{root}/{}", part(name))
}

/// The node of an instance.
pub(crate) fn instance(service: &str, address: &Authority) -> String {
    format!("{service}/{}", part(&address.to_string()))
}

/// A name as one part of a path, which is neither empty nor `.` nor `..`.
fn part(name: &str) -> String {
    let encoded = utf8_percent_encode(name, PLAIN).to_string();
    match encoded.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None if encoded.is_empty() => "%".to_owned(),
        None => encoded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_part_of_a_path() {
        for (name, path) in [
            ("shop.orders-v1", "/r/shop.orders-v1"),
            ("a/b", "/r/a%2Fb"),
            ("..", "/r/%2E."),
            (".", "/r/%2E"),
            ("", "/r/%"),
            ("%", "/r/%25"),
        ] {
            assert_eq!(service("/r", name), path);
        }
        assert_eq!(instance("/r/a", &"[::1]:80".parse().unwrap()), "/r/a/%5B::1%5D:80");
    }
}
