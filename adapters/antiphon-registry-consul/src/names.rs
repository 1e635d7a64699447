//! Names in paths, and the id of an instance.

use antiphon_discovery::Authority;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stays as it is in one part of a path.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// What stays as it is in the name of a service: no slash, which paths do not survive everywhere, and
/// nothing that a URL would have to hide.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// The name of a service as Consul knows it. What DNS could be asked for stays as it is.
pub(crate) fn service(name: &str) -> String {
    let encoded = utf8_percent_encode(name, NAME).to_string();
    // Parts of paths that consist of dots are no parts.
    match encoded.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None if encoded.is_empty() => "%".to_owned(),
        None => encoded,
    }
}

/// The id of an instance at its agent. One address is one instance.
pub(crate) fn instance(service: &str, address: &Authority) -> String {
    format!("{service}@{address}")
}

/// A text as one part of a path.
pub(crate) fn part(text: &str) -> String {
    utf8_percent_encode(text, PART).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_apart_and_are_one_part_of_a_path() {
        for (name, known) in [
            ("shop.orders-v1", "shop.orders-v1"),
            ("a/b", "a%2Fb"),
            ("a%2Fb", "a%252Fb"),
            ("..", "%2E."),
            ("", "%"),
        ] {
            assert_eq!(service(name), known);
            assert!(!part(&service(name)).contains('/'));
        }
        assert_eq!(part("a%2Fb@[::1]:80"), "a%252Fb%40%5B%3A%3A1%5D%3A80");
    }
}
