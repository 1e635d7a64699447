//! What topics and groups are called at the server. Pure, and one to one: two topics never meet in
//! one stream, and a name read back is the name that was written.
//!
//! | ours | NATS |
//! |---|---|
//! | topic `shop.orders` | stream `shop_orders`, subjects `shop.orders.L0` … `shop.orders.L15` |
//! | group `billing.charge` | durable consumer `billing_charge`, keys `*.billing_charge` in the buckets |

use std::fmt::Write;

use antiphon_messaging::LANES;

/// The longest name of a topic or group, in bytes: names of streams end at 255.
const NAME_BYTES_MAX: usize = 180;

/// A name that cannot be used, and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{name}` {problem}")]
pub(crate) struct BadName {
    what: &'static str,
    name: String,
    problem: &'static str,
}

/// Whether a topic can be part of a subject.
pub(crate) fn check_topic(name: &str) -> Result<(), BadName> {
    let bad = |problem| Err(BadName { what: "topic", name: name.to_owned(), problem });
    if name.is_empty() || name.split('.').any(str::is_empty) {
        return bad("has an empty part; write words with single dots in between");
    }
    if name.starts_with('$') || name.starts_with("_INBOX") {
        return bad("is reserved by NATS; choose a name that does not begin like this");
    }
    let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '*' | '>');
    if !name.chars().all(allowed) {
        return bad(
            "has characters that a subject cannot have; use letters, digits, `.`, `-`, `_`",
        );
    }
    if escaped(name).len() > NAME_BYTES_MAX {
        return bad("is too long for the name of a stream");
    }
    Ok(())
}

/// Whether a group can be part of a consumer's name.
pub(crate) fn check_group(name: &str) -> Result<(), BadName> {
    let bad = |problem| Err(BadName { what: "group", name: name.to_owned(), problem });
    if name.is_empty() {
        return bad("is empty");
    }
    if escaped(name).len() > NAME_BYTES_MAX {
        return bad("is too long for the name of a consumer");
    }
    Ok(())
}

/// The name with dots as `_`, and everything else that names of streams, consumers and keys cannot
/// have as `=` and two hexadecimal digits.
pub(crate) fn escaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'.' => text.push('_'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => text.push(char::from(byte)),
            other => {
                // Writing into a string cannot fail.
                let _ = write!(text, "={other:02X}");
            }
        }
    }
    text
}

/// The subject of a lane.
pub(crate) fn subject(topic: &str, lane: u32) -> String {
    format!("{topic}.L{lane}")
}

/// The subjects of a topic.
pub(crate) fn subjects(topic: &str) -> Vec<String> {
    (0..LANES).map(|lane| subject(topic, lane)).collect()
}

/// The lane of a subject.
pub(crate) fn lane(subject: &str) -> Option<u32> {
    let (_, lane) = subject.rsplit_once(".L")?;
    lane.parse().ok().filter(|lane| *lane < LANES)
}

/// What tells our streams from others.
const DESCRIPTION: &str = "antiphon topic ";

/// The description of a topic's stream.
pub(crate) fn description(topic: &str) -> String {
    format!("{DESCRIPTION}{topic}")
}

/// The topic of a stream's description.
pub(crate) fn topic_of(description: Option<&str>) -> Option<&str> {
    description?.strip_prefix(DESCRIPTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_to_one() {
        for (ours, theirs) in [
            ("shop.orders", "shop_orders"),
            ("shop_orders", "shop=5Forders"),
            ("parked.a-b", "parked_a-b"),
            ("größe", "gr=C3=B6=C3=9Fe"),
        ] {
            assert_eq!(escaped(ours), theirs);
        }
    }

    #[test]
    fn a_topic_must_be_a_subject() {
        for good in ["a", "shop.orders", "parked.billing.charge", "a-b_c/d:e"] {
            assert_eq!(check_topic(good), Ok(()), "{good}");
        }
        for (bad, word) in [
            ("", "empty part"),
            (".a", "empty part"),
            ("a..b", "empty part"),
            ("a.*", "characters"),
            ("a b", "characters"),
            ("größe", "characters"),
            ("$JS.API", "reserved"),
            (&"x".repeat(181), "too long"),
        ] {
            let text = check_topic(bad).expect_err(bad).to_string();
            assert!(text.contains(word), "{text}");
        }
        assert!(check_group("").is_err() && check_group("any thing ☃").is_ok());
    }

    #[test]
    fn a_lane_reads_back_from_its_subject() {
        assert_eq!(subjects("a.b").len(), LANES as usize);
        for number in 0..LANES {
            assert_eq!(lane(&subject("a.b", number)), Some(number));
        }
        for other in ["a.b", "a.L16", "a.Lx", "a.3"] {
            assert_eq!(lane(other), None, "{other}");
        }
        assert_eq!(topic_of(Some(&description("a.b"))), Some("a.b"));
        assert_eq!(topic_of(Some("something else")), None);
    }
}
