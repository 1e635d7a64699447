//! The thread of a member that writes progress down.
//!
//! The client library answers a commit only to who waits for it: the Rust binding takes no callback
//! for commits that are made by hand. The poller must not wait, so this thread does.

use std::io;
use std::sync::{Arc, mpsc};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{CommitMode, Consumer};

use crate::poller::{Connection, Shared};

/// Starts the thread; it ends when the sender is dropped.
pub(crate) fn start(
    connection: Arc<Connection>,
    shared: Arc<Shared>,
) -> io::Result<mpsc::Sender<TopicPartitionList>> {
    let (sender, commits) = mpsc::channel::<TopicPartitionList>();
    let thread = std::thread::Builder::new().name("antiphon-kafka-commit".to_owned());
    thread.spawn(move || {
        for offsets in commits {
            let result = connection.consumer.commit(&offsets, CommitMode::Sync);
            connection.consumer.context().committed(result);
            shared.call_poller();
        }
    })?;
    Ok(sender)
}
