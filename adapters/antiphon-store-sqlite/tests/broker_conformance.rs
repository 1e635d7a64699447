//! The SQL broker keeps every rule of the broker ports.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use antiphon_messaging::AnyBroker;
use antiphon_store_sqlite::{Settings, SqliteBroker};
use antiphon_testing::broker_conformance;
use antiphon_testing::conformance::broker::BrokerHarness;
use tempfile::TempDir;

struct OnTemporaryFile {
    broker: SqliteBroker,
    _folder: TempDir,
}

impl BrokerHarness for OnTemporaryFile {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.db");
        let broker = SqliteBroker::open(path.to_str().unwrap(), Settings::default()).await.unwrap();
        Self { broker, _folder: folder }
    }

    fn broker(&self) -> AnyBroker {
        AnyBroker::new(self.broker.clone())
    }
}

broker_conformance!(OnTemporaryFile);
