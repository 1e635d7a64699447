//! What every store must do: one case per rule of the ports in `antiphon-outbox`.
//!
//! An adapter writes a [`StoreHarness`] and one line, [`store_conformance!`](crate::store_conformance).
//! Nothing is skipped: a store that lets one transaction write at a time passes the cases about
//! overlapping transactions by making the second one wait.
//!
//! Not here, since only the adapter can bring it about: that a failed commit is told apart from one
//! whose outcome is unknown (`Store` 4).

pub mod calls;
pub mod inbox;
pub mod leases;
pub mod outbox;
pub mod transactions;

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{LANES, Message};
use antiphon_outbox::{
    CallStore, InboxStore, Lease, LeaseStore, OutboxRow, OutboxStore, Position, Store, StoreError,
};
use tokio::time::timeout;

/// How long a case waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long a case watches for what must not happen.
pub const QUIET: Duration = Duration::from_millis(200);
/// How long leases last in the cases.
pub const TTL: Duration = Duration::from_secs(5);

/// Keeps one database for one case.
pub trait StoreHarness: Send + Sync + Sized + 'static {
    /// What is tested.
    type Store: OutboxStore + InboxStore + CallStore;

    /// An empty database.
    fn start() -> impl Future<Output = Self> + Send;

    /// Opens the database as one more process does.
    fn open(&self) -> impl Future<Output = Self::Store> + Send;

    /// Ends every process that has opened it: drops what is only in memory. The cases have dropped
    /// their own handles before.
    fn restart(&mut self) -> impl Future<Output = ()> + Send;

    /// Lets this much time pass on the clock of every opening.
    fn pass(&self, time: Duration) -> impl Future<Output = ()> + Send;

    /// Adds to a number in a business row, which is 0 at first, as user code would.
    fn add(
        store: &Self::Store,
        connection: &mut <Self::Store as Store>::Connection,
        key: &str,
        by: i64,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The committed number.
    fn number(store: &Self::Store, key: &str) -> impl Future<Output = i64> + Send;
}

/// Makes a test of every case: `store_conformance!(Harness)`, or `store_conformance!(paused Harness)`
/// for stores without I/O, whose time can be paused. The test crate needs tokio with `macros`,
/// `rt-multi-thread` and (for `paused`) `test-util`.
#[macro_export]
macro_rules! store_conformance {
    ($harness:ty) => {
        $crate::store_conformance!(@cases $harness, [flavor = "multi_thread", worker_threads = 2]);
    };
    (paused $harness:ty) => {
        $crate::store_conformance!(@cases $harness, [start_paused = true]);
    };
    (@cases $harness:ty, $how:tt) => {
        $crate::store_conformance!(@module transactions, $harness, $how, [
            a_commit_shows_everything_at_once,
            a_dropped_transaction_leaves_nothing,
            what_is_committed_survives_a_restart,
            writers_of_one_row_lose_no_update,
        ]);
        $crate::store_conformance!(@module leases, $harness, $how, [
            a_lane_has_one_holder,
            a_live_lease_is_nobody_elses,
            an_expired_lease_can_be_taken_and_the_old_holder_is_told,
            an_expired_lease_that_nobody_took_can_be_renewed,
            tokens_never_repeat,
            releasing_a_lost_lease_changes_nothing,
            scopes_do_not_mix,
            instances_are_counted_until_they_leave_or_fall_silent,
            leaving_gives_every_lane_back,
        ]);
        $crate::store_conformance!(@module outbox, $harness, $how, [
            a_message_is_read_as_it_was_written,
            reads_go_on_from_their_positions_and_are_bounded_per_lane,
            rows_of_a_key_come_in_the_order_of_their_commits,
            a_late_commit_is_not_skipped,
            concurrent_writers_and_a_reader_lose_nothing,
            confirmed_rows_are_gone_and_others_stay,
            a_lost_lease_confirms_nothing,
            a_lost_lease_buries_nothing,
            a_buried_row_is_kept_with_its_reason_and_not_read,
            a_delayed_row_is_read_when_it_is_due,
            the_backlog_counts_what_waits,
            the_ledger_counts_each_message_once,
        ]);
        $crate::store_conformance!(@module inbox, $harness, $how, [
            a_message_is_new_once_per_consumer,
            an_entry_is_undone_with_its_transaction,
            of_concurrent_duplicates_one_is_new,
            a_batch_is_answered_in_order_and_knows_its_own_duplicates,
            what_is_beyond_the_horizon_is_refused_whether_seen_or_not,
            the_horizon_never_moves_back,
            an_id_without_a_time_is_beyond_every_horizon,
            the_ledger_counts_what_was_committed,
        ]);
        $crate::store_conformance!(@module calls, $harness, $how, [
            an_answer_is_found_under_its_method_and_key,
            an_answer_is_undone_with_its_transaction,
            of_concurrent_calls_one_does_the_work,
            old_answers_are_forgotten_and_no_others,
        ]);
    };
    (@module $module:ident, $harness:ty, $how:tt, [$($case:ident),* $(,)?]) => {
        mod $module {
            #[allow(unused_imports, reason = "a harness may be named by a path of its own")]
            use super::*;
            $($crate::store_conformance!(@case $module, $case, $harness, $how);)*
        }
    };
    (@case $module:ident, $case:ident, $harness:ty, [$($how:tt)*]) => {
        #[tokio::test($($how)*)]
        async fn $case() {
            let mut harness = <$harness as $crate::conformance::store::StoreHarness>::start().await;
            $crate::conformance::store::$module::$case(&mut harness).await;
        }
    };
}

/// The store of a harness.
type StoreOf<H> = <H as StoreHarness>::Store;

/// A message that was made `age` ago.
pub(super) fn message_aged(now: Timestamp, age: Duration, key: &str, body: &str) -> Message {
    let time = now - age;
    Message {
        id: MessageId::new(time),
        topic: "orders".into(),
        kind: "test.Placed".into(),
        source: "conformance".into(),
        key: key.into(),
        time,
        not_before: None,
        attributes: BTreeMap::from([("correlationid".to_owned(), "c-1".to_owned())]),
        body: body.to_owned().into(),
    }
}

/// A message made now.
fn message<S: Store>(store: &S, key: &str, body: &str) -> Message {
    message_aged(store.now(), Duration::ZERO, key, body)
}

fn text(row: &OutboxRow) -> &str {
    std::str::from_utf8(&row.message.body).expect("the cases write text")
}

fn texts(rows: &[OutboxRow]) -> Vec<&str> {
    rows.iter().map(text).collect()
}

/// Opens a transaction, however busy the store is.
pub(super) async fn begin<S: Store>(store: &S) -> S::Connection {
    let patient = async {
        loop {
            match store.begin().await {
                Err(error) if error.is_busy() => tokio::time::sleep(Duration::from_millis(5)).await,
                answer => return answer.expect("a transaction can be opened"),
            }
        }
    };
    timeout(PATIENCE, patient).await.expect("a transaction must be opened at some time")
}

/// Commits messages in one transaction.
async fn commit<S: OutboxStore>(store: &S, messages: &[Message]) {
    let mut connection = begin(store).await;
    store.append(&mut connection, messages).await.expect("messages can be appended");
    store.commit(connection).await.expect("the transaction can be committed");
}

/// The leases on all lanes of the outbox.
async fn all_lanes<S: LeaseStore>(store: &S, owner: &str) -> Vec<Lease> {
    let leases = store.acquire("outbox", LANES, LANES, owner, TTL).await.expect("lanes are free");
    assert_eq!(leases.len(), LANES as usize, "all lanes were free");
    leases
}

fn lease_of(leases: &[Lease], lane: u32) -> &Lease {
    leases.iter().find(|lease| lease.lane == lane).expect("there is a lease on every lane")
}

/// Reads all lanes from their beginnings; rows of one lane in order.
async fn read_all<S: OutboxStore>(store: &S) -> Vec<OutboxRow> {
    let positions: Vec<_> = (0..LANES).map(|lane| Position { lane, after: None }).collect();
    store.read(&positions, store.now(), 10_000).await.expect("the outbox can be read")
}
