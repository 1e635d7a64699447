//! Getting in: the first connection to a database, which makes it if it is missing and looks whether
//! the server is fit, and the pools of the later ones.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, PgConnection, PgPool, Row};

use crate::error::{OpenError, State, open_error, state};
use crate::location::Location;
use crate::settings::Settings;

/// PostgreSQL 13, the oldest version that the statements of this crate are written for.
const VERSION_MIN: u32 = 130_000;

/// Connects, after making the database if it is not there and the role may.
///
/// # Errors
/// Nobody answers, the role is refused, or the server is too old or otherwise not fit.
pub(crate) async fn enter(
    location: &Location,
    settings: &Settings,
) -> Result<PgConnection, OpenError> {
    let failed = |error| open_error(&location.shown, error);
    let mut connection = match connect(&location.options, settings.connect_timeout).await {
        Err(error) if state(&error) == State::NoDatabase => {
            create(location, settings).await?;
            connect(&location.options, settings.connect_timeout).await.map_err(failed)?
        }
        answer => answer.map_err(failed)?,
    };
    examine(&mut connection, location).await?;
    Ok(connection)
}

/// Makes a connection, within a time.
pub(crate) async fn connect(
    options: &PgConnectOptions,
    within: Duration,
) -> Result<PgConnection, sqlx::Error> {
    self::within(within, options.connect()).await
}

/// Waits for an answer no longer than so: the server's own limits do not help where the network
/// loses its answers.
pub(crate) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "the server did not answer in time",
        ))),
    }
}

/// Makes the database. Somebody else may be doing the same.
async fn create(location: &Location, settings: &Settings) -> Result<(), OpenError> {
    let failed = |error| open_error(&location.shown, error);
    let maintenance = location.beside("postgres");
    let mut connection =
        connect(&maintenance, settings.connect_timeout).await.map_err(|error| {
            match state(&error) {
                State::NoDatabase => OpenError::Unfit {
                    database: location.shown.clone(),
                    problem: "it does not exist, and there is no database \"postgres\" from which \
                              to create it; create it by hand"
                        .into(),
                },
                _ => failed(error),
            }
        })?;
    let statement = format!("CREATE DATABASE {} TEMPLATE template0", quoted(&location.database));
    let created = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await;
    let _ = connection.close().await;
    match created {
        Ok(_) => {
            tracing::info!(database = %location.shown, "created the database");
            Ok(())
        }
        // Two that create it at once meet in the catalogue.
        Err(error) if matches!(state(&error), State::Exists | State::Taken) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// A name as SQL takes it literally.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Whether what runs there can be worked with.
async fn examine(connection: &mut PgConnection, location: &Location) -> Result<(), OpenError> {
    let version = connection.server_version_num().unwrap_or(0);
    let row = sqlx::query(
        "SELECT current_setting('server_encoding'), pg_is_in_recovery(),
                current_setting('server_version')",
    )
    .fetch_one(connection)
    .await
    .map_err(|error| open_error(&location.shown, error))?;
    let shown: String = row.get(2);
    match judge(version, &shown, &row.get::<String, _>(0), row.get(1)) {
        None => Ok(()),
        Some(problem) => Err(OpenError::Unfit { database: location.shown.clone(), problem }),
    }
}

/// What is wrong with a server, if anything.
fn judge(version: u32, shown: &str, encoding: &str, is_standby: bool) -> Option<String> {
    if version < VERSION_MIN {
        Some(format!("the server is PostgreSQL {shown}; 13 or newer is needed"))
    } else if encoding != "UTF8" {
        Some(format!("the database's encoding is {encoding}; create it with ENCODING 'UTF8'"))
    } else if is_standby {
        Some("the server is a standby, which only reads; name the primary".into())
    } else {
        None
    }
}

/// A pool that connects when it is needed. A connection is not tested before it is handed out: that
/// would cost a round trip each time, and its end is found out by what is done with it.
pub(crate) fn pool(options: PgConnectOptions, settings: &Settings, connections_max: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections_max.max(1))
        .acquire_timeout(settings.acquire_timeout)
        .idle_timeout(Duration::from_secs(300))
        .max_lifetime(Duration::from_secs(3_600))
        .test_before_acquire(false)
        .connect_lazy_with(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_not_fit_is_refused_with_the_reason() {
        assert_eq!(judge(150_018, "15.18", "UTF8", false), None);
        for (version, encoding, is_standby, word) in [
            (120_022, "UTF8", false, "13 or newer"),
            (0, "UTF8", false, "13 or newer"),
            (150_000, "SQL_ASCII", false, "ENCODING 'UTF8'"),
            (150_000, "UTF8", true, "standby"),
        ] {
            let problem = judge(version, "x", encoding, is_standby).unwrap();
            assert!(problem.contains(word), "{problem}");
        }
    }

    #[test]
    fn a_name_cannot_get_out_of_its_quotes() {
        assert_eq!(quoted("a\"; DROP"), "\"a\"\"; DROP\"");
    }
}
