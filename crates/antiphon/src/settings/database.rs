//! `[database]`: where services keep their rows.

use std::collections::BTreeMap;
use std::path::PathBuf;

use antiphon_config::HumanDuration;
use antiphon_store_sqlite::Synchronous;
use serde::{Deserialize, Serialize};

use super::Location;

/// When SQLite waits for the disk.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SyncSection {
    #[default]
    Normal,
    Full,
}

impl From<SyncSection> for Synchronous {
    fn from(section: SyncSection) -> Self {
        match section {
            SyncSection::Normal => Self::Normal,
            SyncSection::Full => Self::Full,
        }
    }
}

/// `[database]`: where services keep their rows. Read by the application; passed to
/// [`Engine::open`](crate::sql::Engine::open).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatabaseSettings {
    /// Where every service has its database: a URL in which `{service}` stands for its name,
    /// `postgres://shop@db/shop_{service}`. SQLite files in `dir` unless set.
    pub(crate) url: Option<Location>,
    /// Services whose database lies elsewhere.
    pub(crate) urls: BTreeMap<String, Location>,
    /// The services there are: for the `antiphon` command, where `url` does not tell.
    pub(crate) services: Vec<String>,
    /// The folder for SQLite; a service's file in it is `<service>.db`.
    pub(crate) dir: PathBuf,
    /// When SQLite waits for the disk.
    pub(crate) synchronous: SyncSection,
    /// How many connections the transactions of a service may have at once, on servers.
    pub(crate) connections_max: u32,
    /// The authority that signed the server's certificate, as a PEM file.
    pub(crate) ca_file: Option<PathBuf>,
    /// How long the inbox and the answers of idempotent calls are remembered.
    pub(crate) dedup_horizon: HumanDuration,
}

impl Default for DatabaseSettings {
    fn default() -> Self {
        Self {
            url: None,
            urls: BTreeMap::new(),
            services: Vec::new(),
            dir: "antiphon-data".into(),
            synchronous: SyncSection::default(),
            connections_max: 10,
            ca_file: None,
            dedup_horizon: HumanDuration::from_secs(7 * 24 * 3_600),
        }
    }
}

impl DatabaseSettings {
    /// Where the rows of `service` are: a URL, or the path of a SQLite file.
    pub(crate) fn location(&self, service: &str) -> String {
        match (self.urls.get(service), &self.url) {
            (Some(own), _) => own.of(service),
            (None, Some(all)) => all.of(service),
            (None, None) => self.dir.join(format!("{service}.db")).to_string_lossy().into_owned(),
        }
    }

    /// How PostgreSQL databases are opened.
    #[cfg(feature = "postgres")]
    pub(crate) fn postgres(&self) -> antiphon_store_postgres::Settings {
        antiphon_store_postgres::Settings {
            connections_max: self.connections_max,
            ca_file: self.ca_file.clone(),
            ..antiphon_store_postgres::Settings::default()
        }
    }

    /// How MySQL and MariaDB databases are opened.
    #[cfg(feature = "mysql")]
    pub(crate) fn mysql(&self) -> antiphon_store_mysql::Settings {
        antiphon_store_mysql::Settings {
            connections_max: self.connections_max,
            ca_file: self.ca_file.clone(),
            ..antiphon_store_mysql::Settings::default()
        }
    }

    /// How SQLite files are opened.
    pub(crate) fn sqlite(&self) -> antiphon_store_sqlite::Settings {
        antiphon_store_sqlite::Settings {
            synchronous: self.synchronous.into(),
            ..antiphon_store_sqlite::Settings::default()
        }
    }
}
