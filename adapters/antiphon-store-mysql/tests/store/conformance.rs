//! The store keeps every rule of the store ports.

use std::time::Duration;

use antiphon_core::{Clock, Timestamp};
use antiphon_outbox::StoreError;
use antiphon_store_mysql::{Connection, Migration, MysqlStore, Settings};
use antiphon_testing::conformance::store::StoreHarness;

use crate::database::Database;

pub(crate) struct OnServer {
    database: Database,
    clock: Clock,
}

impl StoreHarness for OnServer {
    type Store = MysqlStore;

    async fn start() -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_700_000_000_000));
        Self { database: Database::new(), clock }
    }

    async fn open(&self) -> MysqlStore {
        let clock = Some(self.clock.clone());
        let store = self.database.open_with(Settings { clock, ..Settings::default() }).await;
        let numbers =
            "CREATE TABLE numbers (name VARBINARY(255) PRIMARY KEY, number BIGINT NOT NULL)";
        store.migrate("conformance", &[Migration::new("numbers", numbers)]).await.unwrap();
        store
    }

    async fn restart(&mut self) {}

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    async fn add(
        _: &MysqlStore,
        connection: &mut Connection,
        key: &str,
        by: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO numbers (name, number) VALUES (?, ?) ON DUPLICATE KEY UPDATE number = number + ?",
        )
        .bind(key)
        .bind(by)
        .bind(by)
        .execute(&mut **connection)
        .await
        .map(drop)
        .map_err(|error| StoreError::Failed { action: "adding", source: error.into() })
    }

    async fn number(store: &MysqlStore, key: &str) -> i64 {
        sqlx::query_scalar("SELECT number FROM numbers WHERE name = ?")
            .bind(key)
            .fetch_optional(store.reader())
            .await
            .unwrap()
            .unwrap_or(0)
    }
}

antiphon_testing::store_conformance!(OnServer);
