//! Describes how a group consumes; built into a [`Worker`] that does it.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Clock, Health, RetryPolicy};
use antiphon_telemetry::Telemetry;

use crate::any_broker::AnyBroker;
use crate::contract::{Command, Event, Payload};
use crate::engine::driver::Rules;
use crate::engine::ladder::Ladder;
use crate::engine::parking::topic_of;
use crate::engine::pipeline::Pipeline;
use crate::handler::{Handle, Handler, Middleware, Router, Typed};
use crate::metrics::Metrics;
use crate::port::{Capabilities, Start};
use crate::requests::{Answer, Answering};
use crate::worker::{Post, Worker};

/// The time a handler gets unless the consumer says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The runs that a group may have at a time unless the consumer says otherwise.
const CONCURRENCY: usize = 16;
/// How many messages are held for each that may run, so that the next is there when one is done.
const PREFETCH: usize = 4;

/// What consumers need of the process they run in.
#[derive(Clone, Debug)]
pub struct Messaging {
    /// Where messages come from.
    pub broker: AnyBroker,
    /// For a broker that cannot delay messages or keep dead letters: another one that can, and
    /// takes them instead.
    pub parking: Option<AnyBroker>,
    /// Where it is recorded what consumers do.
    pub telemetry: Telemetry,
    /// Where they say how they are, as `consumer <group>`.
    pub health: Health,
    /// Tells the time by which messages expire.
    pub clock: Clock,
}

impl Messaging {
    /// On this broker, with the machine's clock.
    #[must_use]
    pub fn new(broker: AnyBroker, telemetry: Telemetry, health: Health) -> Self {
        Self { broker, parking: None, telemetry, health, clock: Clock::system() }
    }
}

/// A group and what it does with its messages.
///
/// ```
/// # use antiphon_messaging::{Consumer, Event, Fail};
/// # fn consumer<OrderPlaced: Event>() -> Consumer {
/// Consumer::group("points.orders")
///     .on(async |placed: OrderPlaced| -> Result<(), Fail> { Ok(()) })
///     .ordered()
///     .concurrency(64)
/// # }
/// ```
#[must_use = "a consumer does nothing until it is built and run"]
pub struct Consumer {
    group: String,
    topics: BTreeSet<String>,
    handlers: Vec<Maker>,
    /// Outside in.
    middleware: Vec<Arc<dyn Middleware>>,
    ordered: bool,
    concurrency: usize,
    batch_max: usize,
    credits: Option<usize>,
    retry: RetryPolicy,
    timeout: Duration,
    start: Start,
}

/// Makes a handler, once it is known where messages go.
type Maker = Box<dyn FnOnce(&Messaging) -> Arc<dyn Handler> + Send>;

/// Why a consumer cannot work as described.
#[derive(Debug, thiserror::Error)]
#[error("consumer {group}: {problem}")]
pub struct ConsumerError {
    /// The group.
    pub group: String,
    /// What does not fit, and what to change.
    pub problem: String,
}

impl Consumer {
    /// A group without topics and handlers: 16 messages at a time in any order, 30 s for each, and
    /// the default retry policy.
    pub fn group(name: impl Into<String>) -> Self {
        Self {
            group: name.into(),
            topics: BTreeSet::new(),
            handlers: Vec::new(),
            middleware: Vec::new(),
            ordered: false,
            concurrency: CONCURRENCY,
            batch_max: 1,
            credits: None,
            retry: RetryPolicy::default(),
            timeout: TIMEOUT,
            start: Start::Earliest,
        }
    }

    /// Handles events of one type, from their topic.
    pub fn on<E: Event>(self, handle: impl Handle<E>) -> Self {
        self.topic(E::TOPIC).handler(Typed::<E, _>::new(handle))
    }

    /// Handles commands of one type, from their destination.
    pub fn command<C: Command>(self, handle: impl Handle<C>) -> Self {
        self.topic(C::DESTINATION).handler(Typed::<C, _>::new(handle))
    }

    /// Handles whatever kinds `handler` knows. Goes with [`Self::topic`].
    pub fn handler(mut self, handler: impl Handler) -> Self {
        self.handlers.push(Box::new(move |_| Arc::new(handler)));
        self
    }

    /// Answers questions of one type, from the command's destination. See
    /// [`Requests`](crate::Requests).
    pub fn answer<C: Command, R: Payload>(mut self, answerer: impl Answer<C, R>) -> Self {
        self.handlers.push(Box::new(move |messaging| {
            Arc::new(Answering {
                answerer,
                broker: messaging.broker.clone(),
                clock: messaging.clock.clone(),
                types: PhantomData,
            })
        }));
        self.topic(C::DESTINATION)
    }

    /// Reads this topic as well. Kinds that no handler knows are acknowledged.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topics.insert(topic.into());
        self
    }

    /// One message of a key at a time, in the order in which they were sent.
    pub fn ordered(mut self) -> Self {
        self.ordered = true;
        self
    }

    /// How many calls of the handler may run at a time.
    pub fn concurrency(mut self, runs_max: usize) -> Self {
        self.concurrency = runs_max;
        self
    }

    /// How many messages one call of [`Handler::handle_batch`] may get, when so many are ready. One
    /// unless set.
    pub fn batch(mut self, messages_max: usize) -> Self {
        self.batch_max = messages_max;
        self
    }

    /// How many messages may be held that are not settled. Four times what may run unless set.
    pub fn credits(mut self, messages_max: usize) -> Self {
        self.credits = Some(messages_max);
        self
    }

    /// How often and how fast to try again.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// How long one call of the handler may take; then it is dropped, and counts as failed.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Puts something around the handlers, inside what was added before.
    pub fn middleware(mut self, middleware: impl Middleware) -> Self {
        self.middleware.push(Arc::new(middleware));
        self
    }

    /// Where the group begins when it is new.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Makes the component that consumes.
    ///
    /// # Errors
    /// The description is not complete, or the broker cannot do what it asks.
    pub fn build(self, messaging: &Messaging) -> Result<Worker, ConsumerError> {
        let capabilities = messaging.broker.capabilities();
        let parking = messaging.parking.clone();
        if let Err(problem) = self.check(&capabilities, parking.as_ref()) {
            return Err(ConsumerError { group: self.group, problem });
        }
        let metrics = Metrics::of(&messaging.telemetry);
        let parked = parking.as_ref().map(|broker| {
            let rules = self.rules(&broker.capabilities(), false, None);
            let topics = vec![topic_of(&self.group)];
            let metrics = metrics.group(&format!("{} (parked)", self.group));
            Post::new(broker, &self.group, topics, Start::Earliest, rules, metrics)
        });
        let rules = self.rules(&capabilities, self.ordered, parking);
        let topics = self.topics.into_iter().collect();
        let metrics = metrics.group(&self.group);
        let post = Post::new(&messaging.broker, &self.group, topics, self.start, rules, metrics);
        let handlers = self.handlers.into_iter().map(|make| make(messaging)).collect();
        let pipeline = Pipeline {
            group: self.group.as_str().into(),
            handler: stack(handlers, &self.middleware),
            timeout: self.timeout,
            telemetry: messaging.telemetry.clone(),
            clock: messaging.clock.clone(),
        };
        Ok(Worker {
            name: format!("consumer {}", self.group),
            post,
            parked,
            pipeline: Arc::new(pipeline),
            health: messaging.health.clone(),
        })
    }

    fn rules(
        &self,
        capabilities: &Capabilities,
        ordered: bool,
        parking: Option<AnyBroker>,
    ) -> Rules {
        Rules {
            ordered,
            concurrency: self.concurrency,
            batch_max: self.batch_max,
            credits: self.credits.unwrap_or(self.concurrency * self.batch_max * PREFETCH),
            ladder: Ladder {
                policy: self.retry,
                broker_max: broker_delay_max(capabilities, ordered),
                // Elsewhere a message would no longer hold back its key.
                parking: parking.is_some() && !ordered,
            },
            parking,
            buries: capabilities.dead_letters,
        }
    }

    fn check(
        &self,
        capabilities: &Capabilities,
        parking: Option<&AnyBroker>,
    ) -> Result<(), String> {
        if self.handlers.is_empty() {
            return Err("it has no handler; add one with `on`, `command` or `handler`".into());
        }
        if self.topics.is_empty() {
            return Err("it reads no topic; add one with `topic`".into());
        }
        if self.concurrency == 0 || self.batch_max == 0 || self.credits == Some(0) {
            return Err("concurrency, batch and credits must be at least 1".into());
        }
        if self.ordered && !capabilities.ordered {
            return Err("the broker does not keep the order of keys; drop `ordered` or use \
                        another broker"
                .into());
        }
        let keeps = |capabilities: &Capabilities| {
            capabilities.dead_letters
                && capabilities.counts_attempts
                && !capabilities.retry_delay_max.is_zero()
                && !capabilities.publish_delay_max.is_zero()
        };
        match parking {
            Some(parking) if !keeps(&parking.capabilities()) => Err(
                "the parking broker must delay messages, count attempts and keep dead letters; \
                     park at another broker"
                    .into(),
            ),
            None if !capabilities.dead_letters => {
                Err("the broker keeps no dead letters; set a parking broker that does".into())
            }
            _ => Ok(()),
        }
    }
}

/// How long the broker may hold a message, so that neither the order of its key nor the number of
/// its attempts is lost.
fn broker_delay_max(capabilities: &Capabilities, ordered: bool) -> Duration {
    if (ordered && !capabilities.holds_keys) || !capabilities.counts_attempts {
        Duration::ZERO
    } else {
        capabilities.retry_delay_max
    }
}

/// The handlers as one, with the middleware around it.
fn stack(
    mut handlers: Vec<Arc<dyn Handler>>,
    middleware: &[Arc<dyn Middleware>],
) -> Arc<dyn Handler> {
    let innermost = match (handlers.pop(), handlers.is_empty()) {
        (Some(only), true) => only,
        (Some(last), false) => {
            handlers.push(last);
            Arc::new(Router(handlers))
        }
        (None, _) => Arc::new(Router(Vec::new())),
    };
    middleware.iter().rev().fold(innermost, |inner, outer| outer.wrap(inner))
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("group", &self.group)
            .field("topics", &self.topics)
            .field("ordered", &self.ordered)
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}
