//! One instance: a key that goes with a lease.

use antiphon_core::BoxFuture;
use antiphon_discovery::{Entry, Held, Instance, Lease, Record, RegistryError};
use tokio::time::{Instant, sleep_until};

use crate::client::{Client, Failure, LeaseId};
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
    async fn write(&mut self, instance: &Instance) -> Result<(LeaseId, Lease), RegistryError> {
        let key = keys::instance(&self.service, &instance.address);
        let value = Record::from(instance).to_json();
        if let Some(held) = self.lease {
            match self.client.put(&key, &value, held.0).await {
                Ok(()) => return Ok(held),
                Err(Failure::NoLease) => self.lease = None,
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        let asked = Instant::now();
        let (id, time) = self.client.grant(self.client.settings().lease.0).await?;
        let held = (id, Lease::granted(time, asked));
        self.lease = Some(held);
        match self.client.put(&key, &value, id).await {
            Ok(()) => Ok(held),
            Err(Failure::Other(error)) => Err(error),
            Err(Failure::NoLease) => {
                self.lease = None;
                Err(RegistryError::lost("etcd forgot a lease that it had just granted"))
            }
        }
    }

    async fn keep(&mut self, instance: &Instance, held: &Held) -> RegistryError {
        let (id, mut lease) = match self.write(instance).await {
            Ok(written) => written,
            Err(error) => return error,
        };
        let key = keys::instance(&self.service, &instance.address);
        held.yes();
        loop {
            sleep_until(lease.renew_at()).await;
            let asked = Instant::now();
            match self.client.renew(id, lease.renewal_limit()).await {
                Ok(()) => {
                    lease.renewed(asked);
                    // A lease may outlive its key: somebody removed it, or another process that had
                    // the address took it along. A question that fails says nothing.
                    if matches!(self.client.has(&key, lease.renewal_limit()).await, Ok(false)) {
                        return RegistryError::lost(format!("{key} was removed"));
                    }
                }
                Err(Failure::NoLease) => {
                    self.lease = None;
                    return RegistryError::lost("etcd does not know the lease any more");
                }
                Err(Failure::Other(error)) if lease.is_over(Instant::now()) => return error,
                Err(Failure::Other(error)) => {
                    tracing::debug!(error = error.chain(), "a lease is not renewed yet");
                    lease.failed(Instant::now());
                }
            }
            if let Some((_, kept)) = &mut self.lease {
                *kept = lease;
            }
        }
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
