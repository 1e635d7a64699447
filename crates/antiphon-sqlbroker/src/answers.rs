//! Answers to this process: they lie in a table until it has taken them.
//!
//! An answer to an inbox of this very process takes no way through the database.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use antiphon_core::BoxFuture;
use antiphon_messaging::{Inbox, Message, PublishError, PublishErrorKind, Sent};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::change::{Change, Failure, Outcome};
use crate::core::Core;
use crate::log::{Log, Ring};
use crate::publish::MESSAGE_BYTES_MAX;

/// How long an answer lies there at most.
pub(crate) const KEPT: Duration = Duration::from_secs(60);
/// How long a broker that has inboxes relies on being told, soon after it has published something
/// that may be answered, and when nothing has happened for a while.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// Answers that one inbox keeps until they are received; more are dropped, since nobody waits.
const UNRECEIVED_MAX: usize = 4_096;

type Open = Arc<Mutex<HashMap<String, mpsc::Sender<Message>>>>;

/// The inboxes of this process.
#[derive(Default)]
pub(crate) struct Inboxes {
    open: Open,
    /// There are answers, or soon may be.
    rung: Notify,
    /// There are.
    told: AtomicBool,
    /// When this process has laid down an answer that may still lie there.
    pub(crate) laid: Mutex<Option<Instant>>,
}

impl Inboxes {
    pub(crate) fn open(&self) -> Box<dyn Inbox> {
        let address = uuid::Uuid::new_v4().to_string();
        let (sender, receiver) = mpsc::channel(UNRECEIVED_MAX);
        self.open.lock().insert(address.clone(), sender);
        Box::new(TableInbox { address, receiver, open: Arc::clone(&self.open) })
    }

    /// There may be answers.
    pub(crate) fn tell(&self) {
        self.told.store(true, Ordering::Release);
        self.rung.notify_one();
    }

    /// Something was published that may be answered.
    pub(crate) fn hurry(&self) {
        if !self.open.lock().is_empty() {
            self.rung.notify_one();
        }
    }

    fn addresses(&self) -> Vec<String> {
        self.open.lock().keys().cloned().collect()
    }

    /// Gives an answer to its inbox; gives it back when that is not here.
    fn deliver(&self, address: &str, message: Message) -> Option<Message> {
        match self.open.lock().get(address) {
            Some(inbox) => {
                // Nobody has received thousands before it: nobody waits for this one.
                drop(inbox.try_send(message));
                None
            }
            None => Some(message),
        }
    }
}

struct TableInbox {
    address: String,
    receiver: mpsc::Receiver<Message>,
    open: Open,
}

impl Inbox for TableInbox {
    fn address(&self) -> &str {
        &self.address
    }

    fn receive(&mut self) -> BoxFuture<'_, Option<Message>> {
        Box::pin(self.receiver.recv())
    }
}

impl Drop for TableInbox {
    fn drop(&mut self) {
        self.open.lock().remove(&self.address);
    }
}

/// Lays an answer down.
pub(crate) async fn answer<L: Log>(
    core: &Arc<Core<L>>,
    address: &str,
    message: Message,
) -> Result<(), PublishError> {
    let refusal = |kind, sent, source: Option<Failure>| PublishError {
        topic: address.to_owned(),
        kind,
        sent,
        source: source.map(Into::into),
    };
    if message.size() > MESSAGE_BYTES_MAX {
        return Err(refusal(PublishErrorKind::TooLarge, Sent::No, None));
    }
    let Some(message) = core.inboxes.deliver(address, message) else { return Ok(()) };
    let change = Change::Answer { address: address.to_owned(), message, at: core.now() };
    let told = Arc::downgrade(core);
    let answer = core.write(change, move |outcome| {
        if let (Ok(_), Some(core)) = (outcome, told.upgrade()) {
            core.inboxes.laid.lock().get_or_insert_with(Instant::now);
            core.log.ring(Ring::Answered);
        }
    });
    match answer.get().await {
        Ok(_) => Ok(()),
        Err(failure) => {
            let sent = match failure {
                Failure::NotMade(_) => Sent::No,
                Failure::Unknown(_) => Sent::Maybe,
            };
            Err(refusal(PublishErrorKind::Disconnected, sent, Some(failure)))
        }
    }
}

/// Takes what lies at the addresses of this process, until the broker is gone.
pub(crate) async fn take<L: Log>(core: Weak<Core<L>>) {
    let mut pause = PAUSE_MAX;
    while let Some(core) = core.upgrade() {
        let inboxes = &core.inboxes;
        let rung = tokio::time::timeout(pause, inboxes.rung.notified()).await.is_ok();
        if rung && !inboxes.told.load(Ordering::Acquire) {
            // Nothing can be there yet.
            pause = PAUSE_MIN;
            continue;
        }
        inboxes.told.store(false, Ordering::Release);
        let addresses = inboxes.addresses();
        if addresses.is_empty() {
            pause = PAUSE_MAX;
            continue;
        }
        pause = match take_some(&core, addresses).await {
            Ok(true) => PAUSE_MIN,
            Ok(false) => (pause * 2).min(PAUSE_MAX),
            Err(failure) => {
                tracing::warn!(%failure, "answers were not read; trying again");
                PAUSE_MAX
            }
        };
    }
}

/// Answers whether there was anything.
async fn take_some<L: Log>(core: &Core<L>, addresses: Vec<String>) -> Result<bool, Failure> {
    if !core.log.has_answers(addresses.clone()).await? {
        return Ok(false);
    }
    match core.write(Change::TakeAnswers { addresses }, |_| {}).get().await? {
        Outcome::Answers(answers) => {
            let some = !answers.is_empty();
            for (address, message) in answers {
                // One whose inbox has ended in the meantime is of no use to anybody.
                drop(core.inboxes.deliver(&address, message));
            }
            Ok(some)
        }
        other => Err(crate::change::unexpected(&other)),
    }
}

/// Removes what nobody has taken for a minute, if this process has laid anything down.
pub(crate) async fn forget<L: Log>(core: &Core<L>) {
    {
        let mut laid = core.inboxes.laid.lock();
        match *laid {
            Some(at) if at.elapsed() > KEPT => *laid = None,
            _ => return,
        }
    }
    let before = core.now() - KEPT;
    if let Err(failure) = core.write(Change::ForgetAnswers { before }, |_| {}).get().await {
        tracing::warn!(%failure, "old answers were not removed");
        *core.inboxes.laid.lock() = Some(Instant::now());
    }
}
