//! Progress is written down: when, what, and by a thread of its own.
//!
//! The client library answers a commit only to who waits for it: the Rust binding takes no callback
//! for commits that are made by hand. The poller must not wait, so another thread does.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::Instant;

use crate::lane::Report;
use crate::member::COMMIT_EVERY;
use crate::poller::{Connection, Shared};

/// How long an answer to a commit may take before it is given up.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a failed commit waits for its next try.
const RETRY: Duration = Duration::from_millis(100);

/// What is to be written down of lanes, each with its partition.
type Reports = Vec<(u32, Arc<str>, i32, Report)>;

/// A commit that is not answered.
struct InFlight {
    reports: Reports,
    begun: Instant,
    with_text: bool,
}

/// The commits of a member, one at a time.
pub(crate) struct Commits {
    sender: mpsc::Sender<TopicPartitionList>,
    interval: Duration,
    in_flight: Option<InFlight>,
    /// When the next one may be made, and the last one was.
    not_before: Instant,
    made_at: Instant,
    /// Whether there is something that a failed one has not written down.
    again: bool,
    /// Whether the broker takes our texts.
    with_text: bool,
}

impl Commits {
    /// Starts the thread; it ends when this is dropped.
    pub(crate) fn start(
        connection: &Arc<Connection>,
        shared: &Arc<Shared>,
        interval: Duration,
    ) -> io::Result<Self> {
        let (sender, commits) = mpsc::channel::<TopicPartitionList>();
        let (connection, shared) = (Arc::clone(connection), Arc::clone(shared));
        let thread = std::thread::Builder::new().name("antiphon-kafka-commit".to_owned());
        thread.spawn(move || {
            for offsets in commits {
                let result = connection.consumer.commit(&offsets, CommitMode::Sync);
                connection.consumer.context().committed(result);
                shared.call_poller();
            }
        })?;
        let now = Instant::now();
        Ok(Self {
            sender,
            interval,
            in_flight: None,
            not_before: now,
            made_at: now,
            again: false,
            with_text: true,
        })
    }

    /// How long there is nothing to do.
    pub(crate) fn rest(&self) -> Duration {
        if self.again { RETRY } else { self.interval }
    }

    /// Writes down what was settled, if there is enough of it or somebody waits for it.
    pub(crate) fn make_when_due(&mut self, shared: &Shared) {
        let (settled, awaited) = shared.member.lock().unwritten();
        let in_time = self.made_at.elapsed() >= self.interval;
        if awaited || self.again || settled >= COMMIT_EVERY || (settled > 0 && in_time) {
            self.make(shared);
        }
    }

    /// Writes down what was settled, unless the last commit is not answered.
    pub(crate) fn make(&mut self, shared: &Shared) {
        let now = Instant::now();
        let waits = self.in_flight.as_ref().is_some_and(|commit| now - commit.begun < ANSWER);
        if waits || now < self.not_before {
            return;
        }
        self.made_at = now;
        self.again = false;
        let reports = shared.member.lock().reports();
        if reports.is_empty() {
            return;
        }
        let sent = self
            .offsets(&reports)
            .and_then(|offsets| self.sender.send(offsets).map_err(|_| KafkaError::Canceled));
        match sent {
            Ok(()) => {
                let with_text = self.with_text;
                self.in_flight = Some(InFlight { reports, begun: now, with_text });
            }
            Err(error) => self.failed(&error),
        }
    }

    fn offsets(&self, reports: &Reports) -> Result<TopicPartitionList, KafkaError> {
        let mut offsets = TopicPartitionList::with_capacity(reports.len());
        for (_, topic, partition, report) in reports {
            let mut element = offsets.add_partition(topic, *partition);
            element.set_offset(Offset::Offset(report.low))?;
            if self.with_text && !report.text.is_empty() {
                element.set_metadata(&report.text);
            }
        }
        Ok(offsets)
    }

    /// The broker has answered.
    pub(crate) fn answered(&mut self, result: Result<(), KafkaError>, shared: &Shared) {
        let Some(commit) = self.in_flight.take() else { return };
        match result {
            Ok(()) => {
                let mut member = shared.member.lock();
                for (lane, _, _, report) in &commit.reports {
                    member.written(*lane, report, commit.with_text);
                }
            }
            Err(error) => {
                if error.rdkafka_error_code() == Some(Code::OffsetMetadataTooLarge) {
                    tracing::warn!(
                        "kafka: offset.metadata.max.bytes of the brokers is below 4000; retries \
                         forget their attempts when a member leaves"
                    );
                    self.with_text = false;
                }
                self.failed(&error);
            }
        }
    }

    fn failed(&mut self, error: &KafkaError) {
        // A rebalance or a restart of the broker comes in between: the next try is as good.
        tracing::debug!(%error, "kafka: progress was not written down, trying again");
        self.again = true;
        self.not_before = Instant::now() + RETRY;
    }
}
