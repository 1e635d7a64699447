//! Which topics and groups were declared: AMQP has no way to list them.
//!
//! They are kept at the server itself, as a message in a queue of its own. Whoever declares something
//! new takes the message, adds to it, sends it anew and then acknowledges the old one; whoever only
//! reads gives it back. Two that do so at a time may leave two messages, which are one list to
//! everybody: the next one to write makes one of them again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use antiphon_messaging::Topology;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions,
};
use lapin::{BasicProperties, Channel, Confirmation};

use crate::connection::Live;
use crate::error::Fault;
use crate::names;
use crate::topology::{Layout, Maker};

/// While somebody adds to the list it is away for a moment.
const TRIES: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_millis(40);

/// Topics, and groups with how many lanes they have (none if unordered).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct List {
    pub(crate) topics: BTreeSet<String>,
    pub(crate) groups: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) topics: BTreeSet<String>,
    pub(crate) lanes: u32,
}

impl List {
    fn of(topology: &Topology, lanes: u32) -> Self {
        let mut list =
            Self { topics: topology.topics.iter().cloned().collect(), ..Self::default() };
        for group in &topology.groups {
            list.topics.extend(group.topics.iter().cloned());
            let topics = group.topics.iter().cloned().collect();
            let lanes = if group.ordered { lanes } else { 0 };
            list.groups.insert(group.name.clone(), Entry { topics, lanes });
        }
        list
    }

    /// One line each: `topic NAME`, `group LANES NAME TOPIC…`, with tabs between.
    fn write(&self) -> String {
        let topics = self.topics.iter().map(|topic| format!("topic\t{topic}\n"));
        let groups = self.groups.iter().map(|(name, entry)| {
            let topics: Vec<&str> = entry.topics.iter().map(String::as_str).collect();
            format!("group\t{}\t{name}\t{}\n", entry.lanes, topics.join("\t"))
        });
        topics.chain(groups).collect()
    }

    /// What this version does not understand it leaves out.
    fn read(text: &str) -> Self {
        let mut list = Self::default();
        for line in text.lines() {
            let mut parts = line.split('\t');
            match (parts.next(), parts.next(), parts.next()) {
                (Some("topic"), Some(topic), _) => {
                    list.topics.insert(topic.to_owned());
                }
                (Some("group"), Some(lanes), Some(name)) => {
                    let Ok(lanes) = lanes.parse() else { continue };
                    let topics =
                        parts.filter(|topic| !topic.is_empty()).map(str::to_owned).collect();
                    list.groups.insert(name.to_owned(), Entry { topics, lanes });
                }
                _ => {}
            }
        }
        list
    }

    /// What `newer` says of a group counts.
    fn add(&mut self, newer: Self) {
        self.topics.extend(newer.topics);
        self.groups.extend(newer.groups);
    }
}

/// Adds what was declared, unless it is known.
pub(crate) async fn add(live: &Live, layout: &Layout, topology: &Topology) -> Result<(), Fault> {
    Maker::new(live, layout).make_registry().await?;
    let channel = open(live).await?;
    let (mut list, tags) = take(&channel).await?;
    let known = list.clone();
    list.add(List::of(topology, layout.lanes));
    if list == known && tags.len() <= 1 {
        return give_back(&channel, tags).await;
    }
    let properties = BasicProperties::default().with_delivery_mode(2);
    let body = list.write();
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let sent = channel
        .basic_publish("".into(), names::REGISTRY.into(), options, body.as_bytes(), properties)
        .await
        .map_err(|error| Fault::of(&error))?;
    match sent.await.map_err(|error| Fault::of(&error))? {
        Confirmation::Ack(None) => {}
        // The old one, if any, comes back with the channel.
        other => return Err(Fault::Gone(format!("the list of groups was not taken: {other:?}"))),
    }
    for tag in tags {
        let options = BasicAckOptions::default();
        channel.basic_ack(tag, options).await.map_err(|error| Fault::of(&error))?;
    }
    close(&channel).await
}

/// What was declared, by anybody.
pub(crate) async fn read(live: &Live, layout: &Layout) -> Result<List, Fault> {
    if Maker::new(live, layout).depth(names::REGISTRY).await?.is_none() {
        return Ok(List::default());
    }
    let channel = open(live).await?;
    let mut list = List::default();
    for _ in 0..TRIES {
        let (found, tags) = take(&channel).await?;
        if !tags.is_empty() {
            list = found;
            give_back(&channel, tags).await?;
            break;
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
    Ok(list)
}

async fn open(live: &Live) -> Result<Channel, Fault> {
    let channel = live.channel().await.map_err(|error| Fault::of(&error))?;
    let options = ConfirmSelectOptions::default();
    channel.confirm_select(options).await.map_err(|error| Fault::of(&error))?;
    Ok(channel)
}

/// Takes every list that is there; together they are one.
async fn take(channel: &Channel) -> Result<(List, Vec<u64>), Fault> {
    let (mut list, mut tags) = (List::default(), Vec::new());
    loop {
        let options = BasicGetOptions::default();
        let got = channel.basic_get(names::REGISTRY.into(), options).await;
        let Some(got) = got.map_err(|error| Fault::of(&error))? else { return Ok((list, tags)) };
        list.add(List::read(&String::from_utf8_lossy(&got.delivery.data)));
        tags.push(got.delivery.delivery_tag);
    }
}

async fn give_back(channel: &Channel, tags: Vec<u64>) -> Result<(), Fault> {
    for tag in tags {
        let options = BasicNackOptions { multiple: false, requeue: true };
        channel.basic_nack(tag, options).await.map_err(|error| Fault::of(&error))?;
    }
    close(channel).await
}

async fn close(channel: &Channel) -> Result<(), Fault> {
    channel.close(200, "done".into()).await.map_err(|error| Fault::of(&error))
}

#[cfg(test)]
mod tests {
    use antiphon_messaging::{Group, Start};

    use super::*;

    #[test]
    fn a_list_comes_back_as_it_was_and_grows() {
        let group = |name: &str, ordered| Group {
            name: name.into(),
            topics: vec!["orders".into(), "stock".into()],
            start: Start::Latest,
            ordered,
        };
        let topology = Topology {
            topics: vec!["mails".into()],
            groups: vec![group("billing", true), group("audit", false)],
        };
        let list = List::of(&topology, 4);
        assert_eq!(List::read(&list.write()), list);
        assert_eq!(list.topics.len(), 3);
        assert_eq!((list.groups["billing"].lanes, list.groups["audit"].lanes), (4, 0));

        let mut more = list.clone();
        more.add(List::read("topic\tnew\nwhat\tis\tthis\ngroup\tx\tbroken\n"));
        assert_eq!(more.topics.len(), 4);
        assert_eq!(more.groups, list.groups);
    }
}
