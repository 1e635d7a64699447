//! The SQL broker with several processes on one database, and over connections that end.

use antiphon_messaging::AnyBroker;
use antiphon_store_mysql::{MysqlBroker, Settings};
use antiphon_testing::conformance::sql_broker::SqlBrokerHarness;
use antiphon_testing::proxy::Proxy;
use antiphon_testing::sql_broker_conformance;
use sqlx::{AssertSqlSafe, MySqlConnection, Row};
use tokio::sync::Mutex;

use crate::support::Database;

struct OnServer {
    database: Database,
    /// The test's own, once the database is there.
    connection: Mutex<Option<MySqlConnection>>,
}

impl SqlBrokerHarness for OnServer {
    async fn start() -> Self {
        Self { database: Database::new(), connection: Mutex::default() }
    }

    async fn open(&self) -> AnyBroker {
        let broker = MysqlBroker::open(&self.database.url, Settings::default()).await;
        AnyBroker::new(broker.unwrap())
    }

    async fn open_through(&self) -> (AnyBroker, Proxy) {
        let proxy = Proxy::in_front_of(&self.database.url).await.unwrap();
        let broker = MysqlBroker::open(proxy.url(), Settings::default()).await.unwrap();
        (AnyBroker::new(broker), proxy)
    }

    async fn execute(&self, sql: &str) {
        let mut connection = self.connection.lock().await;
        if connection.is_none() {
            *connection = Some(self.database.connect().await);
        }
        let connection = connection.as_mut().unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
    }

    async fn number(&self, sql: &str) -> i64 {
        let mut connection = self.database.connect().await;
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).fetch_one(&mut connection).await.unwrap().get(0)
    }

    async fn kill_connections(&self) {
        let mut connection = self.database.connect().await;
        let others = "SELECT id FROM information_schema.processlist
                       WHERE db = DATABASE() AND id <> CONNECTION_ID()";
        let others = sqlx::raw_sql(others).fetch_all(&mut connection).await.unwrap();
        for other in others {
            let kill = format!("KILL {}", other.get::<i64, _>(0));
            // It may have ended by itself.
            let _ = sqlx::raw_sql(AssertSqlSafe(kill)).execute(&mut connection).await;
        }
        // The test's own was among them.
        *self.connection.lock().await = None;
    }
}

sql_broker_conformance!(OnServer);
