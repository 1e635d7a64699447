//! Reads descriptors into one model of services, routes, policies, events and errors.
//!
//! ```no_run
//! # fn example(descriptor_set: &[u8]) -> Result<(), antiphon_contract::ContractErrors> {
//! let contract = antiphon_contract::Contract::from_descriptor_set(descriptor_set)?;
//! for service in &contract.services {
//!     for method in &service.methods {
//!         for binding in &method.bindings {
//!             println!("{} {} {}", method.name, binding.method, binding.template);
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```

pub mod asyncapi;
mod check;
mod error;
mod model;
pub mod openapi;
mod options;
mod read;
mod schema;
pub mod template;

pub use error::{ContractError, ContractErrors, nearest};
pub use model::{
    Body, Cardinality, Contract, Enum, EnumValue, Field, HttpBinding, Idempotency, Kind, Location,
    Message, MessageBinding, Method, MethodKind, Objective, Oneof, Reason, Scalar, Service, Source,
};
