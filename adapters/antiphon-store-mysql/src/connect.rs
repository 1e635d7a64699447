//! Getting in: the first connection to a database, which makes it if it is missing and looks whether
//! the server is fit.

use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};

use crate::error::{OpenError, Trouble, open_error, trouble};
use crate::location::Location;
use crate::server::Server;
use crate::session::{self, Kind};
use crate::settings::Settings;

/// Connects, after making the database if it is not there and the user may.
///
/// # Errors
/// Nobody answers, the user is refused, or the server is too old or otherwise not fit.
pub(crate) async fn enter(
    location: &Location,
    settings: &Settings,
) -> Result<(MySqlConnection, Server), OpenError> {
    let failed = |error| open_error(location.place(), location.user(), error);
    // The driver would report it as if the server were not there.
    if let Some(ca) = &settings.ca_file
        && let Err(error) = std::fs::File::open(ca)
    {
        let source = format!("{}: {error}", ca.display()).into();
        return Err(OpenError::Tls { database: location.place().to_owned(), source });
    }
    let mut first = session::connect(&location.options(), Kind::Reads, settings).await;
    if first.as_ref().is_err_and(|error| trouble(error) == Trouble::Tls) && location.use_tls() {
        first = session::connect(&location.options(), Kind::Reads, settings).await;
    }
    let mut connection = match first {
        Err(error) if trouble(&error) == Trouble::NoDatabase => {
            create(location, settings).await?;
            session::connect(&location.options(), Kind::Reads, settings).await.map_err(failed)?
        }
        answer => answer.map_err(failed)?,
    };
    let server = Server::ask(&mut connection).await.map_err(failed)?;
    match server.unfit() {
        None => Ok((connection, server)),
        Some(problem) => Err(OpenError::Unfit { database: location.place().to_owned(), problem }),
    }
}

/// Makes the database. Somebody else may be doing the same.
async fn create(location: &Location, settings: &Settings) -> Result<(), OpenError> {
    let failed = |error| open_error(location.place(), location.user(), error);
    let mut connection =
        session::connect(&location.of_server(), Kind::Reads, settings).await.map_err(failed)?;
    // The location has made sure that the name cannot get out of its quotes.
    let statement = format!(
        "CREATE DATABASE IF NOT EXISTS `{}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        location.database()
    );
    let created = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await;
    let _ = connection.close().await;
    created.map_err(failed)?;
    tracing::info!(database = location.place(), "created the database");
    Ok(())
}
