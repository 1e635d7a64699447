//! What topics and groups there are: retained records at the broker, and what this process has seen
//! of them.
//!
//! MQTT has topics without being told. A record is what makes one exist: a message for a topic that
//! has none is refused, where the broker would confirm it and forget it. The records also say into
//! how many lanes a topic is divided, and what each group reads. They are kept with the sessions of
//! the groups: a broker that has lost the one has lost the other, and is told again.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use antiphon_messaging::lane_of;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::names::{Names, Record};

/// What a topic's record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TopicRecord {
    pub(crate) lanes: u32,
}

/// What a group's record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupRecord {
    pub(crate) lanes: u32,
    pub(crate) topics: BTreeSet<String>,
}

/// Where messages of a topic go.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// The broker's topic of each lane.
    lanes: Arc<[Bytes]>,
}

impl Route {
    fn new(names: &Names, topic: &str, lanes: u32) -> Self {
        let lane = |lane| Bytes::from(names.lane(topic, lane));
        Self { lanes: (0..lanes).map(lane).collect() }
    }

    pub(crate) fn lanes(&self) -> u32 {
        u32::try_from(self.lanes.len()).unwrap_or(1)
    }

    /// Where a message goes: with its key, or anywhere.
    pub(crate) fn of(&self, key: &str, id: &[u8; 16]) -> Bytes {
        let share = if key.is_empty() { u32::from(id[15]) } else { lane_of(key) };
        self.lanes[usize::try_from(share % self.lanes()).unwrap_or(0)].clone()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Registry {
    names: Names,
    topics: BTreeMap<String, Route>,
    groups: BTreeMap<String, GroupRecord>,
    /// Which of them the broker has shown since the connection began.
    seen: HashSet<Record>,
}

/// What the broker no longer has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) topics: Vec<(String, TopicRecord)>,
    pub(crate) groups: Vec<(String, GroupRecord)>,
}

impl Registry {
    pub(crate) fn new(names: Names) -> Self {
        Self { names, topics: BTreeMap::new(), groups: BTreeMap::new(), seen: HashSet::new() }
    }

    /// A connection begins: the broker shows everything again.
    pub(crate) fn begin(&mut self) {
        self.seen.clear();
    }

    /// Takes in what the broker shows. An empty record is a removed one.
    pub(crate) fn show(&mut self, record: Record, text: &[u8]) {
        if text.is_empty() {
            self.seen.remove(&record);
            match record {
                Record::Topic(topic) => drop(self.topics.remove(&topic)),
                Record::Group(group) => drop(self.groups.remove(&group)),
            }
            return;
        }
        let read = match &record {
            Record::Topic(topic) => {
                serde_json::from_slice::<TopicRecord>(text).is_ok_and(|found| {
                    found.lanes > 0 && found.lanes <= 1_024 && {
                        self.add_topic(topic, &found);
                        true
                    }
                })
            }
            Record::Group(group) => serde_json::from_slice(text).is_ok_and(|found| {
                self.add_group(group, found);
                true
            }),
        };
        if read {
            self.seen.insert(record);
        } else {
            tracing::warn!(?record, "a record at the broker does not read; it is left alone");
        }
    }

    pub(crate) fn add_topic(&mut self, topic: &str, record: &TopicRecord) {
        if self.topics.get(topic).is_none_or(|route| route.lanes() != record.lanes) {
            let route = Route::new(&self.names, topic, record.lanes);
            self.topics.insert(topic.to_owned(), route);
        }
    }

    pub(crate) fn add_group(&mut self, group: &str, record: GroupRecord) {
        self.groups.insert(group.to_owned(), record);
    }

    /// What is known and was not shown.
    pub(crate) fn missing(&self) -> Missing {
        let topics = self.topics.iter().filter(|(topic, _)| !self.saw(Record::Topic, topic));
        let groups = self.groups.iter().filter(|(group, _)| !self.saw(Record::Group, group));
        Missing {
            topics: topics
                .map(|(topic, route)| (topic.clone(), TopicRecord { lanes: route.lanes() }))
                .collect(),
            groups: groups.map(|(group, record)| (group.clone(), record.clone())).collect(),
        }
    }

    fn saw(&self, record: fn(String) -> Record, name: &str) -> bool {
        self.seen.contains(&record(name.to_owned()))
    }

    pub(crate) fn route(&self, topic: &str) -> Option<&Route> {
        self.topics.get(topic)
    }

    pub(crate) fn group(&self, group: &str) -> Option<&GroupRecord> {
        self.groups.get(group)
    }

    /// The groups that read a topic.
    pub(crate) fn readers(&self, topic: &str) -> Vec<(String, GroupRecord)> {
        let reads = |record: &GroupRecord| record.topics.contains(topic);
        let readers = self.groups.iter().filter(|(_, record)| reads(record));
        readers.map(|(group, record)| (group.clone(), record.clone())).collect()
    }

    pub(crate) fn topics(&self) -> impl Iterator<Item = &String> {
        self.topics.keys()
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = (&String, &GroupRecord)> {
        self.groups.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        Registry::new(Names::new("antiphon"))
    }

    #[test]
    fn a_message_stays_with_its_key() {
        let mut registry = registry();
        registry.show(Record::Topic("t".into()), br#"{"lanes":4}"#);
        let route = registry.route("t").expect("it was shown");
        let one = route.of("order-1", &[0; 16]);
        assert_eq!(one, route.of("order-1", &[9; 16]));
        assert_eq!(one, format!("antiphon/t/t/{}", lane_of("order-1") % 4));
        assert_ne!(route.of("", &[0; 16]), route.of("", &[1; 16]), "without a key, anywhere");
    }

    #[test]
    fn what_the_broker_has_forgotten_is_missing_and_what_was_removed_is_not() {
        let mut registry = registry();
        let (topic, group) = (Record::Topic("t".into()), Record::Group("g".into()));
        registry.show(topic.clone(), br#"{"lanes":16}"#);
        registry.show(group.clone(), br#"{"lanes":16,"topics":["t"]}"#);
        assert_eq!(registry.missing(), Missing::default());
        assert_eq!(registry.readers("t").len(), 1);
        registry.begin();
        let missing = registry.missing();
        assert_eq!((missing.topics.len(), missing.groups.len()), (1, 1));
        registry.show(topic, br#"{"lanes":16}"#);
        registry.show(group, b"");
        assert_eq!(registry.missing(), Missing::default());
        assert!(registry.group("g").is_none());
    }

    #[test]
    fn nonsense_is_no_record() {
        let mut registry = registry();
        for text in [&b"{"[..], b"{\"lanes\":0}", b"{\"lanes\":9999999}", b"\xff"] {
            registry.show(Record::Topic("t".into()), text);
            assert!(registry.route("t").is_none());
        }
    }
}
