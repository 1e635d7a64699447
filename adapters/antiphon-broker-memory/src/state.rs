//! Everything the broker knows: topics with what they retain, messages that are not due, groups.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use antiphon_core::Timestamp;
use antiphon_messaging::{Message, PublishErrorKind, Start, Subscription, TopicState, Topology};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::broker::Settings;
use crate::group::{Group, MemberId};

/// Where a group stands in [`State::groups`]. Groups are never removed.
pub(crate) type GroupId = usize;

/// Why a message was not taken.
pub(crate) enum Refusal {
    /// A group has no room for it now.
    Full(Box<Message>),
    /// It never will be.
    Never { topic: String, kind: PublishErrorKind },
}

#[derive(Default)]
struct Topic {
    retained: VecDeque<Arc<Message>>,
    groups: Vec<GroupId>,
}

/// See the module.
pub(crate) struct State {
    settings: Settings,
    topics: BTreeMap<String, Topic>,
    groups: Vec<Group>,
    by_name: BTreeMap<String, GroupId>,
    /// Messages that are not due, by when they are.
    delayed: BTreeMap<(Instant, u64), Arc<Message>>,
    /// Numbers messages in the order in which they become available.
    sequence: u64,
    /// Groups that have got something since the last [`Self::wake`].
    touched: BTreeSet<GroupId>,
}

impl State {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            topics: BTreeMap::new(),
            groups: Vec::new(),
            by_name: BTreeMap::new(),
            delayed: BTreeMap::new(),
            sequence: 0,
            touched: BTreeSet::new(),
        }
    }

    pub(crate) fn group(&mut self, id: GroupId) -> &mut Group {
        &mut self.groups[id]
    }

    pub(crate) fn group_named(&mut self, name: &str) -> Option<&mut Group> {
        let id = *self.by_name.get(name)?;
        Some(&mut self.groups[id])
    }

    /// All groups, in the order of their names.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &Group> {
        self.by_name.values().map(|id| &self.groups[*id])
    }

    /// All topics, in the order of their names.
    pub(crate) fn topics(&self) -> Vec<TopicState> {
        let delayed =
            |name: &str| self.delayed.values().filter(|message| message.topic == name).count();
        let state = |(name, topic): (&String, &Topic)| {
            let messages = topic.retained.len() + delayed(name);
            let messages = Some(u64::try_from(messages).unwrap_or(u64::MAX));
            TopicState { name: name.clone(), messages }
        };
        self.topics.iter().map(state).collect()
    }

    pub(crate) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Adds what is missing; takes nothing away.
    pub(crate) fn declare(&mut self, topology: &Topology) {
        for topic in &topology.topics {
            self.topics.entry(topic.clone()).or_default();
        }
        for declared in &topology.groups {
            let id = *self.by_name.entry(declared.name.clone()).or_insert_with(|| {
                self.groups.push(Group::new(&declared.name, &self.settings));
                self.groups.len() - 1
            });
            for name in &declared.topics {
                let topic = self.topics.entry(name.clone()).or_default();
                if topic.groups.contains(&id) {
                    continue;
                }
                topic.groups.push(id);
                self.groups[id].topics.insert(name.clone());
                if declared.start == Start::Earliest {
                    for message in &topic.retained {
                        self.sequence += 1;
                        self.groups[id].add(self.sequence, Arc::clone(message));
                    }
                    self.touched.insert(id);
                }
            }
        }
        self.wake();
    }

    /// Takes one message for all groups of its topic, or for none.
    pub(crate) fn publish(
        &mut self,
        message: Message,
        now: Instant,
        wall: Timestamp,
    ) -> Result<(), Refusal> {
        let kind = match self.topics.get(&message.topic) {
            None => Some(PublishErrorKind::Unroutable),
            Some(_) if message.size() > self.settings.capabilities.message_bytes_max => {
                Some(PublishErrorKind::TooLarge)
            }
            Some(topic) => {
                let full = |id: &GroupId| self.groups[*id].backlog() >= self.settings.backlog_max;
                let crowded = self.delayed.len() >= self.settings.backlog_max;
                if crowded || topic.groups.iter().any(full) {
                    return Err(Refusal::Full(Box::new(message)));
                }
                None
            }
        };
        if let Some(kind) = kind {
            return Err(Refusal::Never { topic: message.topic, kind });
        }
        let wait = message.not_before.map(|due| due.since(wall)).filter(|wait| !wait.is_zero());
        let message = Arc::new(message);
        match wait {
            Some(wait) => {
                let sequence = self.next_sequence();
                let due = now + wait.min(self.settings.capabilities.publish_delay_max);
                let groups = self.topics.get(&message.topic).map(|topic| topic.groups.clone());
                // Members that sleep must learn when to wake.
                self.touched.extend(groups.unwrap_or_default());
                self.delayed.insert((due, sequence), message);
            }
            None => self.distribute(message),
        }
        Ok(())
    }

    /// Gives a message that is due to the groups of its topic.
    fn distribute(&mut self, message: Arc<Message>) {
        self.sequence += 1;
        let Some(topic) = self.topics.get_mut(&message.topic) else {
            return;
        };
        for id in &topic.groups {
            self.groups[*id].add(self.sequence, Arc::clone(&message));
            self.touched.insert(*id);
        }
        topic.retained.push_back(message);
        if topic.retained.len() > self.settings.retained_max {
            topic.retained.pop_front();
        }
    }

    /// Does what is due.
    pub(crate) fn advance(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let message = entry.remove();
            self.distribute(message);
        }
    }

    /// When something becomes due next that no group knows of.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.delayed.first_key_value().map(|((due, _), _)| *due)
    }

    /// Wakes the members of the groups that have got something.
    pub(crate) fn wake(&mut self) {
        while let Some(id) = self.touched.pop_first() {
            self.groups[id].wake();
        }
    }

    pub(crate) fn join(
        &mut self,
        subscription: &Subscription,
        notify: Arc<Notify>,
        now: Instant,
    ) -> Result<(GroupId, MemberId), String> {
        let name = &subscription.group;
        let id = *self.by_name.get(name).ok_or_else(|| format!("group {name} is not declared"))?;
        if subscription.ordered && !self.settings.capabilities.ordered {
            return Err(format!("group {name}: this broker does not keep the order of keys"));
        }
        let group = &mut self.groups[id];
        if let Some(topic) = subscription.topics.iter().find(|name| !group.topics.contains(*name)) {
            return Err(format!("group {name} is not declared to read topic {topic}"));
        }
        let member = self.sequence + 1;
        self.sequence = member;
        group.join(member, subscription.ordered, notify, now)?;
        Ok((id, member))
    }
}
