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
