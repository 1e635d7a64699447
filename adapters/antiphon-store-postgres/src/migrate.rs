//! Bringing the tables of a database up to date.
//!
//! All processes that open a database may try at once: the check is a plain read, and what is
//! missing is applied in one transaction under an advisory lock, after checking again. A database
//! that knows more than this program is refused before anything is changed.

use std::collections::HashMap;

use antiphon_core::Timestamp;
use antiphon_outbox::Migration;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::error::{OpenError, State, open_error, state};
use crate::schema::Component;

/// The advisory lock of whoever changes tables: "antiphon" as a number.
const LOCK: i64 = 0x616e_7469_7068_6f6e;

const BOOKKEEPING: &str = "
CREATE TABLE IF NOT EXISTS antiphon_schema (
    component text PRIMARY KEY,
    version   bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS antiphon_migration (
    service  text NOT NULL,
    name     text NOT NULL,
    checksum bigint NOT NULL,
    at       bigint NOT NULL,
    PRIMARY KEY (service, name)
);
";

/// Waits until no other process changes tables; the right lasts until the end of the open
/// transaction. From here on statements may take as long as they need.
pub(crate) async fn lock(connection: &mut PgConnection, database: &str) -> Result<(), OpenError> {
    sqlx::raw_sql("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '10min'")
        .execute(&mut *connection)
        .await
        .map_err(failed(database))?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .execute(&mut *connection)
        .await
        .map_err(failed(database))?;
    // Others wait behind a change that waits for a table: not for long.
    sqlx::raw_sql("SET LOCAL lock_timeout = '30s'")
        .execute(connection)
        .await
        .map(drop)
        .map_err(failed(database))
}

/// Whether the framework's tables are all there.
pub(crate) async fn is_current(
    connection: &mut PgConnection,
    database: &str,
    components: &[Component],
) -> Result<bool, OpenError> {
    let known = has_bookkeeping(connection).await.map_err(failed(database))?;
    Ok(known && missing(connection, database, components).await?.is_empty())
}

/// Makes what is missing of the framework's tables, in the open transaction, under the lock.
pub(crate) async fn apply(
    connection: &mut PgConnection,
    database: &str,
    components: &[Component],
) -> Result<(), OpenError> {
    // Asked first, for a table that is there already would be announced with a notice.
    if !has_bookkeeping(connection).await.map_err(failed(database))? {
        sqlx::raw_sql(BOOKKEEPING).execute(&mut *connection).await.map_err(failed(database))?;
    }
    for (component, applied) in missing(connection, database, components).await? {
        for (step, sql) in component.steps.iter().enumerate().skip(applied) {
            sqlx::raw_sql(*sql).execute(&mut *connection).await.map_err(|source| {
                let name = format!("{}-{}", component.name, step + 1);
                migration_error(database, "antiphon", &name, source)
            })?;
        }
        sqlx::query(
            "INSERT INTO antiphon_schema (component, version) VALUES ($1, $2)
             ON CONFLICT (component) DO UPDATE SET version = excluded.version",
        )
        .bind(component.name)
        .bind(version(component))
        .execute(&mut *connection)
        .await
        .map_err(failed(database))?;
    }
    Ok(())
}

/// The components that lack steps, and how many each has.
async fn missing<'a>(
    connection: &mut PgConnection,
    database: &str,
    components: &'a [Component],
) -> Result<Vec<(&'a Component, usize)>, OpenError> {
    let versions: HashMap<String, i64> =
        sqlx::query("SELECT component, version FROM antiphon_schema")
            .fetch_all(connection)
            .await
            .map_err(failed(database))?
            .into_iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
    let mut missing = Vec::new();
    for component in components {
        let found = versions.get(component.name).copied().unwrap_or(0);
        let known = version(component);
        if found > known {
            return Err(OpenError::Newer {
                database: database.to_owned(),
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

fn version(component: &Component) -> i64 {
    i64::try_from(component.steps.len()).unwrap_or(i64::MAX)
}

async fn has_bookkeeping(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT to_regclass('antiphon_schema') IS NOT NULL")
        .fetch_one(connection)
        .await
}

/// The migrations of `service` that are not applied yet.
pub(crate) async fn pending<'a>(
    connection: &mut PgConnection,
    database: &str,
    service: &str,
    migrations: &'a [Migration],
) -> Result<Vec<&'a Migration>, OpenError> {
    let mut applied: HashMap<String, i64> =
        sqlx::query("SELECT name, checksum FROM antiphon_migration WHERE service = $1")
            .bind(service)
            .fetch_all(connection)
            .await
            .map_err(failed(database))?
            .into_iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
    let mut pending = Vec::new();
    for migration in migrations {
        match applied.remove(migration.name()) {
            None => pending.push(migration),
            Some(checksum) if checksum == migration.checksum() => {}
            Some(_) => {
                return Err(OpenError::Changed {
                    database: database.to_owned(),
                    service: service.to_owned(),
                    name: migration.name().to_owned(),
                });
            }
        }
    }
    if let Some(unknown) = applied.into_keys().max() {
        return Err(OpenError::Newer {
            database: database.to_owned(),
            component: format!("migration of {service}"),
            found: unknown,
            known: migrations.last().map_or("none", Migration::name).to_owned(),
        });
    }
    Ok(pending)
}

/// Applies one migration in the open transaction, under the lock.
pub(crate) async fn apply_one(
    connection: &mut PgConnection,
    database: &str,
    service: &str,
    migration: &Migration,
    now: Timestamp,
) -> Result<(), OpenError> {
    sqlx::raw_sql(AssertSqlSafe(migration.sql()))
        .execute(&mut *connection)
        .await
        .map_err(|source| migration_error(database, service, migration.name(), source))?;
    sqlx::query(
        "INSERT INTO antiphon_migration (service, name, checksum, at) VALUES ($1, $2, $3, $4)",
    )
    .bind(service)
    .bind(migration.name())
    .bind(migration.checksum())
    .bind(now.as_micros())
    .execute(connection)
    .await
    .map(drop)
    .map_err(failed(database))
}

fn migration_error(database: &str, service: &str, name: &str, source: sqlx::Error) -> OpenError {
    if state(&source) == State::Denied {
        return open_error(database, source);
    }
    OpenError::Migration {
        database: database.to_owned(),
        service: service.to_owned(),
        name: name.to_owned(),
        source: source.into(),
    }
}

pub(crate) fn failed(database: &str) -> impl FnOnce(sqlx::Error) -> OpenError {
    move |error| open_error(database, error)
}
