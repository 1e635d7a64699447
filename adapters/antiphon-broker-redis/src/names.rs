//! The keys of topics and groups. Pure, and one to one.

use antiphon_messaging::LANES;

/// A name that cannot be used, and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{name}` {problem}")]
pub(crate) struct BadName {
    what: &'static str,
    name: String,
    problem: &'static str,
}

/// The longest name, in bytes. Redis has no limit worth naming; this is for people.
const NAME_BYTES_MAX: usize = 512;

/// Whether a topic or group can have this name.
pub(crate) fn check(what: &'static str, name: &str) -> Result<(), BadName> {
    let bad = |problem| Err(BadName { what, name: name.to_owned(), problem });
    if name.is_empty() {
        return bad("is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return bad("is longer than 512 bytes");
    }
    if name.chars().any(char::is_control) {
        return bad("has control characters");
    }
    Ok(())
}

/// The keys below a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    prefix: String,
}

/// Colons divide the parts of keys.
fn part(name: &str) -> String {
    name.replace('%', "%25").replace(':', "%3A")
}

impl Names {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The set of topics.
    pub(crate) fn topics(&self) -> String {
        format!("{}:topics", self.prefix)
    }

    /// The hash of groups: what each reads, and how.
    pub(crate) fn groups(&self) -> String {
        format!("{}:groups", self.prefix)
    }

    /// The stream of a topic.
    pub(crate) fn stream(&self, topic: &str) -> String {
        format!("{}:topic:{}", self.prefix, part(topic))
    }

    fn group(&self, group: &str, what: &str) -> String {
        format!("{}:group:{}:{what}", self.prefix, part(group))
    }

    /// The members of a group, with when each is given up.
    pub(crate) fn members(&self, group: &str) -> String {
        self.group(group, "members")
    }

    /// Who owns a lane; ends by itself.
    pub(crate) fn lease(&self, group: &str, lane: u32) -> String {
        self.group(group, &format!("lease:{lane}"))
    }

    /// How far a lane is, by topic.
    pub(crate) fn lane(&self, group: &str, lane: u32) -> String {
        self.group(group, &format!("lane:{lane}"))
    }

    /// The messages of a topic that were given back, with when they are due.
    pub(crate) fn back(&self, group: &str, topic: &str) -> String {
        self.group(group, &format!("back:{}", part(topic)))
    }

    /// The attempts of messages that were given back.
    pub(crate) fn attempts(&self, group: &str, topic: &str) -> String {
        self.group(group, &format!("attempts:{}", part(topic)))
    }

    /// What the addresses of inboxes begin with.
    pub(crate) fn inboxes(&self) -> String {
        format!("{}:inbox:", self.prefix)
    }

    /// Every key of a group.
    pub(crate) fn all_of(&self, group: &str, topics: &[String]) -> Vec<String> {
        let mut all = vec![self.members(group)];
        for lane in 0..LANES {
            all.extend([self.lease(group, lane), self.lane(group, lane)]);
        }
        for topic in topics {
            all.extend([self.back(group, topic), self.attempts(group, topic)]);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn keys_never_meet() {
        let names = Names::new("antiphon");
        assert_eq!(names.stream("shop.orders"), "antiphon:topic:shop.orders");
        let mut all = BTreeSet::new();
        for group in ["g", "g:back:t", "g%3Aback"] {
            for key in names.all_of(group, &["t".into(), "back:t".into(), "lane:1".into()]) {
                assert!(all.insert(key.clone()), "{key}");
            }
        }
    }

    #[test]
    fn names_are_for_people() {
        assert_eq!(check("topic", "größe: 7"), Ok(()));
        for bad in ["", "a\nb", &"x".repeat(513)] {
            assert!(check("topic", bad).is_err());
        }
    }
}
