//! Percent-decoding of paths and queries (RFC 3986; queries as HTML forms write them).
//!
//! Nothing is allocated for text without escapes, which is nearly all text.

use std::borrow::Cow;

/// Why a piece of a path or a query cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    /// A percent sign that starts no escape.
    #[error("'%' is not followed by two hexadecimal digits")]
    Escape,
    /// Bytes that are no text.
    #[error("the escaped bytes are not UTF-8")]
    Utf8,
}

/// Which escapes stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// None: the value of a variable that takes one segment.
    Nothing,
    /// `%2F`: in a value of several segments, a slash inside a segment must not look like a slash
    /// between two.
    Slash,
}

/// Decodes a piece of a path. A plus sign is a plus sign.
pub(super) fn path(text: &str, keep: Keep) -> Result<Cow<'_, str>, DecodeError> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    decode(text, keep, |byte| byte).map(Cow::Owned)
}

/// Decodes a name or a value of a query. A plus sign is a space.
pub(super) fn query(text: &str) -> Result<Cow<'_, str>, DecodeError> {
    if !text.contains(['%', '+']) {
        return Ok(Cow::Borrowed(text));
    }
    let plus_to_space = |byte| if byte == b'+' { b' ' } else { byte };
    decode(text, Keep::Nothing, plus_to_space).map(Cow::Owned)
}

/// The names and values of a query, not decoded. Empty pieces (`a=1&&b=2`) are left out.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn decode(text: &str, keep: Keep, plain: impl Fn(u8) -> u8) -> Result<String, DecodeError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(plain(*first));
            continue;
        }
        let [high, low, tail @ ..] = rest else {
            return Err(DecodeError::Escape);
        };
        rest = tail;
        match (hex(*high)? << 4) | hex(*low)? {
            b'/' if keep == Keep::Slash => bytes.extend([b'%', *high, *low]),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| DecodeError::Utf8)
}

fn hex(digit: u8) -> Result<u8, DecodeError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(DecodeError::Escape),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_keeps_its_plus_and_a_query_turns_it_into_a_space() {
        for (text, in_path, in_query) in [
            ("abc", "abc", "abc"),
            ("a+b", "a+b", "a b"),
            ("a%2Bb", "a+b", "a+b"),
            ("a%20b", "a b", "a b"),
            ("a%2fb", "a/b", "a/b"),
            ("caf%C3%A9", "café", "café"),
            ("%25%32%35", "%25", "%25"),
            ("", "", ""),
        ] {
            assert_eq!(path(text, Keep::Nothing).unwrap(), in_path, "{text}");
            assert_eq!(query(text).unwrap(), in_query, "{text}");
        }
    }

    #[test]
    fn an_escaped_slash_stays_where_asked() {
        assert_eq!(path("a%2Fb%2fc%20d", Keep::Slash).unwrap(), "a%2Fb%2fc d");
    }

    #[test]
    fn broken_escapes_are_refused() {
        for (text, error) in [
            ("%", DecodeError::Escape),
            ("%2", DecodeError::Escape),
            ("%zz", DecodeError::Escape),
            ("%+1", DecodeError::Escape),
            ("a%é", DecodeError::Escape),
            ("%FF", DecodeError::Utf8),
            ("%C3", DecodeError::Utf8),
        ] {
            assert_eq!(path(text, Keep::Nothing).unwrap_err(), error, "{text}");
            assert_eq!(query(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn a_query_falls_into_names_and_values() {
        let found: Vec<_> = pairs("a=1&b&&c==x&=y&d=").collect();
        assert_eq!(found, [("a", "1"), ("b", ""), ("c", "=x"), ("", "y"), ("d", "")]);
    }

    proptest! {
        #[test]
        fn any_text_is_decoded_or_refused(text in "[%+a-fA-F0-9/é.]{0,40}|\\PC{0,40}") {
            for keep in [Keep::Nothing, Keep::Slash] {
                let _ = path(&text, keep);
            }
            for (name, value) in pairs(&text) {
                let _ = (query(name), query(value));
            }
        }

        #[test]
        fn what_was_escaped_comes_back(text in "\\PC{0,40}") {
            let escaped: String =
                text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(query(&escaped).unwrap(), text.as_str());
            prop_assert_eq!(path(&escaped, Keep::Nothing).unwrap(), text);
        }
    }
}
