//! One instance: a service of the agent with a check that it must renew.

use antiphon_core::BoxFuture;
use antiphon_discovery::{Entry, Held, Instance, Lease, RegistryError};
use tokio::time::{Duration, Instant, sleep};

use crate::agent::Agent;
use crate::names;
use crate::wire::Register;

/// The time between two looks for what may still be on its way to the agent.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The place of one instance.
pub(crate) struct Check {
    agent: Agent,
    service: String,
    /// Tells this entry from others with the same address.
    owner: String,
    /// What was written.
    id: Option<String>,
    /// When it was sent, where the agent has not answered: it may do it all the same, later.
    unanswered: Option<Instant>,
}

impl Check {
    pub(crate) fn new(agent: Agent, name: &str) -> Self {
        let owner = uuid::Uuid::new_v4().to_string();
        Self { agent, service: names::service(name), owner, id: None, unanswered: None }
    }

    async fn keep(&mut self, instance: &Instance, held: &Held) -> RegistryError {
        let settings = self.agent.settings();
        let (time, after) = (settings.lease.0, settings.deregister_after.0);
        let id = names::instance(&self.service, &instance.address);
        let register = Register::new(&self.service, &id, &self.owner, instance, time, after);
        let register = match register {
            Ok(register) => register,
            Err(error) => return error,
        };
        self.id = Some(id.clone());
        let asked = Instant::now();
        self.unanswered = Some(asked);
        let registered = self.agent.register(&register).await;
        if registered.as_ref().map_or_else(RegistryError::is_refused, |()| true) {
            self.unanswered = None;
        }
        if let Err(error) = registered {
            return error;
        }
        let mut lease = Lease::granted(time, asked);
        held.yes();
        lease.keep(|limit| self.agent.pass(&id, limit)).await
    }

    async fn withdraw(&mut self) -> Result<(), RegistryError> {
        let Some(id) = self.id.clone() else { return Ok(()) };
        let mut owner = self.agent.owner(&id).await?;
        while owner.is_none() && self.may_come() {
            sleep(LOOK_INTERVAL).await;
            owner = self.agent.owner(&id).await?;
        }
        if owner.is_some_and(|owner| owner == self.owner) {
            self.agent.deregister(&id).await?;
        }
        self.id = None;
        Ok(())
    }

    /// Whether the agent may still register what it has not answered.
    fn may_come(&self) -> bool {
        let limit = self.agent.settings().request_timeout.0;
        self.unanswered.is_some_and(|sent| sent.elapsed() < limit)
    }
}

impl Entry for Check {
    fn hold<'a>(
        &'a mut self,
        instance: &'a Instance,
        held: &'a Held,
    ) -> BoxFuture<'a, RegistryError> {
        Box::pin(self.keep(instance, held))
    }

    /// Removes the service if it is still ours. Consul cannot do both in one step: a process that takes
    /// the address in between is removed, notices it at its next renewal, and registers again.
    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(self.withdraw())
    }
}
