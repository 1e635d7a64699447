//! Bringing the tables of a database up to date.
//!
//! The server commits each change of a table at once, so no transaction holds a migration together.
//! What holds it together instead:
//!
//! * Processes that start at once take turns under a named lock of the server, which ends with its
//!   connection. Who finds everything done takes no turn.
//! * A service's migration is run statement by statement, and how far it is is written down. A
//!   statement that only changes rows is committed together with that note. Before any other it is
//!   noted that it was begun: a statement that was begun, and then says that what it makes is there
//!   already, has taken effect before the process died.
//! * The framework's own steps may be run again from their beginning.
//!
//! A database that knows more than this program is refused before anything is changed.

mod split;

use std::collections::HashMap;
use std::time::Duration;

use antiphon_core::Timestamp;
use antiphon_outbox::Migration;
use sqlx::{AssertSqlSafe, MySqlConnection, Row};

use crate::error::{OpenError, Trouble, open_error, trouble};
use crate::location::Location;
use crate::schema::Component;
use crate::sql::{Sql, run, text};

/// How long to wait for the other processes that migrate.
const TURN: Duration = Duration::from_secs(300);

const BOOKKEEPING: &str = "
CREATE TABLE IF NOT EXISTS antiphon_schema (
    component VARBINARY(255) NOT NULL,
    version   BIGINT NOT NULL,
    PRIMARY KEY (component)
) ENGINE = InnoDB;
CREATE TABLE IF NOT EXISTS antiphon_migration (
    service  VARBINARY(255) NOT NULL,
    name     VARBINARY(255) NOT NULL,
    checksum BIGINT NOT NULL,
    done     BIGINT NOT NULL,
    begun    BIGINT NOT NULL,
    at       BIGINT NULL,
    PRIMARY KEY (service, name)
) ENGINE = InnoDB;
";

/// One connection that changes tables of one database.
pub(crate) struct Migrator<'a> {
    pub(crate) connection: &'a mut MySqlConnection,
    pub(crate) location: &'a Location,
}

/// How far a migration of a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    /// Of all that was run of it.
    checksum: i64,
    /// How many statements.
    done: usize,
    /// Whether the next one was begun.
    begun: bool,
    /// Whether it was the last.
    complete: bool,
}

impl Migrator<'_> {
    /// Makes what is missing of the framework's tables.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(crate) async fn make(&mut self, components: &[Component]) -> Result<(), OpenError> {
        if self.is_current(components).await? {
            return Ok(());
        }
        self.take_turn().await?;
        let made = self.make_in_turn(components).await;
        self.end_turn().await;
        made
    }

    /// Applies the migrations of `service` that are missing.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(crate) async fn migrate(
        &mut self,
        service: &str,
        migrations: &[Migration],
        now: Timestamp,
    ) -> Result<(), OpenError> {
        if self.pending(service, migrations).await?.is_empty() {
            return Ok(());
        }
        self.take_turn().await?;
        let done = self.migrate_in_turn(service, migrations, now).await;
        self.end_turn().await;
        done
    }

    async fn is_current(&mut self, components: &[Component]) -> Result<bool, OpenError> {
        match self.versions().await {
            Ok(versions) => Ok(self.missing(&versions, components)?.is_empty()),
            Err(error) if trouble(&error) == Trouble::NoTable => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn make_in_turn(&mut self, components: &[Component]) -> Result<(), OpenError> {
        let known = match self.versions().await {
            Ok(versions) => versions,
            Err(error) if trouble(&error) == Trouble::NoTable => HashMap::new(),
            Err(error) => return Err(self.failed(error)),
        };
        // All in one round trip, in the order in which a crash in between does no harm.
        let mut sql = Sql::new(BOOKKEEPING);
        for (component, applied) in self.missing(&known, components)? {
            for step in component.steps.iter().skip(applied) {
                sql.sql(step);
            }
            sql.sql("INSERT INTO antiphon_schema (component, version) VALUES (")
                .value(component.name)
                .sql(", ")
                .number(version(component))
                .sql(") ON DUPLICATE KEY UPDATE version = ")
                .number(version(component))
                .sql(";");
        }
        run(self.connection, sql).await.map(drop).map_err(|source| match trouble(&source) {
            Trouble::Refused | Trouble::Broken => self.failed(source),
            _ => self.migration_error("antiphon", "tables", 0, source),
        })
    }

    async fn versions(&mut self) -> Result<HashMap<String, i64>, sqlx::Error> {
        let rows = sqlx::raw_sql("SELECT component, version FROM antiphon_schema")
            .fetch_all(&mut *self.connection)
            .await?;
        rows.iter().map(|row| Ok((text(row, 0)?, row.try_get(1)?))).collect()
    }

    /// The components that lack steps, and how many each has.
    fn missing<'c>(
        &self,
        versions: &HashMap<String, i64>,
        components: &'c [Component],
    ) -> Result<Vec<(&'c Component, usize)>, OpenError> {
        let mut missing = Vec::new();
        for component in components {
            let found = versions.get(component.name).copied().unwrap_or(0);
            let known = version(component);
            if found > known {
                return Err(OpenError::Newer {
                    database: self.location.place().to_owned(),
                    component: format!("antiphon {}", component.name),
                    found: found.to_string(),
                    known: known.to_string(),
                });
            }
            if found < known {
                missing.push((component, usize::try_from(found).unwrap_or(0)));
            }
        }
        Ok(missing)
    }

    async fn migrate_in_turn(
        &mut self,
        service: &str,
        migrations: &[Migration],
        now: Timestamp,
    ) -> Result<(), OpenError> {
        for (migration, progress) in self.pending(service, migrations).await? {
            self.apply(service, migration, progress, now).await?;
        }
        Ok(())
    }

    /// The migrations that are not applied to their end, and how far each is.
    async fn pending<'m>(
        &mut self,
        service: &str,
        migrations: &'m [Migration],
    ) -> Result<Vec<(&'m Migration, Option<Progress>)>, OpenError> {
        let mut known = self.progress(service).await.map_err(|error| self.failed(error))?;
        let mut pending = Vec::new();
        for migration in migrations {
            let progress = known.remove(migration.name());
            match progress {
                None => pending.push((migration, progress)),
                Some(progress) if progress.checksum == checksum_of(migration, progress.done) => {
                    if !progress.complete {
                        pending.push((migration, Some(progress)));
                    }
                }
                Some(_) => {
                    return Err(OpenError::Changed {
                        database: self.location.place().to_owned(),
                        service: service.to_owned(),
                        name: migration.name().to_owned(),
                    });
                }
            }
        }
        if let Some(unknown) = known.into_keys().max() {
            return Err(OpenError::Newer {
                database: self.location.place().to_owned(),
                component: format!("migration of {service}"),
                found: unknown,
                known: migrations.last().map_or("none", Migration::name).to_owned(),
            });
        }
        Ok(pending)
    }

    async fn progress(&mut self, service: &str) -> Result<HashMap<String, Progress>, sqlx::Error> {
        let mut sql = Sql::new(
            "SELECT name, checksum, done, begun, at IS NOT NULL FROM antiphon_migration \
             WHERE service = ",
        );
        sql.value(service);
        let answers = run(self.connection, sql).await?;
        let rows = answers.into_iter().flat_map(|answer| answer.rows);
        rows.map(|row| {
            let progress = Progress {
                checksum: row.try_get(1)?,
                done: usize::try_from(row.try_get::<i64, _>(2)?).unwrap_or(0),
                begun: row.try_get::<i64, _>(3)? != 0,
                complete: row.try_get::<i64, _>(4)? != 0,
            };
            Ok((text(&row, 0)?, progress))
        })
        .collect()
    }

    /// Runs what is left of one migration.
    async fn apply(
        &mut self,
        service: &str,
        migration: &Migration,
        progress: Option<Progress>,
        now: Timestamp,
    ) -> Result<(), OpenError> {
        let statements = split::statements(migration.sql());
        let (done, mut was_begun) =
            progress.map_or((0, false), |progress| (progress.done, progress.begun));
        if progress.is_none() {
            let mut sql = Sql::new(
                "INSERT INTO antiphon_migration (service, name, checksum, done, begun) VALUES (",
            );
            sql.value(service).sql(", ").value(migration.name()).sql(", ");
            sql.number(checksum_of(migration, 0)).sql(", 0, 0)");
            self.note(sql).await?;
        }
        for (index, statement) in statements.iter().enumerate().skip(done) {
            self.note(self.note_of(service, migration, "begun = 1")).await?;
            let mut text = Sql::new("BEGIN;");
            text.sql(statement).sql("\n;");
            let done = format!(
                "done = {}, checksum = {}, begun = 0",
                index + 1,
                checksum_of(migration, index + 1)
            );
            text.append(&self.note_of(service, migration, &done)).sql("; COMMIT");
            match run(self.connection, text).await {
                Ok(_) => {}
                Err(error) if was_begun && trouble(&error) == Trouble::AlreadyDone => {
                    self.note(self.note_of(service, migration, &done)).await?;
                }
                Err(error) => {
                    // Whether it was begun is known: it has failed, and changed nothing.
                    let mut sql = Sql::new("ROLLBACK;");
                    sql.append(&self.note_of(service, migration, "begun = 0"));
                    if let Err(error) = self.note(sql).await {
                        tracing::warn!(%error, "the failure of a migration was not noted");
                    }
                    return Err(self.migration_error(service, migration.name(), index + 1, error));
                }
            }
            was_begun = false;
        }
        let all = statements.len();
        let ended = format!(
            "at = {}, done = {all}, checksum = {}, begun = 0",
            now.as_micros(),
            checksum_of(migration, all)
        );
        self.note(self.note_of(service, migration, &ended)).await
    }

    fn note_of(&self, service: &str, migration: &Migration, what: &str) -> Sql {
        let mut sql = Sql::new("UPDATE antiphon_migration SET ");
        sql.sql(what).sql(" WHERE service = ").value(service);
        sql.sql(" AND name = ").value(migration.name());
        sql
    }

    async fn note(&mut self, sql: Sql) -> Result<(), OpenError> {
        run(self.connection, sql).await.map(drop).map_err(|error| self.failed(error))
    }

    /// Waits until no other process changes tables of this database.
    async fn take_turn(&mut self) -> Result<(), OpenError> {
        let statement = format!("SELECT GET_LOCK('{}', {})", self.lock_name(), TURN.as_secs());
        let taken: Option<i64> = sqlx::raw_sql(AssertSqlSafe(statement))
            .fetch_one(&mut *self.connection)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(|error| self.failed(error))?;
        if taken == Some(1) {
            // Others wait behind a change that waits for a table: not for long.
            let patience = "SET SESSION lock_wait_timeout = 30, innodb_lock_wait_timeout = 30";
            return sqlx::raw_sql(patience)
                .execute(&mut *self.connection)
                .await
                .map(drop)
                .map_err(|error| self.failed(error));
        }
        Err(OpenError::Failed {
            database: self.location.place().to_owned(),
            source: "another process has been changing its tables for minutes; look what it waits \
                     for (SHOW PROCESSLIST)"
                .into(),
        })
    }

    async fn end_turn(&mut self) {
        let statement = format!("DO RELEASE_LOCK('{}')", self.lock_name());
        // Ends with the connection in any case.
        let _ = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *self.connection).await;
    }

    /// Names of locks are of the whole server and short: the database is in it as a hash.
    fn lock_name(&self) -> String {
        format!(
            "antiphon.migrate.{:016x}",
            fnv(self.location.database().as_bytes()).cast_unsigned()
        )
    }

    fn migration_error(
        &self,
        service: &str,
        name: &str,
        statement: usize,
        source: sqlx::Error,
    ) -> OpenError {
        OpenError::Migration {
            database: self.location.place().to_owned(),
            service: service.to_owned(),
            name: name.to_owned(),
            statement,
            source: source.into(),
        }
    }

    fn failed(&self, error: sqlx::Error) -> OpenError {
        open_error(self.location.place(), self.location.user(), error)
    }
}

fn version(component: &Component) -> i64 {
    i64::try_from(component.steps.len()).unwrap_or(i64::MAX)
}

/// Of the first `count` statements of a migration; of all of them, of the whole text.
fn checksum_of(migration: &Migration, count: usize) -> i64 {
    let statements = split::statements(migration.sql());
    if count >= statements.len() {
        return migration.checksum();
    }
    fnv(statements[..count].join("\0").as_bytes())
}

/// FNV-1a, 64 bits: whether a text is still what it was; no protection from intent.
fn fnv(bytes: &[u8]) -> i64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash.cast_signed()
}
