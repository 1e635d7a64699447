//! What operators work with beside a running system: its databases and its broker, opened by the
//! same settings, without an application around them. The `antiphon` command is made of this.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use antiphon_config::{Settings, Sources};
use antiphon_messaging::{AnyBroker, DeadLetters};

use crate::carriers::{self, Carriers};
use crate::error::{Error, Result};
use crate::settings::Sections;
use crate::sql::{Database, Engine, Kind, Sql};

/// The settings of a system, and what they name.
#[derive(Clone, Debug)]
pub struct Operations {
    settings: Arc<Settings>,
    sections: Sections,
}

/// The broker of a system, and what keeps for it what it cannot keep itself.
#[derive(Clone, Debug)]
pub struct Brokers {
    /// What carries messages.
    pub broker: AnyBroker,
    /// What keeps dead letters and waiting messages for it, if it cannot.
    pub parking: Option<AnyBroker>,
}

impl Brokers {
    /// The dead letters of all groups, wherever they are kept.
    #[must_use]
    pub fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        match &self.parking {
            Some(parking) => parking.dead_letters(),
            None => self.broker.dead_letters(),
        }
    }
}

impl Operations {
    /// Reads the settings. Sections that are not the framework's are left alone.
    ///
    /// # Errors
    /// A setting cannot be read or does not fit.
    pub fn load(sources: &Sources) -> Result<Self> {
        let settings = Settings::load(sources)?;
        let sections = Sections::read(&settings)?;
        Ok(Self { settings: Arc::new(settings), sections })
    }

    /// Where the admin port of a process with these settings is.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.sections.admin.listen
    }

    /// The services whose databases the settings name: `database.services`, or the keys of
    /// `database.urls`, or the SQLite files in `database.dir`.
    ///
    /// # Errors
    /// The settings name none.
    pub fn services(&self) -> Result<Vec<String>> {
        let database = &self.sections.database;
        let mut services = database.services.clone();
        if services.is_empty() {
            services = database.urls.keys().cloned().collect();
        }
        if services.is_empty() && database.url.is_none() {
            services = files(&database.dir);
        }
        if services.is_empty() {
            return Err(Error::mistake(
                "the settings do not say which services there are: set database.services to their \
                 names, or name them with --service",
            ));
        }
        services.sort();
        Ok(services)
    }

    /// Opens the database of a service, which must be there.
    ///
    /// # Errors
    /// It is not there, cannot be reached or opened, or is of a newer version.
    pub async fn database(&self, service: &str) -> Result<Database> {
        let location = self.sections.database.location(service);
        if Kind::of(&location)? == Kind::Sqlite {
            let path = location.trim_start_matches("sqlite:").trim_start_matches("//");
            if !Path::new(path).is_file() {
                return Err(Error::mistake(format!(
                    "{path} is not there; has {service} run with these settings?"
                )));
            }
        }
        let store = Sql::open(&self.sections.database, service).await?;
        Ok(Database::new(service, store))
    }

    /// Opens the broker, and what keeps for it what it cannot keep.
    ///
    /// # Errors
    /// It cannot be reached, refuses, or was left out of this program.
    pub async fn brokers(&self) -> Result<Brokers> {
        let opened = carriers::open(&self.sections, &self.settings).await?;
        let Carriers { broker, parking } = opened;
        Ok(Brokers { broker, parking })
    }
}

/// The services that have a SQLite file in this folder.
fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".db").map(str::to_owned))
        .filter(|service| service != "broker")
        .collect()
}
