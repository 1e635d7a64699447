//! The store in memory passes the suite for stores, with paused time and on two threads.

use std::time::Duration;

use antiphon_core::{Clock, Timestamp};
use antiphon_outbox::StoreError;
use antiphon_testing::MemoryStore;
use antiphon_testing::conformance::store::StoreHarness;
use antiphon_testing::memory_store::Connection;

const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

struct Memory {
    store: MemoryStore,
    clock: Clock,
}

impl StoreHarness for Memory {
    type Store = MemoryStore;

    async fn start() -> Self {
        let clock = Clock::manual(START);
        Self { store: MemoryStore::new(clock.clone()), clock }
    }

    async fn open(&self) -> MemoryStore {
        self.store.clone()
    }

    async fn restart(&mut self) {}

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    async fn add(
        _: &MemoryStore,
        connection: &mut Connection,
        key: &str,
        by: i64,
    ) -> Result<(), StoreError> {
        let before = connection.get_for_update("numbers", key).await?;
        let number = before.map_or(0, |bytes| number(&bytes)) + by;
        connection.put("numbers", key, number.to_string()).await
    }

    async fn number(store: &MemoryStore, key: &str) -> i64 {
        store.row("numbers", key).map_or(0, |bytes| number(&bytes))
    }
}

fn number(bytes: &[u8]) -> i64 {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(i64::MIN)
}

mod paused {
    use super::Memory;
    antiphon_testing::store_conformance!(paused Memory);
    antiphon_testing::saga_conformance!(paused Memory);
}

mod threads {
    use super::Memory;
    antiphon_testing::store_conformance!(Memory);
    antiphon_testing::saga_conformance!(Memory);
}
