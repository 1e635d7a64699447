//! One producer of librdkafka, from its start to the first record that fails for good, and the
//! answers to the batches that go through it.

use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{
    BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer,
};
use rdkafka::{ClientConfig, ClientContext};
use tokio::sync::Notify;

use crate::context::{self, Troubles};

/// What became of one message.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// Not known yet, or never sent.
    Pending,
    Confirmed,
    Failed(KafkaError),
}

/// The answers to one batch.
#[derive(Debug)]
pub(crate) struct Batch {
    answers: Mutex<Answers>,
    /// Rung when the last answer is there, and at each failure.
    pub(crate) bell: Notify,
}

#[derive(Debug)]
struct Answers {
    outcomes: Vec<Outcome>,
    pending: usize,
}

impl Batch {
    /// Waits for this many answers.
    pub(crate) fn new(count: usize) -> Self {
        let answers = Answers { outcomes: vec![Outcome::Pending; count], pending: count };
        Self { answers: Mutex::new(answers), bell: Notify::new() }
    }

    fn answer(&self, index: usize, outcome: Outcome) {
        let mut answers = self.answers.lock();
        answers.pending = answers.pending.saturating_sub(1);
        let rings = answers.pending == 0 || matches!(outcome, Outcome::Failed(_));
        if let Some(place) = answers.outcomes.get_mut(index) {
            *place = outcome;
        }
        drop(answers);
        if rings {
            self.bell.notify_one();
        }
    }

    /// This many answers will not come.
    pub(crate) fn withdraw(&self, count: usize) {
        let mut answers = self.answers.lock();
        answers.pending = answers.pending.saturating_sub(count);
    }

    pub(crate) fn is_done(&self) -> bool {
        self.answers.lock().pending == 0
    }

    /// The answers; late ones go nowhere.
    pub(crate) fn take(&self) -> Vec<Outcome> {
        std::mem::take(&mut self.answers.lock().outcomes)
    }
}

/// Where the answer to one record goes.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) batch: Arc<Batch>,
    pub(crate) index: u32,
}

/// A record that waits for its place in the queue.
pub(crate) type Record<'a> = BaseRecord<'a, str, [u8], Box<Ticket>>;

/// Takes delivery reports.
#[derive(Debug, Default)]
struct Reports {
    troubles: Troubles,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        context::log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.troubles.note(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let outcome = match result {
            Ok(_) => Outcome::Confirmed,
            Err((error, _)) => Outcome::Failed(error.clone()),
        };
        ticket.batch.answer(ticket.index as usize, outcome);
    }
}

/// See the module.
pub(crate) struct Producer {
    /// `None` only while it is dropped.
    inner: Option<ThreadedProducer<Reports>>,
}

impl Producer {
    pub(crate) fn start(config: &ClientConfig) -> Result<Self, KafkaError> {
        Ok(Self { inner: Some(config.create_with_context(Reports::default())?) })
    }

    /// Queues a record, or gives it back.
    pub(crate) fn queue<'a>(
        &self,
        record: Record<'a>,
    ) -> Result<(), Box<(KafkaError, Record<'a>)>> {
        match &self.inner {
            Some(producer) => producer.send(record).map_err(Box::new),
            None => Err(Box::new((KafkaError::Canceled, record))),
        }
    }

    /// Whether it has ended: a record has failed for good, and no later one may overtake it.
    pub(crate) fn has_ended(&self) -> bool {
        self.inner.as_ref().is_none_or(|producer| producer.client().fatal_error().is_some())
    }

    /// Lets all that is not confirmed come back.
    pub(crate) fn purge(&self) {
        if let Some(producer) = &self.inner {
            producer.purge(PurgeConfig::default().queue().inflight().non_blocking());
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // Its end waits for its thread, which a task must not.
        if let Some(producer) = self.inner.take() {
            std::thread::spawn(move || drop(producer));
        }
    }
}
