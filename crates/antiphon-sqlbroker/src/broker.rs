//! The broker's front: what it can do, declaring, joining.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::Clock;
use antiphon_messaging::{
    Broker, Capabilities, DeadLetters, Inbox, Message, Operate, PublishError, Receipt, Source,
    SubscribeError, Subscription, Topology,
};

use crate::change::{Change, Failure, Identity};
use crate::core::{Core, Ear};
use crate::log::{Joinable, Log, Look, Topic};
use crate::member::Member;
use crate::source::MemberSource;
use crate::{answers, dead, housekeeping, keeper, operate, publish, watch};

/// The longest delay that is kept; what is longer was probably meant otherwise.
const DELAY_MAX: Duration = Duration::from_hours(24 * 365);

/// A broker over a database. Clones share it.
pub struct SqlBroker<L: Log>(Arc<Core<L>>);

impl<L: Log> SqlBroker<L> {
    /// A broker over `log`, which hears of other processes through `ear`. Must be called in a Tokio
    /// runtime, which then keeps house for it.
    #[must_use]
    pub fn start(log: L, ear: &Ear, clock: Clock) -> Self {
        let core = Core::start(log, clock, ear);
        tokio::spawn(housekeeping::run(Arc::downgrade(&core)));
        tokio::spawn(answers::take(Arc::downgrade(&core)));
        Self(core)
    }

    /// The database.
    #[must_use]
    pub fn log(&self) -> &L {
        &self.0.log
    }
}

impl<L: Look> SqlBroker<L> {
    /// Looks for what other processes have committed, from every few milliseconds while there is
    /// something to four times a second, until the broker is gone. `rung` makes it look sooner.
    pub fn watch(&self, rung: Arc<tokio::sync::Notify>) {
        tokio::spawn(watch::run(Arc::downgrade(&self.0), rung));
    }
}

impl<L: Log> Clone for SqlBroker<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L: Log> Broker for SqlBroker<L> {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: self.0.log.durability(),
            ordered: true,
            holds_keys: true,
            retry_delay_max: DELAY_MAX,
            publish_delay_max: DELAY_MAX,
            dead_letters: true,
            counts_attempts: true,
            replays: true,
            answers: true,
            message_bytes_max: publish::MESSAGE_BYTES_MAX,
        }
    }

    async fn declare(&self, topology: &Topology) -> Result<(), SubscribeError> {
        let present = self.0.log.is_declared(topology).await;
        if present.map_err(refused("reading the topology failed"))? {
            return Ok(());
        }
        let answer = self.0.write(Change::Declare(topology.clone()), |_| {});
        answer.get().await.map(drop).map_err(refused("declaring the topology failed"))
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        publish::publish(&self.0, batch).await
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        let found = self.0.log.joinable(&subscription.group, &subscription.topics).await;
        let found = found.map_err(refused("reading the group failed"))?;
        let (group, topics) = joinable(&subscription, found).map_err(|context| SubscribeError {
            context,
            transient: false,
            source: None,
        })?;
        let identity = Identity {
            group,
            owner: uuid::Uuid::new_v4().to_string(),
            topics: topics.iter().map(|topic| topic.id).collect(),
        };
        let member = Member::new(Arc::clone(&self.0), identity, topics, subscription.ordered);
        tokio::spawn(keeper::keep(Arc::downgrade(&member)));
        Ok(Box::new(MemberSource(member)))
    }

    async fn inbox(&self) -> Result<Box<dyn Inbox>, SubscribeError> {
        Ok(self.0.inboxes.open())
    }

    async fn answer(&self, address: &str, message: Message) -> Result<(), PublishError> {
        answers::answer(&self.0, address, message).await
    }

    fn operate(&self) -> Option<Arc<dyn Operate>> {
        Some(Arc::new(operate::View(Arc::clone(&self.0))))
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        Some(Arc::new(dead::DeadRows(Arc::clone(&self.0))))
    }
}

/// The group of a subscription and its topics, or why it cannot be joined.
fn joinable(
    subscription: &Subscription,
    found: Option<Joinable>,
) -> Result<(i64, Vec<Topic>), String> {
    let name = &subscription.group;
    let Some(found) = found else {
        return Err(format!("the group {name:?} was not declared"));
    };
    let mut topics = Vec::with_capacity(found.topics.len());
    for (topic, id) in subscription.topics.iter().zip(found.topics) {
        match id {
            Some(id) => topics.push(Topic { id, name: topic.clone() }),
            None => return Err(format!("the group {name:?} was not declared to read {topic:?}")),
        }
    }
    if topics.is_empty() {
        return Err(format!("a subscription of the group {name:?} names no topic"));
    }
    Ok((found.group, topics))
}

fn refused(context: &'static str) -> impl FnOnce(Failure) -> SubscribeError {
    move |failure| SubscribeError {
        context: context.to_owned(),
        transient: true,
        source: Some(failure.into()),
    }
}

impl<L: Log> fmt::Debug for SqlBroker<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlBroker").finish_non_exhaustive()
    }
}
