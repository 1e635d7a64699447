//! What a process stands on: telemetry, broker, databases.

use antiphon_broker_memory::MemoryBroker;
use antiphon_config::Settings;
use antiphon_core::{Clock, Health};
use antiphon_messaging::{AnyBroker, Messaging, Topology};
use antiphon_outbox::{Database, Housekeeping, Relay, Retention};
use antiphon_store_sqlite::{self as sqlite, Migration, SqliteBroker, SqliteStore};
use antiphon_telemetry::admin::Admin;
use antiphon_telemetry::{Service, Telemetry};

use super::App;
use crate::error::{Error, Result};
use crate::settings::{BrokerKind, BrokerSection, DatabaseSection, Sections};

pub(super) async fn load(
    name: &str,
    version: &str,
    settings: &Settings,
    sections: Sections,
) -> Result<App> {
    let service = Service::new(name, version);
    let telemetry = Telemetry::start(&service, &sections.telemetry).map_err(Error::mistake)?;
    let health = Health::new();
    let broker = open_broker(&sections.broker, &sections.database).await?;
    #[cfg(feature = "faults-mutant")]
    let broker = super::mutant::wrap(broker);
    let mut admin = Admin::new(telemetry.clone(), health.clone());
    admin.config(&settings.describe());
    Ok(App {
        name: name.to_owned(),
        version: version.to_owned(),
        admin,
        messaging: Messaging::new(broker, telemetry.clone(), health.clone()),
        services: Vec::new(),
        channels: std::collections::HashMap::new(),
        topology: Topology::default(),
        parts: Vec::new(),
        sections,
        telemetry,
        health,
    })
}

async fn open_broker(broker: &BrokerSection, databases: &DatabaseSection) -> Result<AnyBroker> {
    match broker.kind {
        BrokerKind::Memory => Ok(AnyBroker::new(MemoryBroker::new(Clock::system()))),
        BrokerKind::Sqlite => {
            let path = broker.path.clone().unwrap_or_else(|| databases.dir.join("broker.db"));
            let settings = sqlite::Settings {
                synchronous: broker.synchronous.into(),
                ..sqlite::Settings::default()
            };
            let opened = SqliteBroker::open(&path.to_string_lossy(), settings).await;
            Ok(AnyBroker::new(opened.map_err(Error::mistake)?))
        }
    }
}

impl App {
    /// The folder of the databases.
    #[must_use]
    pub fn data_dir(&self) -> &std::path::Path {
        &self.sections.database.dir
    }

    /// Opens the database of a service, brings its tables up to date, and relays what is emitted
    /// there.
    ///
    /// # Errors
    /// The file cannot be opened, is no database, or is of a newer version; a migration fails.
    pub async fn database(
        &mut self,
        service: &str,
        migrations: &[Migration],
    ) -> Result<Database<SqliteStore>> {
        let location = match self.sections.database.urls.get(service) {
            Some(url) => url.clone(),
            None => {
                let file = self.sections.database.dir.join(format!("{service}.db"));
                file.to_string_lossy().into_owned()
            }
        };
        let settings = sqlite::Settings {
            synchronous: self.sections.database.synchronous.into(),
            ..sqlite::Settings::default()
        };
        let store = SqliteStore::open(&location, settings).await.map_err(Error::mistake)?;
        store.migrate(service, migrations).await.map_err(Error::mistake)?;
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
