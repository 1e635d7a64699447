//! Business rows and messages, together or not at all.
//!
//! A [`Tx`] is one transaction of a service's own database. What is emitted through it is written as
//! the last statement before COMMIT; a relay publishes it afterwards, at least once; the consumer's
//! inbox makes the effect happen once.

mod calls;
mod housekeeping;
mod inbox;
mod ledger;
mod metrics;
mod port;
mod relay;
mod transact;
mod tx;

pub use calls::{Call, CallTx, RequestHash};
pub use housekeeping::{Housekeeping, Retention};
pub use inbox::{DatabaseConsumer, Handle, Transactional, TxFn};
pub use ledger::{Ledger, LedgerLine};
pub use port::{
    Buried, CallStore, CommitError, Confirmation, HandledCount, InboxEntry, InboxStore, Lease,
    LeaseStore, OutboxRow, OutboxStore, Position, SentCount, Seq, Store, StoreError, StoredCall,
    outbox_lane,
};
pub use relay::{KeyPolicy, Relay, RelaySettings};
pub use transact::InTx;
pub use tx::{Database, Tx};
