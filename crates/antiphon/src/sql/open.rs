//! Opening the database of a service where the settings say.

use antiphon_outbox::{CallStore, InboxStore, Migration, OutboxStore};
use antiphon_saga::{BarrierStore, SagaStore};
#[cfg(feature = "mysql")]
use antiphon_store_mysql::MysqlStore;
#[cfg(feature = "postgres")]
use antiphon_store_postgres::PostgresStore;
use antiphon_store_sqlite::SqliteStore;

use super::Sql;
use crate::error::{Error, Result};
use crate::settings::{DatabaseSettings, scheme};

/// A store that an application opens by its settings.
pub trait Engine: OutboxStore + InboxStore + CallStore + SagaStore + BarrierStore {
    /// Opens the database of `service`, with the framework's tables up to date.
    ///
    /// # Errors
    /// The settings name another engine, or one that this program was built without; the database
    /// cannot be reached or opened, or is of a newer version.
    fn open(
        settings: &DatabaseSettings,
        service: &str,
    ) -> impl Future<Output = Result<Self>> + Send;

    /// Applies those of the service's own migrations that are missing.
    ///
    /// # Errors
    /// A migration fails, was changed, or is of a newer version.
    fn migrate(
        &self,
        service: &str,
        migrations: &[Migration],
    ) -> impl Future<Output = Result<()>> + Send;
}

/// Which engine a location names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
    Mysql,
}

impl Kind {
    /// By the scheme of a URL; what has none is the path of a SQLite file.
    pub(crate) fn of(location: &str) -> Result<Self> {
        match scheme(location) {
            None | Some("sqlite") => Ok(Self::Sqlite),
            Some("postgres" | "postgresql") => Ok(Self::Postgres),
            Some("mysql" | "mariadb") => Ok(Self::Mysql),
            Some(other) => Err(Error::mistake(format!(
                "the database URL begins with `{other}:`; known are sqlite, postgres, mysql and \
                 mariadb"
            ))),
        }
    }
}

/// The refusal of an engine that this program does not contain.
#[cfg(not(all(feature = "postgres", feature = "mysql")))]
fn left_out(engine: &str) -> Error {
    Error::mistake(format!(
        "the settings name a {engine} database, and this program was built without it: build it \
         with the feature `{engine}` of the crate `antiphon`"
    ))
}

impl Engine for SqliteStore {
    async fn open(settings: &DatabaseSettings, service: &str) -> Result<Self> {
        let location = location_on(Kind::Sqlite, settings, service)?;
        Self::open(&location, settings.sqlite()).await.map_err(Error::mistake)
    }

    async fn migrate(&self, service: &str, migrations: &[Migration]) -> Result<()> {
        Self::migrate(self, service, migrations).await.map_err(Error::mistake)
    }
}

#[cfg(feature = "postgres")]
impl Engine for PostgresStore {
    async fn open(settings: &DatabaseSettings, service: &str) -> Result<Self> {
        let location = location_on(Kind::Postgres, settings, service)?;
        Self::open(&location, settings.postgres()).await.map_err(Error::mistake)
    }

    async fn migrate(&self, service: &str, migrations: &[Migration]) -> Result<()> {
        Self::migrate(self, service, migrations).await.map_err(Error::mistake)
    }
}

#[cfg(feature = "mysql")]
impl Engine for MysqlStore {
    async fn open(settings: &DatabaseSettings, service: &str) -> Result<Self> {
        let location = location_on(Kind::Mysql, settings, service)?;
        Self::open(&location, settings.mysql()).await.map_err(Error::mistake)
    }

    async fn migrate(&self, service: &str, migrations: &[Migration]) -> Result<()> {
        Self::migrate(self, service, migrations).await.map_err(Error::mistake)
    }
}

/// Where the rows of a service are, if that is on the engine that it is written for.
fn location_on(kind: Kind, settings: &DatabaseSettings, service: &str) -> Result<String> {
    let location = settings.location(service);
    if Kind::of(&location)? == kind {
        return Ok(location);
    }
    Err(Error::mistake(format!(
        "the service {service} is written for {kind:?}, and the settings put its database elsewhere"
    )))
}

impl Engine for Sql {
    async fn open(settings: &DatabaseSettings, service: &str) -> Result<Self> {
        match Kind::of(&settings.location(service))? {
            Kind::Sqlite => {
                <SqliteStore as Engine>::open(settings, service).await.map(Self::Sqlite)
            }
            #[cfg(feature = "postgres")]
            Kind::Postgres => {
                <PostgresStore as Engine>::open(settings, service).await.map(Self::Postgres)
            }
            #[cfg(not(feature = "postgres"))]
            Kind::Postgres => Err(left_out("postgres")),
            #[cfg(feature = "mysql")]
            Kind::Mysql => <MysqlStore as Engine>::open(settings, service).await.map(Self::Mysql),
            #[cfg(not(feature = "mysql"))]
            Kind::Mysql => Err(left_out("mysql")),
        }
    }

    async fn migrate(&self, service: &str, migrations: &[Migration]) -> Result<()> {
        match self {
            Self::Sqlite(store) => Engine::migrate(store, service, migrations).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => Engine::migrate(store, service, migrations).await,
            #[cfg(feature = "mysql")]
            Self::Mysql(store) => Engine::migrate(store, service, migrations).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_names_the_engine() {
        for (location, kind) in [
            ("data/orders.db", Kind::Sqlite),
            ("sqlite:data/orders.db", Kind::Sqlite),
            ("sqlite://data/orders.db", Kind::Sqlite),
            ("postgres://db/shop", Kind::Postgres),
            ("mariadb://db/shop", Kind::Mysql),
        ] {
            assert_eq!(Kind::of(location).unwrap(), kind, "{location}");
        }
        let error = Kind::of("oracle://db").unwrap_err().to_string();
        assert!(error.contains("oracle") && error.contains("postgres"), "{error}");
    }
}
