//! What librdkafka tells us besides answers: logs, and troubles with the brokers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// A trouble with the brokers that a person would want to know of.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) code: Code,
    pub(crate) text: String,
}

/// The latest trouble of a client. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Troubles(Arc<Mutex<Option<Trouble>>>);

impl Troubles {
    /// The latest one that says why, if there was any.
    pub(crate) fn latest(&self) -> Option<Trouble> {
        self.0.lock().clone()
    }

    pub(crate) fn note(&self, error: &KafkaError, text: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        tracing::debug!(%code, text, "kafka: trouble with the brokers");
        let mut latest = self.0.lock();
        // That all brokers are down is said last and says nothing: what came before says why.
        if code != Code::AllBrokersDown || latest.is_none() {
            *latest = Some(Trouble { code, text: text.to_owned() });
        }
    }
}

impl fmt::Debug for Troubles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Troubles").field(&self.latest()).finish()
    }
}

/// Counts what a consumer was told besides records.
///
/// Polling brings logs and other events as well, one at a time, and then looks as if nothing was
/// there; and nobody rings again while the queue is not empty. Who polls goes on while this changes.
#[derive(Debug, Default)]
pub(crate) struct Told(AtomicUsize);

impl Told {
    pub(crate) fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Passes a line of librdkafka's log on.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, line: &str) {
    if facility == "CONFWARN" {
        // What it thinks of settings that we have chosen: nobody else can change anything about it.
        tracing::debug!(target: "librdkafka", facility, "{line}");
        return;
    }
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(target: "librdkafka", facility, "{line}");
        }
        // A broker that is away for a moment is an error to librdkafka, and nothing that a person
        // has to do anything about.
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            tracing::warn!(target: "librdkafka", facility, "{line}");
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            tracing::info!(target: "librdkafka", facility, "{line}");
        }
        RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{line}"),
    }
}

/// The context of clients that have no group.
#[derive(Debug, Default)]
pub(crate) struct Asking {
    pub(crate) troubles: Troubles,
    pub(crate) told: Told,
}

impl ClientContext for Asking {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.told.note();
        log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.told.note();
        self.troubles.note(&error, reason);
    }
}

impl rdkafka::consumer::ConsumerContext for Asking {}
