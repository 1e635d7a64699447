//! A contract with everything in it, compiled as users compile theirs.

include!(concat!(env!("OUT_DIR"), "/antiphon_contract.rs"));

/// What generated code names: the same as `antiphon::__codegen`, without the facade.
#[doc(hidden)]
pub mod runtime {
    pub use another_serde as serde;
    pub use antiphon_core::{BoxFuture, Code, Status};
    pub use bytes::Bytes;
    pub use {antiphon_messaging as messaging, antiphon_rpc as rpc};
    pub use {buffa, buffa_types, protovalidate_buffa, serde_json};
}
