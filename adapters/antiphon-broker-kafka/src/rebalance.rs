//! What a member of a group is told: partitions come and go, commits are answered.
//!
//! The library waits for the answer to a rebalance, and does not need it at once: so it is only
//! noted here. The poller answers when handlers are done, and polls on meanwhile.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};

use crate::context::{self, Told, Troubles};

/// What was told.
#[derive(Debug)]
pub(crate) enum Event {
    Assign(TopicPartitionList),
    Revoke(TopicPartitionList),
    Committed(KafkaResult<()>),
}

/// The context of a member's consumer.
#[derive(Debug, Default)]
pub(crate) struct Rebalancing {
    events: Mutex<VecDeque<Event>>,
    /// Whether the member leaves: then all is answered at once.
    leaving: AtomicBool,
    told: Told,
    troubles: Troubles,
}

impl Rebalancing {
    /// How often anything was told.
    pub(crate) fn told(&self) -> usize {
        self.told.count()
    }

    pub(crate) fn next(&self) -> Option<Event> {
        self.events.lock().pop_front()
    }

    /// A commit is answered.
    pub(crate) fn committed(&self, result: KafkaResult<()>) {
        self.events.lock().push_back(Event::Committed(result));
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.events.lock().is_empty()
    }

    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    pub(crate) fn troubles(&self) -> &Troubles {
        &self.troubles
    }
}

impl ClientContext for Rebalancing {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.told.note();
        context::log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.told.note();
        self.troubles.note(&error, reason);
    }
}

impl ConsumerContext for Rebalancing {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        self.told.note();
        let assigned = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.leaving.load(Ordering::Acquire) {
            let answered = if assigned {
                consumer.incremental_assign(partitions)
            } else {
                consumer.incremental_unassign(partitions)
            };
            if let Err(error) = answered {
                tracing::debug!(%error, "kafka: a rebalance while leaving was not answered");
            }
            return;
        }
        let partitions = partitions.clone();
        let event = if assigned { Event::Assign(partitions) } else { Event::Revoke(partitions) };
        self.events.lock().push_back(event);
    }
}
