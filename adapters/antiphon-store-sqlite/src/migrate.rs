//! Bringing the tables of a database up to date.
//!
//! All processes that open a database may try at once: the check is a plain read, and what is
//! missing is applied in one transaction under SQLite's write lock, after checking again. A database
//! that knows more than this program is refused before anything is changed.

use std::collections::HashMap;
use std::path::Path;

use antiphon_core::Timestamp;
use antiphon_outbox::Migration;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use crate::error::{OpenError, open_error, primary_code};
use crate::schema::Component;

const BOOKKEEPING: &str = "
CREATE TABLE IF NOT EXISTS antiphon_schema (
    component TEXT PRIMARY KEY,
    version   INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS antiphon_migration (
    service  TEXT NOT NULL,
    name     TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    PRIMARY KEY (service, name)
) WITHOUT ROWID;
";

/// Whether the framework's tables are all there.
pub(crate) async fn is_current(
    connection: &mut SqliteConnection,
    path: &Path,
    components: &[Component],
) -> Result<bool, OpenError> {
    let known = has_bookkeeping(connection).await.map_err(failed(path))?;
    Ok(known && missing(connection, path, components).await?.is_empty())
}

/// Makes what is missing of the framework's tables, in the open transaction.
pub(crate) async fn apply(
    connection: &mut SqliteConnection,
    path: &Path,
    components: &[Component],
) -> Result<(), OpenError> {
    sqlx::raw_sql(BOOKKEEPING).execute(&mut *connection).await.map_err(failed(path))?;
    for (component, applied) in missing(connection, path, components).await? {
        for (step, sql) in component.steps.iter().enumerate().skip(applied) {
            sqlx::raw_sql(*sql).execute(&mut *connection).await.map_err(|source| {
                let name = format!("{}-{}", component.name, step + 1);
                migration_error(path, "antiphon", &name, source)
            })?;
        }
        sqlx::query("INSERT OR REPLACE INTO antiphon_schema (component, version) VALUES (?, ?)")
            .bind(component.name)
            .bind(version(component))
            .execute(&mut *connection)
            .await
            .map_err(failed(path))?;
    }
    Ok(())
}

/// The components that lack steps, and how many each has.
async fn missing<'a>(
    connection: &mut SqliteConnection,
    path: &Path,
    components: &'a [Component],
) -> Result<Vec<(&'a Component, usize)>, OpenError> {
    let versions: HashMap<String, i64> =
        sqlx::query("SELECT component, version FROM antiphon_schema")
            .fetch_all(connection)
            .await
            .map_err(failed(path))?
            .into_iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
    let mut missing = Vec::new();
    for component in components {
        let found = versions.get(component.name).copied().unwrap_or(0);
        let known = version(component);
        if found > known {
            return Err(OpenError::Newer {
                path: path.to_owned(),
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

async fn has_bookkeeping(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    sqlx::query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'antiphon_schema'")
        .fetch_optional(connection)
        .await
        .map(|row| row.is_some())
}

/// The migrations of `service` that are not applied yet.
pub(crate) async fn pending<'a>(
    connection: &mut SqliteConnection,
    path: &Path,
    service: &str,
    migrations: &'a [Migration],
) -> Result<Vec<&'a Migration>, OpenError> {
    let mut applied: HashMap<String, i64> =
        sqlx::query("SELECT name, checksum FROM antiphon_migration WHERE service = ?")
            .bind(service)
            .fetch_all(connection)
            .await
            .map_err(failed(path))?
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
                    path: path.to_owned(),
                    service: service.to_owned(),
                    name: migration.name().to_owned(),
                });
            }
        }
    }
    if let Some(unknown) = applied.into_keys().max() {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            component: format!("migration of {service}"),
            found: unknown,
            known: migrations.last().map_or_else(|| "none".into(), |last| last.name().to_owned()),
        });
    }
    Ok(pending)
}

/// Applies one migration in the open transaction.
pub(crate) async fn apply_one(
    connection: &mut SqliteConnection,
    path: &Path,
    service: &str,
    migration: &Migration,
    now: Timestamp,
) -> Result<(), OpenError> {
    sqlx::raw_sql(AssertSqlSafe(migration.sql()))
        .execute(&mut *connection)
        .await
        .map_err(|source| migration_error(path, service, migration.name(), source))?;
    sqlx::query("INSERT INTO antiphon_migration (service, name, checksum, at) VALUES (?, ?, ?, ?)")
        .bind(service)
        .bind(migration.name())
        .bind(migration.checksum())
        .bind(now.as_micros())
        .execute(connection)
        .await
        .map(drop)
        .map_err(failed(path))
}

fn migration_error(path: &Path, service: &str, name: &str, source: sqlx::Error) -> OpenError {
    OpenError::Migration {
        path: path.to_owned(),
        service: service.to_owned(),
        name: name.to_owned(),
        source: source.into(),
    }
}

pub(crate) fn failed(path: &Path) -> impl FnOnce(sqlx::Error) -> OpenError {
    move |error| open_error(path, primary_code(&error), error.into())
}
