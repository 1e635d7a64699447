//! A process: its settings, what it answers, what it consumes, and its life.

mod announce;
mod cache;
mod consume;
mod infrastructure;
#[cfg(feature = "faults-mutant")]
mod mutant;
mod rates;
mod reload;
mod signals;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use antiphon_config::{Settings, Sources};
use antiphon_core::{Component, Health};
use antiphon_messaging::{Messaging, Requests, Topology};
use antiphon_rpc::client::{Channel, Client, Discovery, Hosted};
use antiphon_rpc::server::{RateSharing, Server, ServerSettings};
use antiphon_rpc::{Service, ServiceInfo};
use antiphon_telemetry::Telemetry;
use antiphon_telemetry::admin::Admin;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::lifecycle::{self, End, Part};
use crate::registries::Known;
use crate::settings::Sections;

use announce::Announcement;
pub use consume::Consume;
use reload::Reload;

/// How long logs and spans that are not written yet may take at the very end.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// A process in the making: what is added here runs when [`App::run`] is called.
///
/// Everything is bound and checked before anything starts: a port in use, an unknown setting or a
/// database of a newer version end the process with exit code 2 and one line, with nothing half-done.
pub struct App {
    name: String,
    version: String,
    sections: Sections,
    telemetry: Telemetry,
    health: Health,
    messaging: Messaging,
    discovery: Discovery,
    registries: Known,
    caches: cache::Caches,
    /// Where the server's rate limits are shared, if they are.
    rate_sharing: Option<RateSharing>,
    admin: Admin,
    services: Vec<Arc<dyn Service>>,
    channels: HashMap<&'static str, Channel>,
    /// The channels over the network, by the services that they call.
    remotes: Mutex<Vec<(&'static ServiceInfo, Channel)>>,
    sources: Sources,
    topology: Topology,
    parts: Vec<Part>,
}

/// What runs where, once everything is bound.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Where calls are answered; `None` when the process answers none.
    pub server: Option<SocketAddr>,
    /// Where operators look.
    pub admin: SocketAddr,
    /// The full names of the services that are answered.
    pub services: Vec<&'static str>,
}

impl App {
    /// Reads the settings, starts telemetry, and opens the broker.
    ///
    /// # Errors
    /// A setting that cannot be read or does not fit, a broker that cannot be opened.
    pub async fn load(name: &str, version: &str, sources: &Sources) -> Result<Self> {
        Self::load_with(name, version, sources, |_| Ok(())).await.map(|(app, ())| app)
    }

    /// The same, for programs with sections of their own: `read` reads them. Everything else that
    /// stands in the settings must be known, before anything is opened.
    ///
    /// # Errors
    /// What `read` returns, or as [`App::load`].
    pub async fn load_with<T>(
        name: &str,
        version: &str,
        sources: &Sources,
        read: impl FnOnce(&Settings) -> Result<T, antiphon_config::Error>,
    ) -> Result<(Self, T)> {
        let settings = Settings::load(sources)?;
        let sections = Sections::read(&settings)?;
        let own = read(&settings)?;
        settings.finish()?;
        Ok((infrastructure::load(name, version, sources, &settings, sections).await?, own))
    }

    /// Answers calls to a service, over every protocol and inside the process.
    pub fn serve(&mut self, service: impl Hosted) -> &mut Self {
        let service = Arc::new(service);
        self.channels.insert(service.info().name, service.channel());
        self.services.push(service);
        self
    }

    /// A client of a service: inside the process when the service is served here (and was added
    /// before) and the settings name no target, else over the network to the target in
    /// `[clients."package.Service"]`, or, without one, to those whom the registry of `[discovery]`
    /// knows by the service's name.
    ///
    /// # Errors
    /// The service is not served here and nobody says where it is; a target that is none or that is in
    /// a registry that the process does not have; settings that make no sense, or of methods that the
    /// service does not have.
    pub fn client<C: Client>(&self) -> Result<C> {
        let section = self.sections.clients.of(C::SERVICE);
        if let (Some(local), None) = (self.channels.get(C::SERVICE), &section.target) {
            return Ok(C::over(local.clone()));
        }
        let target = section.target(C::SERVICE, &self.sections.discovery);
        let target = target.map_err(Error::mistake)?;
        self.sections.clients.check_methods(C::info()).map_err(Error::mistake)?;
        let settings = section.settings(C::SERVICE).map_err(Error::mistake)?;
        let channel =
            Channel::to_service(&target, C::info(), settings, &self.discovery, &self.telemetry)?;
        self.remotes.lock().push((C::info(), channel.clone()));
        Ok(C::over(channel))
    }

    /// Consumes messages.
    ///
    /// # Errors
    /// The description is not complete, or the broker cannot do what it asks.
    pub fn consume(&mut self, consumer: impl Consume) -> Result<&mut Self> {
        let (worker, topology) = consumer.build(&self.messaging)?;
        self.topology.topics.extend(topology.topics);
        self.topology.groups.extend(topology.groups);
        Ok(self.component(worker))
    }

    /// Asks questions over the broker, as `service`; takes their answers in while the process runs.
    ///
    /// # Errors
    /// The broker carries no answers.
    pub fn requests(&mut self, service: &str) -> Result<Requests> {
        let (requests, desk) = Requests::new(&self.messaging, service)?;
        self.component(desk);
        Ok(requests)
    }

    /// Runs a component with the process.
    pub fn component(&mut self, component: impl Component) -> &mut Self {
        self.parts.push(Part::new(component));
        self
    }

    /// Where the process records what it does.
    #[must_use]
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// What is said when somebody asks how the process is.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// What consumers need of the process.
    #[must_use]
    pub fn messaging(&self) -> &Messaging {
        &self.messaging
    }

    /// The admin port, for pages of the user's own.
    pub fn admin(&mut self) -> &mut Admin {
        &mut self.admin
    }

    /// Runs until SIGINT or SIGTERM, then drains: calls, consumers, relays, telemetry, in this order.
    /// A second signal cuts.
    ///
    /// `ready` is called once everything is bound and started.
    ///
    /// # Errors
    /// A port in use; a component that failed.
    pub async fn run(self, ready: impl FnOnce(&Bound)) -> Result<()> {
        let signals = signals::Signals::new()?;
        let within = self.sections.shutdown.within.0;
        let (telemetry, health) = (self.telemetry.clone(), self.health.clone());
        let (parts, bound) = Box::pin(self.bind()).await?;
        ready(&bound);
        let end = lifecycle::run(parts, &health, signals.first(), signals.second(), within).await;
        telemetry.flush(FLUSH_WITHIN).await;
        match end? {
            End::Drained => Ok(()),
            End::Cut(left) => Err(format!("cut before it was drained: {}", left.join(", ")).into()),
        }
    }

    /// What makes the process known in the registry, if there is one and it shall.
    fn announcement(&self, bound: &Bound) -> Result<Option<Announcement>> {
        let (Some(registry), Some(listen)) = (&self.sections.discovery.registry, bound.server)
        else {
            return Ok(None);
        };
        if !self.sections.instance.register {
            return Ok(None);
        }
        let Some(registrar) = self.registries.registrar(registry)? else { return Ok(None) };
        let instance = self.sections.instance.instance(listen).map_err(Error::mistake)?;
        let services = bound.services.clone();
        let (health, telemetry) = (self.health.clone(), self.telemetry.clone());
        Ok(Some(Announcement::new(registrar, services, instance, health, telemetry)))
    }

    /// What takes over changed settings of calls, where there are calls and a file that may change.
    fn reload(&self) -> Option<Reload> {
        let remotes = std::mem::take(&mut *self.remotes.lock());
        let path = self.sources.path().filter(|_| !remotes.is_empty())?;
        Some(Reload::new(self.sources.clone(), path, remotes, self.discovery.clone()))
    }

    /// Opens both ports and declares topics and groups. Nothing runs yet.
    async fn bind(mut self) -> Result<(Vec<Part>, Bound)> {
        let mut bound = Bound {
            server: None,
            admin: self.sections.admin.listen,
            services: self.services.iter().map(|service| service.info().name).collect(),
        };
        if !self.services.is_empty() {
            let mut settings = ServerSettings::from(&self.sections.server);
            settings.rest.title.clone_from(&self.name);
            settings.rest.version.clone_from(&self.version);
            settings.rate_sharing = self.rate_sharing.take();
            let server = Server::bind(
                std::mem::take(&mut self.services),
                settings,
                &self.telemetry,
                &self.health,
            )
            .await
            .map_err(Error::mistake)?;
            bound.server = Some(server.address());
            if let Some(announcement) = self.announcement(&bound)? {
                self.component(announcement);
            }
            self.parts.push(Part::new(server));
        }
        if let Some(reload) = self.reload() {
            self.component(reload);
        }
        let admin = self.admin.bind(&self.sections.admin).await.map_err(Error::mistake)?;
        bound.admin = admin.address();
        self.parts.push(Part::new(admin));
        // Before any relay publishes: a group gets what is published after it was declared.
        self.messaging.broker.declare(&self.topology).await?;
        Ok((self.parts, bound))
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("parts", &self.parts).finish_non_exhaustive()
    }
}
