//! The SQLite store passes the suite for stores of sagas.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use antiphon_core::{Clock, Timestamp};
use antiphon_outbox::StoreError;
use antiphon_store_sqlite::{Connection, Settings, SqliteStore};
use antiphon_testing::conformance::store::StoreHarness;
use tempfile::TempDir;

struct Sqlite {
    folder: TempDir,
    clock: Clock,
}

impl StoreHarness for Sqlite {
    type Store = SqliteStore;

    async fn start() -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_700_000_000_000));
        Self { folder: tempfile::tempdir().unwrap(), clock }
    }

    async fn open(&self) -> SqliteStore {
        let path = self.folder.path().join("sagas.db");
        let settings = Settings { clock: self.clock.clone(), ..Settings::default() };
        SqliteStore::open(path.to_str().unwrap(), settings).await.unwrap()
    }

    async fn restart(&mut self) {}

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    async fn add(_: &SqliteStore, _: &mut Connection, _: &str, _: i64) -> Result<(), StoreError> {
        unreachable!("the cases about sagas write no business rows")
    }

    async fn number(_: &SqliteStore, _: &str) -> i64 {
        unreachable!("the cases about sagas read no business rows")
    }
}

antiphon_testing::saga_conformance!(Sqlite);
