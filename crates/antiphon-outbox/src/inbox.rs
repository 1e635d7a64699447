//! Handling messages inside a transaction: business rows, inbox entry and emitted messages together.

mod consumer;
mod handle;

pub use consumer::DatabaseConsumer;
pub use handle::{Handle, HandleFn, TxFn, handle_fn};
