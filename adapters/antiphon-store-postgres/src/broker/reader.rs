//! The connection that reads, one read after the other.

use std::time::Duration;

use antiphon_core::BoxFuture;
use antiphon_sqlbroker::Failure;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::connect::connect;
use crate::error::{State, state};

/// How long a read may take before its connection is given up.
const READ_MAX: Duration = Duration::from_secs(10);
/// A connection that was silent for longer is tried before it is used.
const TRUST: Duration = Duration::from_millis(250);

/// See the module.
pub(super) struct Reader {
    options: PgConnectOptions,
    connect_timeout: Duration,
    idle: Mutex<Option<(PgConnection, Instant)>>,
}

impl Reader {
    pub(super) fn new(options: PgConnectOptions, connect_timeout: Duration) -> Self {
        Self { options, connect_timeout, idle: Mutex::default() }
    }

    /// Reads. A connection that broke, or whose read was given up, is not used again.
    pub(super) async fn read<T: Send>(
        &self,
        read: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    ) -> Result<T, Failure> {
        let failed = |error: sqlx::Error| Failure::NotMade(error.to_string());
        let mut idle = self.idle.lock().await;
        let mut connection = match idle.take() {
            Some((connection, since)) => self.tried(connection, since).await.map_err(failed)?,
            None => connect(&self.options, self.connect_timeout).await.map_err(failed)?,
        };
        let Ok(answer) = timeout(READ_MAX, read(&mut connection)).await else {
            return Err(Failure::NotMade(format!("no answer for {READ_MAX:?}")));
        };
        let broken = answer
            .as_ref()
            .is_err_and(|error| error.as_database_error().is_none() || state(error) == State::Gone);
        if !broken {
            *idle = Some((connection, Instant::now()));
        }
        answer.map_err(failed)
    }

    /// This connection if it still works, or a new one.
    async fn tried(
        &self,
        mut connection: PgConnection,
        since: Instant,
    ) -> Result<PgConnection, sqlx::Error> {
        let works = since.elapsed() < TRUST
            || timeout(self.connect_timeout, connection.ping())
                .await
                .is_ok_and(|pong| pong.is_ok());
        if works { Ok(connection) } else { connect(&self.options, self.connect_timeout).await }
    }
}
