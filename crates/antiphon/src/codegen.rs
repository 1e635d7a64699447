//! What generated code names. Not for people: it changes with the generator.

pub use antiphon_core::{BoxFuture, Code, Status};
pub use antiphon_messaging as messaging;
pub use antiphon_rpc as rpc;
pub use buffa;
pub use buffa_types;
pub use bytes::Bytes;
pub use protovalidate_buffa;
pub use serde;
pub use serde_json;

/// Includes what `antiphon_build::compile` has written: one module per package of the contract.
///
/// ```ignore
/// antiphon::include_contract!();
/// use shop::orders::v1::OrdersService;
/// ```
#[macro_export]
macro_rules! include_contract {
    () => {
        include!(concat!(env!("OUT_DIR"), "/antiphon_contract.rs"));
    };
}
