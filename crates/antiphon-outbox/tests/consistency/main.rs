//! Transactions, inbox, idempotent calls and the ledger as a whole, over the store and the broker
//! in memory, in virtual time.

#[cfg(test)]
mod calls;
#[cfg(test)]
mod chaos;
#[cfg(test)]
mod endings;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod inbox;
#[cfg(test)]
mod transact;
