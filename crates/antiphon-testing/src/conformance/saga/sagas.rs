//! `SagaStore`: one row per saga, changed by one transaction at a time.

use std::time::Duration;

use antiphon_messaging::LANES;
use antiphon_outbox::Store;
use antiphon_saga::{SagaCount, SagaFilter, SagaId, SagaRow, SagaStore, State};
use tokio::time::timeout;

use super::{PATIENCE, SagaHarness, insert, load, saga, save};
use crate::conformance::store::begin;

const ALL_LANES: [u32; LANES as usize] = {
    let mut lanes = [0; LANES as usize];
    let mut lane = 0;
    while lane < LANES {
        lanes[lane as usize] = lane;
        lane += 1;
    }
    lanes
};

/// Rule 1, and what a row is made of.
pub async fn a_saga_is_loaded_as_it_was_saved<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    let row = saga(&store, "place-order", "order-1");
    assert!(insert(&store, &row).await.expect("inserted"));
    assert_eq!(load(&store, row.id).await.as_ref(), Some(&row));
    harness.pass(Duration::from_secs(1)).await;
    let changed = SagaRow {
        state: State::Compensating,
        parked: true,
        wake_at: None,
        data: vec![9].into(),
        progress: "{}".into(),
        updated_at: saga(&store, "x", "x").created_at,
        ..row.clone()
    };
    save(&store, &changed).await.expect("saved");
    let saved = SagaRow { revision: 1, ..changed };
    drop(store);
    harness.restart().await;
    let store = harness.open().await;
    assert_eq!(load(&store, row.id).await, Some(saved.clone()));
    let mut connection = begin(&store).await;
    let found = store.find(&mut connection, "place-order", "order-1").await.expect("found");
    assert_eq!(found, Some(saved));
    let found = store.find(&mut connection, "place-order", "order-2").await.expect("looked");
    assert_eq!(found, None);
    let unknown = SagaId::new(row.created_at, "place-order", "order-2");
    let rows = store.load(&mut connection, &[unknown, row.id]).await.expect("loaded");
    assert_eq!(rows.len(), 1, "what is not there is missing");
}

/// Rule 1.
pub async fn what_is_saved_is_undone_with_its_transaction<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    let row = saga(&store, "place-order", "order-1");
    let mut connection = begin(&store).await;
    assert!(store.insert(&mut connection, &row).await.expect("inserted"));
    drop(connection);
    assert_eq!(load(&store, row.id).await, None);
    assert!(insert(&store, &row).await.expect("inserted"), "it is as if it had never been there");
    let mut connection = begin(&store).await;
    let changed = SagaRow { state: State::Completed, ..row.clone() };
    store.save(&mut connection, &[changed]).await.expect("saved");
    drop(connection);
    assert_eq!(load(&store, row.id).await, Some(row));
}

/// Rule 2, one after the other.
pub async fn there_is_one_saga_per_type_and_correlation_id<H: SagaHarness>(harness: &mut H) {
    let (store, other) = (harness.open().await, harness.open().await);
    let first = saga(&store, "place-order", "order-1");
    assert!(insert(&store, &first).await.expect("inserted"));
    harness.pass(Duration::from_secs(1)).await;
    let second = saga(&other, "place-order", "order-1");
    assert_ne!(first.id, second.id, "it was begun later");
    assert!(!insert(&other, &second).await.expect("refused"));
    assert_eq!(load(&store, second.id).await, None);
    for (kind, correlation) in [("return-order", "order-1"), ("place-order", "order-2")] {
        assert!(insert(&store, &saga(&store, kind, correlation)).await.expect("inserted"));
    }
}

/// Rule 2, over several processes at once.
pub async fn of_concurrent_starts_one_is_new<H: SagaHarness>(harness: &mut H) {
    let mut starts = Vec::new();
    for _ in 0..4 {
        let store = harness.open().await;
        starts.push(tokio::spawn(async move {
            let row = saga(&store, "place-order", "order-1");
            loop {
                match insert(&store, &row).await {
                    Ok(is_new) => return is_new,
                    Err(_) => tokio::time::sleep(Duration::from_millis(3)).await,
                }
            }
        }));
    }
    let mut new = 0;
    for start in starts {
        let is_new = timeout(PATIENCE, start).await.expect("nobody waits for ever");
        new += i32::from(is_new.expect("no start fails"));
    }
    assert_eq!(new, 1);
}

/// Rule 3.
pub async fn a_saga_that_was_saved_meanwhile_is_not_overwritten<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    let row = saga(&store, "place-order", "order-1");
    insert(&store, &row).await.expect("inserted");
    save(&store, &row).await.expect("saved");
    let late = SagaRow { state: State::Compensated, ..row.clone() };
    save(&store, &late).await.expect_err("somebody else saved it since it was loaded");
    let kept = load(&store, row.id).await.expect("it is still there");
    assert_eq!((kept.state, kept.revision), (State::Running, 1));
}

/// Rules 1 and 3, over several processes at once.
pub async fn concurrent_turns_lose_nothing<H: SagaHarness>(harness: &mut H) {
    const TURNS: i64 = 12;
    let store = harness.open().await;
    let row = saga(&store, "place-order", "order-1");
    insert(&store, &row).await.expect("inserted");
    let mut workers = Vec::new();
    for _ in 0..4 {
        let store = harness.open().await;
        let id = row.id;
        workers.push(tokio::spawn(async move {
            for _ in 0..TURNS {
                while !turn(&store, id).await {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        }));
    }
    for worker in workers {
        let done = timeout(PATIENCE, worker).await.expect("nobody waits for ever");
        done.expect("no worker fails");
    }
    let row = load(&store, row.id).await.expect("it is there");
    assert_eq!(row.revision, 4 * TURNS);
    assert_eq!(row.progress, (4 * TURNS).to_string());
}

/// Adds one; false when somebody was in the way.
async fn turn<S: SagaStore>(store: &S, id: SagaId) -> bool {
    let mut connection = begin(store).await;
    let Ok(mut rows) = store.load(&mut connection, &[id]).await else { return false };
    let mut row = rows.pop().expect("the saga is there");
    let turns: i64 = row.progress.parse().unwrap_or(0);
    row.progress = (turns + 1).to_string();
    if store.save(&mut connection, &[row]).await.is_err() {
        return false;
    }
    store.commit(connection).await.is_ok()
}

/// Rule 4.
pub async fn what_is_due_is_found_in_its_lanes_and_in_order<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    let now = store.now();
    let mut expected = Vec::new();
    for (n, wait) in [30_u64, 10, 20].into_iter().enumerate() {
        let row = saga(&store, "place-order", &n.to_string());
        let row = SagaRow { wake_at: Some(now + Duration::from_secs(wait)), ..row };
        insert(&store, &row).await.expect("inserted");
        expected.push((wait, row.id));
    }
    let never = SagaRow { wake_at: None, ..saga(&store, "place-order", "never") };
    insert(&store, &never).await.expect("inserted");
    expected.sort_unstable();
    let expected: Vec<SagaId> = expected.into_iter().map(|(_, id)| id).collect();

    let due = async |lanes: &[u32], seconds: u64, count| {
        store.due(lanes, now + Duration::from_secs(seconds), count).await.expect("looked")
    };
    assert!(due(&ALL_LANES, 9, 10).await.is_empty());
    assert_eq!(due(&ALL_LANES, 20, 10).await, expected[..2]);
    assert_eq!(due(&ALL_LANES, 99, 10).await, expected);
    assert_eq!(due(&ALL_LANES, 99, 1).await, expected[..1]);
    let lane = SagaRow::lane(expected[1]);
    let others: Vec<u32> = ALL_LANES.into_iter().filter(|other| *other != lane).collect();
    assert!(!due(&others, 99, 10).await.contains(&expected[1]));
    assert!(due(&[lane], 99, 10).await.contains(&expected[1]));
    assert!(due(&[], 99, 10).await.is_empty());

    let open = saga(&store, "place-order", "open");
    let mut connection = begin(&store).await;
    store.insert(&mut connection, &open).await.expect("inserted");
    assert!(!due(&ALL_LANES, 99, 10).await.contains(&open.id), "it is not committed");
}

/// How many there are.
pub async fn sagas_are_counted_until_they_end<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    let states = [State::Running, State::Running, State::Compensating, State::Completed];
    for (n, state) in states.into_iter().enumerate() {
        let row = saga(&store, "place-order", &n.to_string());
        insert(&store, &SagaRow { state, ..row }).await.expect("inserted");
    }
    let parked = saga(&store, "place-order", "parked");
    insert(&store, &SagaRow { parked: true, version: 2, ..parked }).await.expect("inserted");
    let count = |version, state, parked, count| SagaCount {
        kind: "place-order".into(),
        version,
        state,
        parked,
        count,
    };
    let mut live = store.live().await.expect("counted");
    live.sort();
    assert_eq!(
        live,
        [
            count(1, State::Running, false, 2),
            count(1, State::Compensating, false, 1),
            count(2, State::Running, true, 1),
        ]
    );
}

/// What operators see.
pub async fn sagas_are_listed_page_by_page<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    let mut ids = Vec::new();
    for n in 0..7 {
        let kind = if n % 2 == 0 { "even" } else { "odd" };
        let row = saga(&store, kind, &n.to_string());
        let state = if n < 3 { State::Completed } else { State::Running };
        insert(&store, &SagaRow { state, parked: n == 5, ..row.clone() }).await.expect("inserted");
        ids.push(row.id);
        harness.pass(Duration::from_millis(5)).await;
    }
    let list = async |filter: SagaFilter, count| -> Vec<SagaId> {
        let rows = store.list(&filter, count).await.expect("listed");
        rows.into_iter().map(|row| row.id).collect()
    };
    let all = SagaFilter::default();
    assert_eq!(list(all.clone(), 10).await, ids);
    assert_eq!(list(all.clone(), 3).await, ids[..3]);
    assert_eq!(list(SagaFilter { after: Some(ids[2]), ..all.clone() }, 2).await, ids[3..5]);
    assert_eq!(list(SagaFilter { parked: true, ..all.clone() }, 10).await, [ids[5]]);
    let odd = SagaFilter { kind: Some("odd".into()), ..all.clone() };
    assert_eq!(list(odd.clone(), 10).await, [ids[1], ids[3], ids[5]]);
    let done = SagaFilter { state: Some(State::Completed), ..odd };
    assert_eq!(list(done, 10).await, [ids[1]]);
}

/// Rule 5.
pub async fn only_sagas_that_ended_long_ago_are_forgotten<H: SagaHarness>(harness: &mut H) {
    let store = harness.open().await;
    let mut rows = Vec::new();
    for (n, state) in State::ALL.into_iter().enumerate() {
        let row = SagaRow { state, ..saga(&store, "place-order", &n.to_string()) };
        insert(&store, &row).await.expect("inserted");
        rows.push(row);
    }
    harness.pass(Duration::from_secs(100)).await;
    let young = SagaRow { state: State::Completed, ..saga(&store, "place-order", "young") };
    insert(&store, &young).await.expect("inserted");
    let before = store.now() - Duration::from_secs(50);
    assert_eq!(store.forget_ended(before, 1).await.expect("forgotten"), 1);
    assert_eq!(store.forget_ended(before, 10).await.expect("forgotten"), 1);
    assert_eq!(store.forget_ended(before, 10).await.expect("forgotten"), 0);
    for row in &rows {
        let kept = load(&store, row.id).await.is_some();
        assert_eq!(kept, !row.state.is_ended(), "{:?}", row.state);
    }
    assert!(load(&store, young.id).await.is_some());
    let again = saga(&store, "place-order", "2");
    assert!(insert(&store, &again).await.expect("inserted"), "what is forgotten may begin again");
}
