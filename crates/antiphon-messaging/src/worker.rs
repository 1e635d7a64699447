//! Keeps a consumer subscribed: joins the group, and joins anew whenever the source is lost.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::retry::Decision;
use antiphon_core::{BoxError, Component, Health, Retry, RetryPolicy, Shutdown, Stage};

use crate::any_broker::AnyBroker;
use crate::engine::driver::{Driver, End, Rules};
use crate::engine::pipeline::Pipeline;
use crate::metrics::GroupMetrics;
use crate::port::{Group, Source, Start, SubscribeError, Subscription, Topology};

/// The waits between attempts to join: there is no end to them, since a broker may be away for long.
const REJOIN: RetryPolicy =
    RetryPolicy::exponential(Duration::from_millis(100), Duration::from_secs(10));

/// A consumer at work. Made by [`Consumer::build`](crate::Consumer::build), run by the application.
pub struct Worker {
    pub(crate) name: String,
    pub(crate) post: Post,
    /// Where what the broker could not keep comes back from.
    pub(crate) parked: Option<Post>,
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) health: Health,
}

/// One subscription that a worker keeps.
pub(crate) struct Post {
    broker: AnyBroker,
    topology: Topology,
    subscription: Subscription,
    rules: Rules,
    metrics: GroupMetrics,
}

impl Post {
    pub(crate) fn new(
        broker: &AnyBroker,
        group: &str,
        topics: Vec<String>,
        start: Start,
        rules: Rules,
        metrics: GroupMetrics,
    ) -> Self {
        let ordered = rules.ordered;
        let declared = Group { name: group.to_owned(), topics: topics.clone(), start, ordered };
        Self {
            broker: broker.clone(),
            topology: Topology { topics: topics.clone(), groups: vec![declared] },
            subscription: Subscription { group: group.to_owned(), topics, ordered },
            rules,
            metrics,
        }
    }
}

impl Worker {
    /// The topics and groups that it declares when it joins. Declaring them before anything is
    /// published makes sure that a new group misses nothing.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.post.topology
    }

    /// Topics and groups are declared each time: a broker that was restarted may have forgotten them.
    async fn join(&self, post: &Post) -> Result<Box<dyn Source>, SubscribeError> {
        if let Some(parked) = &self.parked {
            // Before the first message that may have to go there.
            parked.broker.declare(&parked.topology).await?;
        }
        post.broker.declare(&post.topology).await?;
        post.broker.subscribe(post.subscription.clone()).await
    }

    /// Keeps one subscription until the drain is done.
    async fn man(&self, name: &str, post: &Post, shutdown: &Shutdown) -> Result<(), BoxError> {
        let mut failures = 0;
        while let Some(joined) = shutdown.unless_draining(self.join(post)).await {
            let why = match joined {
                Ok(source) => {
                    self.health.well(name);
                    let pipeline = Arc::clone(&self.pipeline);
                    let driver = Driver::new(pipeline, post.rules.clone(), post.metrics.clone());
                    match driver.run(source, shutdown).await {
                        End::Drained => break,
                        End::Lost { reason, worked } => {
                            if worked {
                                failures = 0;
                            }
                            reason
                        }
                    }
                }
                Err(error) if error.transient => error.to_string(),
                Err(error) => return Err(error.into()),
            };
            failures += 1;
            self.health.unwell(name, &*why);
            if self.pause(failures, &why, shutdown).await.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Waits before the next attempt to join; `None` when draining begins first.
    async fn pause(&self, failures: u32, why: &str, shutdown: &Shutdown) -> Option<()> {
        let wait = match REJOIN.decide(failures, Retry::Outage, fastrand::f64()) {
            Decision::RetryAfter(wait) => wait,
            // An outage never gives up.
            Decision::GiveUp => REJOIN.delay_max,
        };
        tracing::warn!(group = &*self.pipeline.group, why, ?wait, "not subscribed");
        shutdown.unless_draining(tokio::time::sleep(wait)).await
    }
}

impl Component for Worker {
    fn name(&self) -> &str {
        &self.name
    }

    fn stage(&self) -> Stage {
        Stage::Consume
    }

    async fn run(self, shutdown: Shutdown) -> Result<(), BoxError> {
        let own = self.man(&self.name, &self.post, &shutdown);
        match &self.parked {
            None => own.await,
            Some(post) => {
                let name = format!("{} (parked)", self.name);
                let parked = self.man(&name, post, &shutdown);
                futures_util::try_join!(own, parked).map(|_| ())
            }
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("name", &self.name).finish_non_exhaustive()
    }
}
