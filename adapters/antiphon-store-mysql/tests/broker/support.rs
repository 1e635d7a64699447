//! A database for each test.

use std::future::Future;

use antiphon_testing::services::Service;
use sqlx::{AssertSqlSafe, Connection, MySqlConnection};

/// A database that nobody else has. It is made by whoever opens it first, and dropped with this.
pub(crate) struct Database {
    pub(crate) url: String,
    name: String,
}

impl Database {
    pub(crate) fn new() -> Self {
        let name = format!("antiphon_broker_{}", uuid::Uuid::new_v4().simple());
        let server = Service::Mariadb.url();
        let (server, _) = server.rsplit_once('/').unwrap();
        Self { url: format!("{server}/{name}"), name }
    }

    /// A connection of the test's own.
    pub(crate) async fn connect(&self) -> MySqlConnection {
        MySqlConnection::connect(&self.url).await.unwrap()
    }
}

/// A connection to the server itself.
pub(crate) async fn server() -> MySqlConnection {
    let url = Service::Mariadb.url();
    MySqlConnection::connect(&url).await.unwrap_or_else(|error| {
        panic!("MariaDB at {url}: {error}; start it with `cargo xtask services up mariadb`")
    })
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop_it = format!("DROP DATABASE IF EXISTS {}", self.name);
        on_a_thread(async move {
            let mut server = server().await;
            sqlx::raw_sql(AssertSqlSafe(drop_it)).execute(&mut server).await.unwrap();
        });
    }
}

/// Runs what cannot be awaited where it is asked for.
fn on_a_thread(work: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work);
    });
    // A test that has failed already fails for its own reason.
    if thread.join().is_err() && !std::thread::panicking() {
        panic!("the database was not dropped");
    }
}
