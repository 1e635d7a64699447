//! The PostgreSQL store keeps every rule of the store ports.

use std::time::Duration;

use crate::support::Database;
use antiphon_core::{Clock, Timestamp};
use antiphon_outbox::StoreError;
use antiphon_store_postgres::{Connection, Migration, PostgresStore, Settings};
use antiphon_testing::conformance::store::StoreHarness;

struct OnDatabase {
    database: Database,
    clock: Clock,
}

impl StoreHarness for OnDatabase {
    type Store = PostgresStore;

    async fn start() -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_700_000_000_000));
        Self { database: Database::new().await, clock }
    }

    async fn open(&self) -> PostgresStore {
        let settings = Settings { clock: Some(self.clock.clone()), ..Settings::default() };
        let store = self.database.open(settings).await;
        let numbers = "CREATE TABLE numbers (key TEXT PRIMARY KEY, number BIGINT NOT NULL)";
        store.migrate("conformance", &[Migration::new("numbers", numbers)]).await.unwrap();
        store
    }

    async fn restart(&mut self) {}

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    async fn add(
        _: &PostgresStore,
        connection: &mut Connection,
        key: &str,
        by: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO numbers AS n (key, number) VALUES ($1, $2)
             ON CONFLICT (key) DO UPDATE SET number = n.number + excluded.number",
        )
        .bind(key)
        .bind(by)
        .execute(&mut **connection)
        .await
        .map(drop)
        .map_err(|error| StoreError::Failed { action: "adding", source: error.into() })
    }

    async fn number(store: &PostgresStore, key: &str) -> i64 {
        sqlx::query_scalar("SELECT number FROM numbers WHERE key = $1")
            .bind(key)
            .fetch_optional(store.reader())
            .await
            .unwrap()
            .unwrap_or(0)
    }
}

antiphon_testing::store_conformance!(OnDatabase);
