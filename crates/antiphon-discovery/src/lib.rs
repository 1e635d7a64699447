//! Where the instances of services are, and how they make themselves known.
//!
//! A [`Target`] names what is called. [`Discovery`] watches it and keeps the set of its
//! [`Instance`]s as a [`Snapshot`]: always a whole set, never a change to one. The rules by which an
//! answer is believed are pure and one for all registries ([`keeper`]): what goes wrong at a registry
//! never takes instances away from callers.
//!
//! An adapter of a registry implements [`Resolver`] and [`Registrar`], and none of those rules.
//! Fixed lists ([`fixed`]), files ([`mod@file`]) and DNS ([`dns`]) are built in.

mod authority;
mod discovery;
pub mod dns;
mod error;
pub mod file;
pub mod fixed;
mod instance;
pub mod keeper;
mod lease;
mod metrics;
mod record;
mod registrar;
mod registration;
mod resolver;
mod settings;
mod target;
mod watch;

pub use authority::{Authority, InvalidAuthority};
pub use discovery::{Discovery, WatchError};
pub use error::RegistryError;
pub use instance::{Instance, Snapshot, State};
pub use lease::Lease;
pub use record::{InvalidRecord, Record};
pub use registrar::{Entry, Held, Registrar, Written};
pub use registration::{Registration, RegistrationSettings, Standing};
pub use resolver::{Answers, Resolver};
pub use settings::{DnsSettings, InvalidNameServer, NameServer, Settings};
pub use target::{InvalidTarget, Target};
pub use watch::{Trust, Watch};
