//! The connection that reads, one read after the other.

use std::time::Duration;

use antiphon_core::BoxFuture;
use antiphon_sqlbroker::Failure;
use sqlx::mysql::MySqlConnectOptions;
use sqlx::{Connection as _, MySqlConnection};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::error::{Trouble, trouble};
use crate::session::{Kind, connect};
use crate::settings::Settings;
use crate::sql::{Answer, Sql, run};

/// How long a read may take before its connection is given up.
const READ_MAX: Duration = Duration::from_secs(10);
/// A connection that was silent for longer is tried before it is used.
const TRUST: Duration = Duration::from_millis(250);

/// See the module.
pub(super) struct Reader {
    options: MySqlConnectOptions,
    settings: Settings,
    idle: Mutex<Option<(MySqlConnection, Instant)>>,
}

impl Reader {
    pub(super) fn new(options: MySqlConnectOptions, settings: Settings) -> Self {
        Self { options, settings, idle: Mutex::default() }
    }

    /// Asks one text of statements.
    pub(super) async fn ask(&self, sql: Sql) -> Result<Vec<Answer>, Failure> {
        self.read(move |connection| Box::pin(run(connection, sql))).await
    }

    /// Reads. A connection that broke, or whose read was given up, is not used again.
    pub(super) async fn read<T: Send>(
        &self,
        read: impl for<'c> FnOnce(&'c mut MySqlConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>
        + Send,
    ) -> Result<T, Failure> {
        let mut idle = self.idle.lock().await;
        let mut connection = match idle.take() {
            Some((connection, since)) => self.tried(connection, since).await.map_err(failed)?,
            None => self.connect().await.map_err(failed)?,
        };
        let Ok(answer) = timeout(READ_MAX, read(&mut connection)).await else {
            return Err(Failure::NotMade(format!("no answer for {READ_MAX:?}")));
        };
        let broken = answer.as_ref().is_err_and(|error| {
            error.as_database_error().is_none() || trouble(error) == Trouble::Ended
        });
        if !broken {
            *idle = Some((connection, Instant::now()));
        }
        answer.map_err(failed)
    }

    async fn connect(&self) -> Result<MySqlConnection, sqlx::Error> {
        connect(&self.options, Kind::Reads, &self.settings).await
    }

    /// This connection if it still works, or a new one.
    async fn tried(
        &self,
        mut connection: MySqlConnection,
        since: Instant,
    ) -> Result<MySqlConnection, sqlx::Error> {
        let limit = self.settings.connect_timeout;
        let works = since.elapsed() < TRUST
            || timeout(limit, connection.ping()).await.is_ok_and(|pong| pong.is_ok());
        if works { Ok(connection) } else { self.connect().await }
    }
}

pub(super) fn failed(error: sqlx::Error) -> Failure {
    Failure::NotMade(error.to_string())
}
