//! One instance: a service of the agent with a check that it must renew.

use antiphon_core::BoxFuture;
use antiphon_discovery::{Entry, Held, Instance, Lease, RegistryError};
use tokio::time::Instant;

use crate::agent::Agent;
use crate::names;
use crate::wire::Register;

/// The place of one instance.
pub(crate) struct Check {
    agent: Agent,
    service: String,
    /// Tells this entry from others with the same address.
    owner: String,
    /// What was written.
    id: Option<String>,
}

impl Check {
    pub(crate) fn new(agent: Agent, name: &str) -> Self {
        let owner = uuid::Uuid::new_v4().to_string();
        Self { agent, service: names::service(name), owner, id: None }
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
        let mut lease = Lease::granted(time, Instant::now());
        if let Err(error) = self.agent.register(&register).await {
            return error;
        }
        held.yes();
        lease.keep(|limit| self.agent.pass(&id, limit)).await
    }

    async fn withdraw(&mut self) -> Result<(), RegistryError> {
        let Some(id) = self.id.clone() else { return Ok(()) };
        if self.agent.owner(&id).await?.is_some_and(|owner| owner == self.owner) {
            self.agent.deregister(&id).await?;
        }
        self.id = None;
        Ok(())
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
