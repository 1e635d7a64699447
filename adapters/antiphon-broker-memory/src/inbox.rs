//! Answers to this process.

use std::collections::HashMap;
use std::sync::Arc;

use antiphon_core::BoxFuture;
use antiphon_messaging::{Inbox, Message};
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// Answers that one inbox keeps until they are received; more are dropped, since nobody waits.
const UNRECEIVED_MAX: usize = 4_096;

#[derive(Default)]
struct Open {
    opened: u64,
    senders: HashMap<String, mpsc::Sender<Message>>,
}

/// The inboxes of one broker.
#[derive(Default)]
pub(crate) struct Inboxes(Arc<Mutex<Open>>);

impl Inboxes {
    pub(crate) fn open(&self) -> Box<dyn Inbox> {
        let (sender, receiver) = mpsc::channel(UNRECEIVED_MAX);
        let mut open = self.0.lock();
        open.opened += 1;
        let address = format!("inbox-{}", open.opened);
        open.senders.insert(address.clone(), sender);
        Box::new(MemoryInbox { address, receiver, open: Arc::clone(&self.0) })
    }

    pub(crate) fn deliver(&self, address: &str, message: Message) {
        if let Some(inbox) = self.0.lock().senders.get(address) {
            // Nobody has received thousands before it: nobody waits for this one.
            drop(inbox.try_send(message));
        }
    }
}

struct MemoryInbox {
    address: String,
    receiver: mpsc::Receiver<Message>,
    open: Arc<Mutex<Open>>,
}

impl Inbox for MemoryInbox {
    fn address(&self) -> &str {
        &self.address
    }

    fn receive(&mut self) -> BoxFuture<'_, Option<Message>> {
        Box::pin(self.receiver.recv())
    }
}

impl Drop for MemoryInbox {
    fn drop(&mut self) {
        self.open.lock().senders.remove(&self.address);
    }
}
