//! The PostgreSQL store passes the suite for stores of sagas.

use std::time::Duration;

use crate::support::Database;
use antiphon_core::{Clock, Timestamp};
use antiphon_outbox::StoreError;
use antiphon_store_postgres::{Connection, PostgresStore, Settings};
use antiphon_testing::conformance::store::StoreHarness;

struct Postgres {
    database: Database,
    clock: Clock,
}

impl StoreHarness for Postgres {
    type Store = PostgresStore;

    async fn start() -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_700_000_000_000));
        Self { database: Database::new().await, clock }
    }

    async fn open(&self) -> PostgresStore {
        let settings = Settings { clock: Some(self.clock.clone()), ..Settings::default() };
        self.database.open(settings).await
    }

    async fn restart(&mut self) {}

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    async fn add(_: &PostgresStore, _: &mut Connection, _: &str, _: i64) -> Result<(), StoreError> {
        unreachable!("the cases about sagas write no business rows")
    }

    async fn number(_: &PostgresStore, _: &str) -> i64 {
        unreachable!("the cases about sagas read no business rows")
    }
}

antiphon_testing::saga_conformance!(Postgres);
