//! What adapters of Redis share: how a server is reached, and a connection that is kept.

mod connection;
mod error;
mod server;

pub use connection::{Connection, Owner};
pub use error::StartError;
pub use server::Server;
