//! Store and SQL broker on MySQL and MariaDB.

mod error;
mod location;
mod session;
mod settings;

pub use error::OpenError;
pub use settings::Settings;
