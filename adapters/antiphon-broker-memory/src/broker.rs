//! The broker's front: what it can do, publishing, joining.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::Clock;
use antiphon_messaging::{
    Broker, Capabilities, DeadLetters, Durability, Inbox, Message, Operate, PublishError,
    PublishErrorKind, Receipt, Sent, Source, SubscribeError, Subscription, Topology,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::inbox::Inboxes;
use crate::source::MemorySource;
use crate::state::{Refusal, State};

/// What a [`MemoryBroker`] can do, and its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What it claims, and does: tests switch things off to see what the engine makes of it.
    pub capabilities: Capabilities,
    /// How many messages a topic keeps for groups that come later.
    pub retained_max: usize,
    /// How many messages may wait for one group; then publishing waits.
    pub backlog_max: usize,
    /// How long publishing waits for room before it is refused.
    pub publish_wait: Duration,
    /// How long a consumer may take to finish with lanes that others take over.
    pub revoke_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let day = Duration::from_secs(86_400);
        Self {
            capabilities: Capabilities {
                durability: Durability::Memory,
                ordered: true,
                holds_keys: true,
                retry_delay_max: 365 * day,
                publish_delay_max: 365 * day,
                dead_letters: true,
                counts_attempts: true,
                replays: true,
                answers: true,
                message_bytes_max: 4 * 1024 * 1024,
            },
            retained_max: 10_000,
            backlog_max: 100_000,
            publish_wait: Duration::from_secs(1),
            revoke_wait: Duration::from_secs(30),
        }
    }
}

/// A broker that lives and ends with the process. Cheap to clone; clones are the same broker.
#[derive(Clone)]
pub struct MemoryBroker(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) clock: Clock,
    pub(crate) state: Mutex<State>,
    /// Rung when a group has taken messages: publishers may have room.
    pub(crate) room: Notify,
    pub(crate) inboxes: Inboxes,
}

impl MemoryBroker {
    /// A broker with the default settings.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self::with_settings(Settings::default(), clock)
    }

    /// A broker with these settings.
    #[must_use]
    pub fn with_settings(settings: Settings, clock: Clock) -> Self {
        let state = Mutex::new(State::new(settings.clone()));
        let (room, inboxes) = (Notify::new(), Inboxes::default());
        Self(Arc::new(Shared { settings, clock, state, room, inboxes }))
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new(Clock::system())
    }
}

impl Broker for MemoryBroker {
    fn capabilities(&self) -> Capabilities {
        self.0.settings.capabilities.clone()
    }

    async fn declare(&self, topology: &Topology) -> Result<(), SubscribeError> {
        self.0.state.lock().declare(topology);
        Ok(())
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        let mut results = Vec::with_capacity(batch.len());
        let mut messages = batch.into_iter();
        let mut full: Option<Message> = None;
        let give_up = Instant::now() + self.0.settings.publish_wait;
        loop {
            // Registered before looking, so that room made in between is noticed.
            let mut room = std::pin::pin!(self.0.room.notified());
            room.as_mut().enable();
            {
                let (now, wall) = (Instant::now(), self.0.clock.now());
                let mut state = self.0.state.lock();
                while let Some(message) = full.take().or_else(|| messages.next()) {
                    match state.publish(message, now, wall) {
                        Ok(()) => results.push(Ok(Receipt)),
                        Err(Refusal::Full(message)) => {
                            full = Some(*message);
                            break;
                        }
                        Err(Refusal::Never { topic, kind }) => results.push(Err(PublishError {
                            topic,
                            kind,
                            sent: Sent::No,
                            source: None,
                        })),
                    }
                }
                state.wake();
            }
            let Some(message) = &full else { return results };
            if tokio::time::timeout_at(give_up, room).await.is_err() {
                // What comes after is refused as well: messages of one key must not overtake.
                let overloaded = |topic: &str| PublishError {
                    topic: topic.to_owned(),
                    kind: PublishErrorKind::Overloaded,
                    sent: Sent::No,
                    source: None,
                };
                results.push(Err(overloaded(&message.topic)));
                results.extend(messages.map(|message| Err(overloaded(&message.topic))));
                return results;
            }
        }
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        let notify = Arc::new(Notify::new());
        let mut state = self.0.state.lock();
        let (group, member) = state
            .join(&subscription, Arc::clone(&notify), Instant::now())
            .map_err(|context| SubscribeError { context, transient: false, source: None })?;
        Ok(Box::new(MemorySource::new(Arc::clone(&self.0), group, member, notify)))
    }

    async fn inbox(&self) -> Result<Box<dyn Inbox>, SubscribeError> {
        match self.0.settings.capabilities.answers {
            true => Ok(self.0.inboxes.open()),
            false => Err(SubscribeError {
                context: "this broker carries no answers".to_owned(),
                transient: false,
                source: None,
            }),
        }
    }

    async fn answer(&self, address: &str, message: Message) -> Result<(), PublishError> {
        let capabilities = &self.0.settings.capabilities;
        let kind = if !capabilities.answers {
            PublishErrorKind::Rejected
        } else if message.size() > capabilities.message_bytes_max {
            PublishErrorKind::TooLarge
        } else {
            self.0.inboxes.deliver(address, message);
            return Ok(());
        };
        Err(PublishError { topic: address.to_owned(), kind, sent: Sent::No, source: None })
    }

    fn operate(&self) -> Option<Arc<dyn Operate>> {
        Some(Arc::new(self.clone()))
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        let kept = self.0.settings.capabilities.dead_letters;
        kept.then(|| Arc::new(self.clone()) as Arc<dyn DeadLetters>)
    }
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBroker").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}
