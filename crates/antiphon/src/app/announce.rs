//! Makes the process known in the registry while it answers calls.
//!
//! Registered only after everything is ready, and gone from the registry before the server begins to
//! drain: whoever looks for instances finds those that take calls.

use std::sync::Arc;

use antiphon_core::{BoxError, Component, Health, Shutdown, Stage};
use antiphon_discovery::{Instance, Registrar, Registration, RegistrationSettings};
use antiphon_telemetry::Telemetry;
use futures_util::future::join_all;

/// Registers an instance under the names of its services.
pub(super) struct Announcement {
    registrar: Arc<dyn Registrar>,
    services: Vec<&'static str>,
    instance: Instance,
    health: Health,
    telemetry: Telemetry,
}

impl Announcement {
    pub(super) fn new(
        registrar: Arc<dyn Registrar>,
        services: Vec<&'static str>,
        instance: Instance,
        health: Health,
        telemetry: Telemetry,
    ) -> Self {
        Self { registrar, services, instance, health, telemetry }
    }
}

impl Component for Announcement {
    fn name(&self) -> &str {
        "registration"
    }

    fn stage(&self) -> Stage {
        Stage::Announce
    }

    async fn run(self, shutdown: Shutdown) -> Result<(), BoxError> {
        let mut ready = self.health.watch();
        let waiting = ready.wait_for(|ready| *ready);
        // The channel ends with the process.
        if !matches!(shutdown.unless_draining(waiting).await, Some(Ok(_))) {
            return Ok(());
        }
        let register = |service: &&'static str| {
            let settings = RegistrationSettings::default();
            let (registrar, instance) = (&*self.registrar, self.instance.clone());
            Registration::start_recorded(registrar, service, instance, settings, &self.telemetry)
        };
        let registrations: Vec<_> = self.services.iter().map(register).collect();
        let all_held = join_all(registrations.iter().map(Registration::held));
        if shutdown.unless_draining(all_held).await.is_some() {
            tracing::info!(address = %self.instance.address, "registered");
            shutdown.draining().await;
        }
        for gone in join_all(registrations.iter().map(Registration::deregister)).await {
            if let Err(error) = gone {
                tracing::warn!(%error, "could not deregister; the registry will notice by itself");
            }
        }
        Ok(())
    }
}
