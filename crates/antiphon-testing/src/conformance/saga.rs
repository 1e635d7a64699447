//! What every store of sagas must do: one case per rule of the ports in `antiphon-saga`.
//!
//! An adapter that has a [`StoreHarness`] adds one line, [`saga_conformance!`](crate::saga_conformance).

pub mod barrier;
pub mod sagas;

use antiphon_core::Timestamp;
use antiphon_outbox::{CommitError, Store, StoreError};
use antiphon_saga::{BarrierStore, SagaId, SagaRow, SagaStore, State};

use super::store::{PATIENCE, StoreHarness, begin};

/// Makes a test of every case: `saga_conformance!(Harness)`, or `saga_conformance!(paused Harness)` for
/// stores without I/O, whose time can be paused. The test crate needs what
/// [`store_conformance!`](crate::store_conformance) needs.
#[macro_export]
macro_rules! saga_conformance {
    ($harness:ty) => {
        $crate::saga_conformance!(@cases $harness, [flavor = "multi_thread", worker_threads = 2]);
    };
    (paused $harness:ty) => {
        $crate::saga_conformance!(@cases $harness, [start_paused = true]);
    };
    (@cases $harness:ty, $how:tt) => {
        $crate::saga_conformance!(@module sagas, $harness, $how, [
            a_saga_is_loaded_as_it_was_saved,
            what_is_saved_is_undone_with_its_transaction,
            there_is_one_saga_per_type_and_correlation_id,
            of_concurrent_starts_one_is_new,
            a_saga_that_was_saved_meanwhile_is_not_overwritten,
            concurrent_turns_lose_nothing,
            what_is_due_is_found_in_its_lanes_and_in_order,
            sagas_are_counted_until_they_end,
            sagas_are_listed_page_by_page,
            only_sagas_that_ended_long_ago_are_forgotten,
        ]);
        $crate::saga_conformance!(@module barrier, $harness, $how, [
            a_command_passes_once_and_is_answered_as_before,
            passing_is_undone_with_its_transaction,
            of_concurrent_commands_one_passes,
            a_message_enters_and_its_command_passes_at_once,
            an_undo_before_its_action_is_empty_and_blocks_it,
            an_undo_of_what_was_refused_is_empty,
            an_undo_of_what_may_have_happened_passes,
            a_retracted_command_passes_again,
            sagas_and_steps_do_not_mix,
            only_old_commands_are_forgotten,
        ]);
    };
    (@module $module:ident, $harness:ty, $how:tt, [$($case:ident),* $(,)?]) => {
        mod $module {
            #[allow(unused_imports, reason = "a harness may be named by a path of its own")]
            use super::*;
            $($crate::saga_conformance!(@case $module, $case, $harness, $how);)*
        }
    };
    (@case $module:ident, $case:ident, $harness:ty, [$($how:tt)*]) => {
        #[tokio::test($($how)*)]
        async fn $case() {
            let mut harness = <$harness as $crate::conformance::store::StoreHarness>::start().await;
            $crate::conformance::saga::$module::$case(&mut harness).await;
        }
    };
}

/// A harness whose store keeps sagas.
pub trait SagaHarness: StoreHarness<Store: SagaStore + BarrierStore> {}

impl<H: StoreHarness<Store: SagaStore + BarrierStore>> SagaHarness for H {}

/// A saga that was started now.
fn saga<S: Store>(store: &S, kind: &str, correlation: &str) -> SagaRow {
    // Moments are kept to the microsecond.
    let now = Timestamp::from_micros(store.now().as_micros());
    SagaRow {
        id: SagaId::new(now, kind, correlation),
        kind: kind.to_owned(),
        correlation: correlation.to_owned(),
        version: 1,
        state: State::Running,
        parked: false,
        revision: 0,
        wake_at: Some(now),
        data: vec![0, 1, 2, 255].into(),
        progress: r#"{"steps":["ä"]}"#.to_owned(),
        created_at: now,
        updated_at: now,
    }
}

/// Inserts a saga and commits.
async fn insert<S: SagaStore>(store: &S, row: &SagaRow) -> Result<bool, StoreError> {
    let mut connection = begin(store).await;
    let is_new = store.insert(&mut connection, row).await?;
    store.commit(connection).await.map_err(failed)?;
    Ok(is_new)
}

/// Reads a committed saga.
async fn load<S: SagaStore>(store: &S, id: SagaId) -> Option<SagaRow> {
    let mut connection = begin(store).await;
    let rows = store.load(&mut connection, &[id]).await.expect("sagas can be loaded");
    assert!(rows.len() <= 1, "no saga is loaded twice");
    rows.into_iter().next()
}

/// Saves a saga and commits.
async fn save<S: SagaStore>(store: &S, row: &SagaRow) -> Result<(), StoreError> {
    let mut connection = begin(store).await;
    store.save(&mut connection, std::slice::from_ref(row)).await?;
    store.commit(connection).await.map_err(failed)
}

fn failed(error: CommitError) -> StoreError {
    StoreError::Failed { action: "commit", source: error.into() }
}
