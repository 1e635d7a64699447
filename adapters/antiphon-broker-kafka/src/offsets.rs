//! How far groups are, and how far topics go.

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use crate::cluster::ASK;

/// A partition, and an offset of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// `None` if there is none.
    pub(crate) offset: Option<i64>,
    /// What is written down with it.
    pub(crate) text: String,
}

fn list(topics: &[(&str, i32)], offset: Offset) -> Result<TopicPartitionList, KafkaError> {
    let mut partitions = TopicPartitionList::new();
    for (topic, count) in topics {
        for partition in 0..*count {
            partitions.add_partition_offset(topic, partition, offset)?;
        }
    }
    Ok(partitions)
}

fn places(partitions: &TopicPartitionList) -> Result<Vec<Place>, KafkaError> {
    let place = |element: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
        element.error()?;
        let offset = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        let (topic, text) = (element.topic().to_owned(), element.metadata().to_owned());
        Ok(Place { topic, partition: element.partition(), offset, text })
    };
    partitions.elements().into_iter().map(place).collect()
}

/// How far the consumer's group is in all partitions of these topics.
pub(crate) fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topics: &[(&str, i32)],
) -> Result<Vec<Place>, KafkaError> {
    places(&consumer.committed_offsets(list(topics, Offset::Invalid)?, ASK)?)
}

/// Where all partitions of these topics begin, or end.
pub(crate) fn bounds<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topics: &[(&str, i32)],
    bound: Offset,
) -> Result<Vec<Place>, KafkaError> {
    // Kafka takes the two bounds for moments, as -2 and -1, and answers for all partitions at once.
    places(&consumer.offsets_for_times(list(topics, bound)?, ASK)?)
}

/// Writes down that a group without members begins at these places.
pub(crate) fn begin<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    begins: &[Place],
) -> Result<(), KafkaError> {
    let mut partitions = TopicPartitionList::with_capacity(begins.len());
    for place in begins {
        let offset = Offset::Offset(place.offset.unwrap_or(0));
        partitions.add_partition_offset(&place.topic, place.partition, offset)?;
    }
    consumer.commit(&partitions, CommitMode::Sync)
}
