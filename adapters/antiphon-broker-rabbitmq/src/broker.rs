//! The port, put together.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use antiphon_messaging::{
    Broker, Capabilities, Inbox, Message, Operate, PublishError, Receipt, Source, SubscribeError,
    Subscription, Topology,
};
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::connection::{Access, Line, Live};
use crate::error::{Fault, OpenError, away, refused};
use crate::held::Held;
use crate::inbox::AnswerQueue;
use crate::member::Member;
use crate::operate::Operator;
use crate::probe::{Server, probe};
use crate::publish::{Publisher, Rules};
use crate::registry;
use crate::settings::Settings;
use crate::source::Reader;
use crate::topology::{self, Declared, Layout};

/// A broker on a RabbitMQ server. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct RabbitmqBroker(Arc<Inner>);

struct Inner {
    settings: Settings,
    access: Access,
    server: Server,
    layout: Layout,
    declared: Arc<Declared>,
    /// What operators see of it.
    listed: Mutex<Vec<Topology>>,
    publisher: Publisher,
    /// Publishes and declares.
    sending: Arc<Line>,
    /// Consumes, and is opened when it is needed.
    reading: OnceLock<Arc<Line>>,
}

impl RabbitmqBroker {
    /// Connects, and looks whether the server will do.
    ///
    /// # Errors
    /// A setting cannot be, the server does not answer, is another one or too old, or does not let
    /// this user in.
    pub async fn open(settings: Settings) -> Result<Self, OpenError> {
        let access = Access::new(&settings)?;
        let server = probe(&access.uri, &access.tls, access.timeout).await?;
        let connection = access.connect("publishing").await?;
        let layout = Layout {
            lanes: settings.lanes,
            expiry_ms: settings
                .group_expiry
                .map(|expiry| i64::try_from(expiry.0.as_millis()).unwrap_or(i64::MAX)),
            unlimited: server.major >= 4,
        };
        let declared = Arc::new(Declared::default());
        let (known, made) = (Arc::clone(&declared), layout.clone());
        let restore = Box::new(move |live: Arc<Live>| {
            let (known, made) = (Arc::clone(&known), made.clone());
            let restoring = async move { known.restore(&live, &made).await };
            Box::pin(restoring) as antiphon_core::BoxFuture<'static, Result<(), String>>
        });
        let sending = Arc::new(Line::keep(access.clone(), "publishing", Some(connection), restore));
        let rules = Rules {
            window: settings.publish_window,
            timeout: settings.publish_timeout.0,
            message_max: settings.message_max.0,
            unread: settings.unread,
        };
        let publisher =
            Publisher::start(Arc::clone(&sending), rules, Arc::clone(&declared), layout.clone());
        let reading = OnceLock::new();
        let inner = Inner {
            settings,
            access,
            server,
            layout,
            declared,
            listed: Mutex::new(Vec::new()),
            publisher,
            sending,
            reading,
        };
        Ok(Self(Arc::new(inner)))
    }

    /// The version of the server, as it was when the broker was opened.
    #[must_use]
    pub fn server_version(&self) -> &str {
        &self.0.server.version
    }
}

impl Inner {
    fn patience(&self) -> Duration {
        self.settings.connect_timeout.0
    }

    fn reading(&self) -> &Arc<Line> {
        self.reading.get_or_init(|| {
            let nothing = Box::new(|_live: Arc<Live>| {
                let done = std::future::ready(Ok(()));
                Box::pin(done) as antiphon_core::BoxFuture<'static, Result<(), String>>
            });
            Arc::new(Line::keep(self.access.clone(), "consuming", None, nothing))
        })
    }

    /// Adds what was declared to the list that operators look at. Messages do without it.
    async fn list(&self, topology: &Topology) {
        if self.listed.lock().contains(topology) {
            return;
        }
        let adding = async {
            let live = self.sending.live(self.patience()).await.map_err(|why| why.to_string())?;
            let added = registry::add(&live, &self.layout, topology).await;
            added.map_err(|fault| fault.text().to_owned())
        };
        let added = timeout(self.patience(), adding).await;
        match added.unwrap_or_else(|_| Err("no answer".to_owned())) {
            Ok(()) => self.listed.lock().push(topology.clone()),
            Err(why) => tracing::warn!(why, "operators do not see what was declared"),
        }
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        let Subscription { group, topics, ordered } = subscription;
        let line = self.reading();
        let live = line.live(self.patience()).await.map_err(|why| away(&group, &why))?;
        let queues = topology::queues_of(&live, &self.layout, &group, ordered).await?;
        let topic = topics.into_iter().next().unwrap_or_default();
        let held = Arc::new(Held::new(group.clone(), ordered, topic));
        let handover = self.settings.handover_timeout.0;
        let (sending, layout) = (Arc::clone(&self.sending), self.layout.clone());
        let joined = Member::join(Arc::clone(&held), live, sending, layout, queues, handover).await;
        let (member, done) =
            joined.map_err(|error| refused(&format!("group {group}"), &Fault::of(&error)))?;
        tokio::spawn(member.run(Arc::clone(line)));
        Ok(Box::new(Reader::new(held, done)))
    }
}

impl Broker for RabbitmqBroker {
    fn capabilities(&self) -> Capabilities {
        let settings = &self.0.settings;
        Capabilities {
            durability: settings.durability(),
            ordered: true,
            holds_keys: true,
            retry_delay_max: Duration::ZERO,
            publish_delay_max: Duration::ZERO,
            dead_letters: false,
            counts_attempts: false,
            replays: false,
            answers: true,
            message_bytes_max: settings.message_max.0,
        }
    }

    async fn declare(&self, topology: &Topology) -> Result<(), SubscribeError> {
        let inner = &self.0;
        // Not on the connection that publishes: a server that is short of memory reads nothing from
        // that one, and consumers would be kept from joining, of all.
        let live =
            inner.reading().live(inner.patience()).await.map_err(|why| away("declare", &why))?;
        topology::declare(&live, &inner.layout, &inner.declared, topology).await?;
        inner.declared.remember(topology);
        inner.list(topology).await;
        Ok(())
    }

    async fn publish(&self, batch: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        self.0.publisher.publish(batch).await
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Box<dyn Source>, SubscribeError> {
        self.0.subscribe(subscription).await
    }

    async fn inbox(&self) -> Result<Box<dyn Inbox>, SubscribeError> {
        let line = self.0.reading();
        let live = line.live(self.0.patience()).await.map_err(|why| away("inbox", &why))?;
        let opened = AnswerQueue::open(live).await;
        let inbox = opened.map_err(|error| refused("inbox", &Fault::of(&error)))?;
        Ok(Box::new(inbox))
    }

    async fn answer(&self, address: &str, message: Message) -> Result<(), PublishError> {
        self.0.publisher.answer(address, message).await
    }

    fn operate(&self) -> Option<Arc<dyn Operate>> {
        Some(Arc::new(Operator::new(
            self.0.access.clone(),
            self.0.settings.clone(),
            Arc::clone(&self.0.sending),
            self.0.layout.clone(),
        )))
    }
}

impl fmt::Debug for RabbitmqBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitmqBroker")
            .field("server", &self.0.server.version)
            .field("lanes", &self.0.layout.lanes)
            .finish_non_exhaustive()
    }
}
