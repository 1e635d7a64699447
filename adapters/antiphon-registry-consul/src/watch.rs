//! Who is registered: queries that are answered when something changes.

use std::time::Duration;

use antiphon_core::BoxFuture;
use antiphon_discovery::{Answers, Instance, RegistryError};
use tokio::time::{Instant, sleep_until};

use crate::agent::Agent;
use crate::names;
use crate::wire::Healthy;

/// The least time between two queries of which the first was answered at once: an agent that answers
/// every query immediately must not be asked in a circle.
const QUERY_INTERVAL_MIN: Duration = Duration::from_millis(200);

/// The healthy instances of one service.
pub(crate) struct Passing {
    agent: Agent,
    service: String,
    /// What to wait for; 0 is answered at once.
    index: u64,
    /// What was answered last, ordered by id.
    last: Option<Vec<Instance>>,
    not_before: Instant,
}

impl Passing {
    pub(crate) fn new(agent: Agent, name: &str) -> Self {
        let service = names::service(name);
        Self { agent, service, index: 0, last: None, not_before: Instant::now() }
    }

    async fn answer(&mut self) -> Result<Vec<Instance>, RegistryError> {
        loop {
            sleep_until(self.not_before).await;
            let asked = self.index;
            let answer = self.agent.healthy(&self.service, asked).await;
            self.not_before = Instant::now() + QUERY_INTERVAL_MIN;
            let (healthy, next) = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    self.index = 0;
                    self.last = None;
                    return Err(error);
                }
            };
            self.index = next;
            let instances = self.read(healthy);
            // Queries are also answered when nothing has changed that matters.
            if self.last.as_ref() != Some(&instances) {
                self.last = Some(instances.clone());
                return Ok(instances);
            }
        }
    }

    fn read(&self, mut healthy: Vec<Healthy>) -> Vec<Instance> {
        healthy.sort_by(|a, b| a.service.id.cmp(&b.service.id));
        let mut instances = Vec::with_capacity(healthy.len());
        for one in healthy {
            // Consul knows no upper and lower case in names, and answers with all of them.
            if one.service.service != self.service {
                continue;
            }
            let id = one.service.id.clone();
            match one.instance() {
                Ok(instance) => instances.push(instance),
                Err(why) => {
                    tracing::error!(id, why, "a service that is no instance is left out");
                }
            }
        }
        instances
    }
}

impl Answers for Passing {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, RegistryError>> {
        Box::pin(self.answer())
    }

    fn look_again(&mut self) {
        self.index = 0;
        self.last = None;
        self.not_before = Instant::now();
    }
}
