//! One instance: a key that goes with a lease.

use antiphon_core::BoxFuture;
use antiphon_discovery::{Entry, Held, Instance, Lease, Record, RegistryError};
use tokio::time::Instant;

use crate::client::{Client, LeaseId};
use crate::keys;

/// The place of one instance.
pub(crate) struct Key {
    client: Client,
    service: String,
    lease: Option<(LeaseId, Lease)>,
}

impl Key {
    pub(crate) fn new(client: Client, name: &str) -> Self {
        let service = keys::service(&client.settings().prefix, name);
        Self { client, service, lease: None }
    }

    /// Writes the key, with the lease that there is or a new one.
    async fn write(
        &mut self,
        key: &str,
        instance: &Instance,
    ) -> Result<(LeaseId, Lease), RegistryError> {
        let value = Record::from(instance).to_json();
        if let Some(held) = self.lease {
            match self.client.put(key, &value, held.0).await {
                Ok(()) => return Ok(held),
                Err(RegistryError::Lost { .. }) => self.lease = None,
                Err(error) => return Err(error),
            }
        }
        let asked = Instant::now();
        let (id, time) = self.client.grant(self.client.settings().lease.0).await?;
        // Before the key: whoever is stopped in the middle has to remove it all the same.
        let held = *self.lease.insert((id, Lease::granted(time, asked)));
        self.client.put(key, &value, id).await?;
        Ok(held)
    }

    async fn keep(&mut self, instance: &Instance, held: &Held) -> RegistryError {
        let key = keys::instance(&self.service, &instance.address);
        let written = match self.write(&key, instance).await {
            Ok(written) => written,
            Err(error) => return error,
        };
        held.yes();
        let (client, key) = (&self.client, &key);
        let (id, lease) = self.lease.insert(written);
        let id = *id;
        let renew = async |limit| {
            client.renew(id, limit).await?;
            // A lease may outlive its key: somebody removed it, or another process that had the
            // address took it along. A question that fails says nothing.
            match client.has(key, limit).await {
                Ok(false) => Err(RegistryError::lost(format!("{key} was removed"))),
                _ => Ok(()),
            }
        };
        lease.keep(renew).await
    }
}

impl Entry for Key {
    fn hold<'a>(
        &'a mut self,
        instance: &'a Instance,
        held: &'a Held,
    ) -> BoxFuture<'a, RegistryError> {
        Box::pin(self.keep(instance, held))
    }

    /// Ends the lease, and with it the key, unless the key goes with another lease by now.
    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            if let Some((id, _)) = self.lease {
                self.client.revoke(id).await?;
                self.lease = None;
            }
            Ok(())
        })
    }
}
