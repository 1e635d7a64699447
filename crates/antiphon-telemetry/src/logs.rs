//! Log lines: what `tracing` events become.
//!
//! Every line carries the trace, span and correlation id of the context that was current where it was
//! logged. Lines are written by a thread of their own; a slow output never slows the work, it costs
//! lines, and the lines it cost are counted and told.

mod fields;
mod json;
mod layer;
mod pretty;
mod sink;

use std::io::IsTerminal;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;

use crate::settings::{LogFormat, LogOutput, LogSettings, Service};
use fields::Redaction;
use layer::{Format, LogLayer};

pub(crate) use sink::Sink;

/// Logs cannot be written as the settings ask.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The filter cannot be read.
    #[error("`filter` is {filter:?}: {problem}; write it as \"info,some::target=debug\"")]
    Filter {
        /// What the settings say.
        filter: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The queue has no place.
    #[error("`queue` must be at least 1")]
    Queue,
    /// There can be one subscriber in a process.
    #[error("another `tracing` subscriber is installed already")]
    Installed,
    /// The machine refused a thread.
    #[error("cannot start the log writer: {0}")]
    Thread(#[from] std::io::Error),
}

/// Installs the subscriber of this process.
pub(crate) fn start(service: &Service, settings: &LogSettings) -> Result<Sink, LogsError> {
    let (subscriber, sink) = subscriber(service, settings)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogsError::Installed)?;
    Ok(sink)
}

fn subscriber(
    service: &Service,
    settings: &LogSettings,
) -> Result<(impl tracing::Subscriber + Send + Sync, Sink), LogsError> {
    let filter: Targets = settings.filter.parse().map_err(|problem| LogsError::Filter {
        filter: settings.filter.clone(),
        problem: format!("{problem}"),
    })?;
    if settings.queue == 0 {
        return Err(LogsError::Queue);
    }
    let terminal = match settings.output {
        LogOutput::Stdout => std::io::stdout().is_terminal(),
        LogOutput::Stderr => std::io::stderr().is_terminal(),
    };
    let format = match settings.format {
        LogFormat::Json => Format::Json,
        LogFormat::Pretty => Format::Pretty { colours: terminal },
        LogFormat::Auto if terminal => Format::Pretty { colours: true },
        LogFormat::Auto => Format::Json,
    };
    let notice = match format {
        Format::Json => json::dropped,
        Format::Pretty { .. } => pretty::dropped,
    };
    let sink = match settings.output {
        LogOutput::Stdout => Sink::spawn(std::io::stdout(), settings.queue, notice)?,
        LogOutput::Stderr => Sink::spawn(std::io::stderr(), settings.queue, notice)?,
    };
    let redaction = Redaction::new(&settings.redact);
    let layer = LogLayer::new(format, service.name.clone(), redaction, sink.clone());
    Ok((Registry::default().with(filter).with(layer), sink))
}
