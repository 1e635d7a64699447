//! Business rows and messages, together or not at all.
//!
//! A [`Tx`] is one transaction of a service's own database. What is emitted through it is written as
//! the last statement before COMMIT; a [`Relay`] publishes it afterwards, at least once; the
//! consumer's inbox makes the effect happen once.
//!
//! | a user wants | and writes |
//! |---|---|
//! | rows and events, both or neither | [`Database::begin`], [`Tx::emit`], [`Tx::commit`] |
//! | the same, again when the database was busy | [`Database::transact`] |
//! | a call that may come twice | [`Database::idempotent`], or [`Database::begin_call`] |
//! | to handle events with rows of its own | [`Database::group`] with a [`Handle`] |
//!
//! ```
//! # use antiphon_messaging::{Event, Fail};
//! # use antiphon_outbox::{Database, Handle, InboxStore, OutboxStore, Tx};
//! # trait Award { type PointsAwarded: Event; fn award(&self) -> Self::PointsAwarded; }
//! # struct Points;
//! impl<S, OrderConfirmed> Handle<OrderConfirmed, S> for Points
//! # where S: OutboxStore + InboxStore, OrderConfirmed: Event + Award
//! {
//!     async fn handle(&self, order: OrderConfirmed, tx: &mut Tx<S>) -> Result<(), Fail> {
//!         // Business rows, by statements on `tx`; then what follows from them.
//!         tx.emit(&order.award());
//!         Ok(())
//!     }
//! }
//!
//! # fn consumer<S: OutboxStore + InboxStore, OrderConfirmed: Event + Award>(db: Database<S>) {
//! let consumer = db.group("points.orders").on::<OrderConfirmed>(Points).ordered().concurrency(16);
//! # let _ = consumer; }
//! ```
//!
//! Where to change what: the order of publishing and what is held in memory in `relay/lane`, what a
//! refusal of the broker means in `relay/verdict`, how lanes are shared in `relay/engine/leases`,
//! what happens around a handler in `inbox/consumer`, what the ledger counts in `ledger`. The rules
//! of the ports are in `port`; `antiphon-testing` has a test for each.

mod calls;
mod housekeeping;
mod inbox;
mod ledger;
mod metrics;
mod migration;
mod port;
mod relay;
mod transact;
mod tx;

pub use calls::{Call, CallTx, RequestHash};
pub use housekeeping::{Housekeeping, Retention};
pub use inbox::{DatabaseConsumer, Handle, HandleFn, TxFn, handle_fn};
pub use ledger::{Ledger, LedgerLine};
pub use migration::Migration;
pub use port::{
    Buried, CallStore, CommitError, Confirmation, HandledCount, InboxEntry, InboxStore, Lease,
    LeaseStore, OutboxRow, OutboxStore, Position, SentCount, Seq, Store, StoreError, StoredCall,
    outbox_lane,
};
pub use relay::{KeyPolicy, Relay, RelaySettings};
pub use transact::InTx;
pub use tx::{Database, Tx};
