//! What operators ask: topics, groups and how far they are, and what a person should know of the
//! cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use antiphon_core::{BoxFuture, Finding};
use antiphon_messaging::{GroupState, Operate, OperateError, TopicState};
use rdkafka::Offset;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;

use crate::cluster::{ASK, Cluster};
use crate::context::Asking;
use crate::error::operate_error;
use crate::findings;
use crate::names;
use crate::offsets::{self, Place};
use crate::progress;
use crate::topology::until_settled;

/// See the module.
pub(crate) struct Operator(pub(crate) Arc<Cluster>);

impl Operate for Operator {
    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicState>, OperateError>> {
        Box::pin(async move {
            self.0
                .ask(|cluster| until_settled(|| topics(cluster)))
                .await
                .map_err(operate_error("listing the topics"))
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupState>, OperateError>> {
        Box::pin(async move {
            self.0
                .ask(|cluster| until_settled(|| groups(cluster)))
                .await
                .map_err(operate_error("listing the groups"))
        })
    }

    fn findings(&self) -> BoxFuture<'_, Vec<Finding>> {
        Box::pin(findings::all(&self.0))
    }
}

/// Every topic of users, with the number of its partitions.
pub(crate) fn user_topics(cluster: &Cluster) -> Result<BTreeMap<String, i32>, KafkaError> {
    let metadata = cluster.admin().inner().fetch_metadata(None, ASK)?;
    let count = |partitions: usize| i32::try_from(partitions).unwrap_or(i32::MAX);
    Ok(metadata
        .topics()
        .iter()
        .filter(|topic| topic.error().is_none() && !names::is_internal(topic.name()))
        .map(|topic| (topic.name().to_owned(), count(topic.partitions().len())))
        .collect())
}

/// Where the partitions of topics begin and end.
struct Bounds {
    begins: Vec<Place>,
    ends: Vec<Place>,
}

impl Bounds {
    fn ask(cluster: &Cluster, topics: &BTreeMap<String, i32>) -> Result<Self, KafkaError> {
        let consumer: BaseConsumer<Asking> = cluster
            .settings
            .client()
            .map_err(|_| KafkaError::Canceled)?
            .create_with_context(Asking::default())?;
        let topics: Vec<(&str, i32)> = named(topics);
        let begins = offsets::bounds(&consumer, &topics, Offset::Beginning)?;
        let ends = offsets::bounds(&consumer, &topics, Offset::End)?;
        Ok(Self { begins, ends })
    }

    /// By topic and partition: the first offset, and the one after the last.
    fn ranges(&self) -> BTreeMap<(&str, i32), (i64, i64)> {
        let begins = self.begins.iter().zip(&self.ends);
        begins
            .map(|(begin, end)| {
                let range = (begin.offset.unwrap_or(0), end.offset.unwrap_or(0));
                ((begin.topic.as_str(), begin.partition), range)
            })
            .collect()
    }
}

fn named(topics: &BTreeMap<String, i32>) -> Vec<(&str, i32)> {
    topics.iter().map(|(name, partitions)| (name.as_str(), *partitions)).collect()
}

fn topics(cluster: &Cluster) -> Result<Vec<TopicState>, KafkaError> {
    let topics = user_topics(cluster)?;
    let bounds = Bounds::ask(cluster, &topics)?;
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for ((topic, _), (begin, end)) in bounds.ranges() {
        *counts.entry(topic).or_default() += u64::try_from(end - begin).unwrap_or(0);
    }
    let state = |name: &String| TopicState {
        name: name.clone(),
        messages: Some(counts.get(name.as_str()).copied().unwrap_or(0)),
    };
    Ok(topics.keys().map(state).collect())
}

fn groups(cluster: &Cluster) -> Result<Vec<GroupState>, KafkaError> {
    let topics = user_topics(cluster)?;
    let bounds = Bounds::ask(cluster, &topics)?;
    let ranges = bounds.ranges();
    let list = cluster.admin().inner().fetch_group_list(None, ASK)?;
    let mut states = Vec::new();
    for group in list.groups() {
        let consumer: BaseConsumer<Asking> =
            cluster.consumer(group.name())?.create_with_context(Asking::default())?;
        let committed = offsets::committed(&consumer, &named(&topics))?;
        let mut state = state_of(group.name(), &committed, &ranges);
        if !state.topics.is_empty() {
            state.members = u32::try_from(group.members().len()).ok();
            states.push(state);
        }
    }
    states.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(states)
}

/// How far a group is, by what it has written down.
fn state_of(
    name: &str,
    committed: &[Place],
    ranges: &BTreeMap<(&str, i32), (i64, i64)>,
) -> GroupState {
    let mut topics = BTreeSet::new();
    let (mut lag, mut waiting) = (0, 0);
    for place in committed {
        let Some(low) = place.offset else { continue };
        topics.insert(place.topic.clone());
        let range = ranges.get(&(place.topic.as_str(), place.partition));
        let (begin, end) = range.copied().unwrap_or((low, low));
        let progress = progress::read(low, &place.text);
        let done: i64 = progress.done.iter().map(|done| done.end - done.start).sum();
        lag += u64::try_from(end - low.max(begin) - done).unwrap_or(0);
        waiting += progress.waits.len() as u64;
    }
    GroupState {
        name: name.to_owned(),
        topics: topics.into_iter().collect(),
        members: None,
        lag: Some(lag),
        waiting: Some(waiting),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_counts_what_is_not_handled() {
        let place = |partition, offset, text: &str| Place {
            topic: "orders".into(),
            partition,
            offset,
            text: text.into(),
        };
        let committed = [
            // Twenty behind, of which three are done beyond the first and one waits.
            place(0, Some(10), "a1;0*2@1;1+3"),
            // Behind what the topic still has.
            place(1, Some(5), ""),
            place(2, None, ""),
        ];
        let ranges = BTreeMap::from([
            (("orders", 0), (0, 30)),
            (("orders", 1), (100, 110)),
            (("orders", 2), (0, 7)),
        ]);
        let state = state_of("billing", &committed, &ranges);
        assert_eq!((state.lag, state.waiting), (Some(17 + 10), Some(1)));
        assert_eq!(state.topics, ["orders"]);
    }
}
