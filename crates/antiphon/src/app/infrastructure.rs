//! What a process stands on: telemetry, broker, databases.

use antiphon_config::{Settings, Sources};
use antiphon_core::Health;
use antiphon_messaging::{Messaging, Topology};
use antiphon_outbox::{Database, Housekeeping, Migration, Relay, Retention};
use antiphon_rpc::client::targets;
use antiphon_telemetry::admin::{Admin, Page};
use antiphon_telemetry::{Service, Telemetry};

use super::App;
use super::cache::Caches;
use super::rates;
use crate::carriers::{self, Carriers};
use crate::error::{Error, Result};
use crate::registries::Known;
use crate::settings::Sections;
use crate::sql::Engine;

pub(super) async fn load(
    name: &str,
    version: &str,
    sources: &Sources,
    settings: &Settings,
    sections: Sections,
) -> Result<App> {
    let service = Service::new(name, version);
    let telemetry = Telemetry::start(&service, &sections.telemetry).map_err(Error::mistake)?;
    let health = Health::new();
    let registries = Known::open(&sections.registries, settings)?;
    let caches = Caches::open(&sections.caches, settings)?;
    let rate_sharing = rates::sharing(&sections.server, settings)?;
    let Carriers { broker, parking } = carriers::open(&sections, settings).await?;
    #[cfg(feature = "faults-mutant")]
    let broker = super::mutant::wrap(broker);
    let mut admin = Admin::new(telemetry.clone(), health.clone());
    admin.config(&settings.describe());
    let calls = telemetry.clone();
    admin.page(
        "/debug/targets",
        "What this process calls, and how its instances stand",
        move |_| std::future::ready(Page::json(&targets(&calls))),
    );
    Ok(App {
        name: name.to_owned(),
        version: version.to_owned(),
        admin,
        messaging: Messaging {
            parking,
            ..Messaging::new(broker, telemetry.clone(), health.clone())
        },
        discovery: registries.discovery(&sections.discovery, &telemetry),
        registries,
        caches,
        rate_sharing,
        services: Vec::new(),
        channels: std::collections::HashMap::new(),
        remotes: parking_lot::Mutex::default(),
        sources: sources.clone(),
        topology: Topology::default(),
        parts: Vec::new(),
        sections,
        telemetry,
        health,
    })
}

impl App {
    /// The folder of the databases.
    #[must_use]
    pub fn data_dir(&self) -> &std::path::Path {
        &self.sections.database.dir
    }

    /// Opens the database of a service where the settings say, brings its tables up to date, and
    /// relays what is emitted there.
    ///
    /// The type says which engines will do: [`Sql`](crate::sql::Sql) is any of them, others one.
    ///
    /// # Errors
    /// The database cannot be reached or opened, is none of this engine, or is of a newer version; a
    /// migration fails.
    pub async fn database<S: Engine>(
        &mut self,
        service: &str,
        migrations: &[Migration],
    ) -> Result<Database<S>> {
        let store = S::open(&self.sections.database, service).await?;
        store.migrate(service, migrations).await?;
        let database = Database::new(service, store);
        let broker = self.messaging.broker.clone();
        self.component(Relay::new(&database, broker, &self.telemetry));
        let horizon = self.sections.database.dedup_horizon.0;
        let retention = Retention { inbox: horizon, calls: horizon };
        let housekeeping = Housekeeping::new(&database, &self.telemetry);
        self.component(housekeeping.with_retention(retention));
        Ok(database)
    }
}
