//! The SQLite store keeps every rule of the store ports.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use antiphon_core::{Clock, Timestamp};
use antiphon_outbox::StoreError;
use antiphon_store_sqlite::{Connection, Migration, Settings, SqliteStore};
use antiphon_testing::conformance::store::StoreHarness;
use tempfile::TempDir;

struct OnTemporaryFile {
    folder: TempDir,
    clock: Clock,
}

impl StoreHarness for OnTemporaryFile {
    type Store = SqliteStore;

    async fn start() -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_700_000_000_000));
        Self { folder: tempfile::tempdir().unwrap(), clock }
    }

    async fn open(&self) -> SqliteStore {
        let path = self.folder.path().join("store.db");
        let settings = Settings { clock: self.clock.clone(), ..Settings::default() };
        let store = SqliteStore::open(path.to_str().unwrap(), settings).await.unwrap();
        let numbers = "CREATE TABLE numbers (key TEXT PRIMARY KEY, number INTEGER NOT NULL)";
        store.migrate("conformance", &[Migration::new("numbers", numbers)]).await.unwrap();
        store
    }

    async fn restart(&mut self) {}

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    async fn add(
        _: &SqliteStore,
        connection: &mut Connection,
        key: &str,
        by: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO numbers (key, number) VALUES (?, ?)
             ON CONFLICT DO UPDATE SET number = number + excluded.number",
        )
        .bind(key)
        .bind(by)
        .execute(&mut **connection)
        .await
        .map(drop)
        .map_err(|error| StoreError::Failed { action: "adding", source: error.into() })
    }

    async fn number(store: &SqliteStore, key: &str) -> i64 {
        sqlx::query_scalar("SELECT number FROM numbers WHERE key = ?")
            .bind(key)
            .fetch_optional(store.reader())
            .await
            .unwrap()
            .unwrap_or(0)
    }
}

antiphon_testing::store_conformance!(OnTemporaryFile);
