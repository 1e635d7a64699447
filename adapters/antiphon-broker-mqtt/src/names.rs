//! Names at the broker: topics, client ids, and the text that may be in them.
//!
//! Everything is under one prefix. A name of ours becomes one level of a topic by percent-encoding
//! what is not a letter, digit, dot, dash or underscore, so that no name can reach another's topics.

use std::fmt::Write as _;

use antiphon_core::MessageId;

/// Makes names under one prefix.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    prefix: String,
}

impl Names {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: escape(prefix) }
    }

    /// Where the messages of one lane of a topic go.
    pub(crate) fn lane(&self, topic: &str, lane: u32) -> String {
        format!("{}/t/{}/{lane}", self.prefix, escape(topic))
    }

    /// The topic and lane that a message came from.
    pub(crate) fn lane_of(&self, name: &str) -> Option<(String, u32)> {
        let (topic, lane) =
            name.strip_prefix(&*self.prefix)?.strip_prefix("/t/")?.split_once('/')?;
        Some((unescape(topic)?, lane.parse().ok()?))
    }

    /// The session that keeps the messages of one lane of a group.
    pub(crate) fn session(&self, group: &str, lane: u32) -> String {
        format!("{}.{}.L{lane}", self.prefix, escape(group))
    }

    /// The retained record of a topic.
    pub(crate) fn topic_record(&self, topic: &str) -> String {
        format!("{}/r/t/{}", self.prefix, escape(topic))
    }

    /// The retained record of a group.
    pub(crate) fn group_record(&self, group: &str) -> String {
        format!("{}/r/g/{}", self.prefix, escape(group))
    }

    /// All records.
    pub(crate) fn records(&self) -> String {
        format!("{}/r/+/+", self.prefix)
    }

    /// What a record is of.
    pub(crate) fn record_of(&self, name: &str) -> Option<Record> {
        let rest = name.strip_prefix(&*self.prefix)?.strip_prefix("/r/")?;
        match rest.split_once('/')? {
            ("t", topic) => Some(Record::Topic(unescape(topic)?)),
            ("g", group) => Some(Record::Group(unescape(group)?)),
            _ => None,
        }
    }

    /// The retained note that a member of a group is there.
    pub(crate) fn presence(&self, group: &str, member: &str) -> String {
        format!("{}/g/{}/m/{}", self.prefix, escape(group), escape(member))
    }

    /// The retained note of who has a lane of a group.
    pub(crate) fn owner(&self, group: &str, lane: u32) -> String {
        format!("{}/g/{}/l/{lane}", self.prefix, escape(group))
    }

    /// The retained note of what was tried with a message of a group.
    pub(crate) fn tried(&self, group: &str, lane: u32, id: MessageId) -> String {
        format!("{}/g/{}/a/{lane}.{id}", self.prefix, escape(group))
    }

    /// All notes of one group.
    pub(crate) fn notes(&self, group: &str) -> String {
        format!("{}/g/{}/+/+", self.prefix, escape(group))
    }

    /// The notes of all members of all groups.
    pub(crate) fn presences(&self) -> String {
        format!("{}/g/+/m/+", self.prefix)
    }

    /// What a note is about.
    pub(crate) fn note_of(&self, name: &str) -> Option<Note> {
        let rest = name.strip_prefix(&*self.prefix)?.strip_prefix("/g/")?;
        let (group, rest) = rest.split_once('/')?;
        let group = unescape(group)?;
        match rest.split_once('/')? {
            ("m", member) => Some(Note::Member { group, member: unescape(member)? }),
            ("l", lane) => Some(Note::Lane { group, lane: lane.parse().ok()? }),
            ("a", message) => {
                let (lane, id) = message.split_once('.')?;
                Some(Note::Tried { group, lane: lane.parse().ok()?, id: id.parse().ok()? })
            }
            _ => None,
        }
    }

    /// A topic that only one connection reads.
    pub(crate) fn fence(&self, connection: &str) -> String {
        format!("{}/f/{connection}", self.prefix)
    }

    /// Where answers to one inbox go.
    pub(crate) fn answers(&self, inbox: &str) -> String {
        format!("{}/answers/{inbox}", self.prefix)
    }

    /// Whether this is the address of an inbox.
    pub(crate) fn is_answers(&self, address: &str) -> bool {
        let inbox = address.strip_prefix(&*self.prefix).and_then(|a| a.strip_prefix("/answers/"));
        inbox.is_some_and(|inbox| !inbox.is_empty() && inbox == escape(inbox))
    }

    /// The client id of a connection that keeps nothing.
    pub(crate) fn client(&self, connection: &str) -> String {
        format!("{}-{connection}", self.prefix)
    }
}

/// What a record is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Record {
    Topic(String),
    Group(String),
}

/// What a note is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Member { group: String, member: String },
    Lane { group: String, lane: u32 },
    Tried { group: String, lane: u32, id: MessageId },
}

/// One level of a topic.
fn escape(name: &str) -> String {
    let mut level = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_') {
            level.push(char::from(byte));
        } else {
            let _ = write!(level, "%{byte:02X}");
        }
    }
    level
}

/// What was percent-encoded; `None` when it is not.
pub(crate) fn unescape(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first == b'%' {
            let (digits, tail) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Whether brokers refuse text with this character: MQTT forbids NUL, and lets servers end the
/// connection for control characters and for what Unicode keeps out of interchange.
pub(crate) fn is_refused(character: char) -> bool {
    let code = u32::from(character);
    character.is_control() || (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}

/// Text that every broker takes, whatever was in it.
pub(crate) fn escape_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    let mut buffer = [0; 4];
    for character in text.chars() {
        if character == '%' || is_refused(character) {
            for byte in character.encode_utf8(&mut buffer).bytes() {
                let _ = write!(escaped, "%{byte:02X}");
            }
        } else {
            escaped.push(character);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_one_level_and_comes_back() {
        let names = Names::new("antiphon");
        for topic in ["shop.orders", "a/b", "+", "#", "$SYS", "größe 50 %", ""] {
            let lane = names.lane(topic, 7);
            assert_eq!(lane.matches('/').count(), 3, "{lane}");
            assert!(!lane.contains(['+', '#']), "{lane}");
            assert_eq!(names.lane_of(&lane), Some((topic.to_owned(), 7)));
            let record = names.record_of(&names.group_record(topic));
            assert_eq!(record, Some(Record::Group(topic.to_owned())));
            let note = names.note_of(&names.owner(topic, 3));
            assert_eq!(note, Some(Note::Lane { group: topic.to_owned(), lane: 3 }));
            let id = MessageId::from_bytes([7; 16]);
            let note = names.note_of(&names.tried(topic, 3, id));
            assert_eq!(note, Some(Note::Tried { group: topic.to_owned(), lane: 3, id }));
        }
        assert_eq!(names.lane_of("other/t/x/1"), None);
        assert_eq!(names.lane_of("antiphon/t/x/one"), None);
    }

    #[test]
    fn only_inboxes_are_addresses() {
        let names = Names::new("antiphon");
        assert!(names.is_answers(&names.answers("0a-1")));
        for other in ["antiphon/answers/", "antiphon/answers/+", "antiphon/t/x/1", "x/answers/1"] {
            assert!(!names.is_answers(other), "{other}");
        }
    }

    #[test]
    fn text_with_refused_characters_comes_back() {
        for text in ["plain", "50 %\nsecond line", "\u{0}\u{7f}\u{85}\u{fffe}", "%0A", "naïve ☃"]
        {
            let escaped = escape_text(text);
            assert!(!escaped.contains(is_refused), "{escaped:?}");
            assert_eq!(unescape(&escaped).as_deref(), Some(text));
        }
    }
}
