//! Transactions, inbox, idempotent calls and the ledger as a whole, over the store and the broker
//! in memory, in virtual time.

mod calls;
mod chaos;
mod fixture;
mod inbox;
mod transact;
