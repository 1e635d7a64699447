//! The SQL broker keeps every rule of the broker ports.

use antiphon_messaging::AnyBroker;
use antiphon_store_mysql::{MysqlBroker, Settings};
use antiphon_testing::broker_conformance;
use antiphon_testing::conformance::broker::BrokerHarness;

use crate::support::Database;

struct InNewDatabase {
    broker: MysqlBroker,
    _database: Database,
}

impl BrokerHarness for InNewDatabase {
    async fn start() -> Self {
        let database = Database::new();
        let broker = MysqlBroker::open(&database.url, Settings::default()).await.unwrap();
        Self { broker, _database: database }
    }

    fn broker(&self) -> AnyBroker {
        AnyBroker::new(self.broker.clone())
    }
}

broker_conformance!(InNewDatabase);
