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
use crate::port::{Source, SubscribeError, Subscription, Topology};

/// The waits between attempts to join: there is no end to them, since a broker may be away for long.
const REJOIN: RetryPolicy =
    RetryPolicy::exponential(Duration::from_millis(100), Duration::from_secs(10));

/// A consumer at work. Made by [`Consumer::build`](crate::Consumer::build), run by the application.
pub struct Worker {
    pub(crate) name: String,
    pub(crate) broker: AnyBroker,
    pub(crate) topology: Topology,
    pub(crate) subscription: Subscription,
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) rules: Rules,
    pub(crate) metrics: GroupMetrics,
    pub(crate) health: Health,
}

impl Worker {
    /// Topics and group are declared each time: a broker that was restarted may have forgotten them.
    async fn join(&self) -> Result<Box<dyn Source>, SubscribeError> {
        self.broker.declare(&self.topology).await?;
        self.broker.subscribe(self.subscription.clone()).await
    }

    /// Waits before the next attempt to join; `None` when draining begins first.
    async fn pause(&self, failures: u32, why: &str, shutdown: &Shutdown) -> Option<()> {
        let Decision::RetryAfter(wait) = REJOIN.decide(failures, Retry::Outage, fastrand::f64())
        else {
            unreachable!("an outage never gives up")
        };
        self.health.unwell(&self.name, why);
        tracing::warn!(group = %self.subscription.group, why, ?wait, "not subscribed");
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
        let mut failures = 0;
        while let Some(joined) = shutdown.unless_draining(self.join()).await {
            let why = match joined {
                Ok(source) => {
                    self.health.well(&self.name);
                    let driver = Driver::new(
                        Arc::clone(&self.pipeline),
                        self.rules.clone(),
                        self.metrics.clone(),
                    );
                    match driver.run(source, &shutdown).await {
                        End::Drained => return Ok(()),
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
            if self.pause(failures, &why, &shutdown).await.is_none() {
                break;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
