//! Layered, typed settings: file, environment, flags.
//!
//! Three layers, each over the one before: `antiphon.toml`, environment variables
//! (`ANTIPHON__SERVER__LISTEN` is `server.listen`), and what the program sets itself, which is
//! mostly flags. Every part of a process reads its own section into its own type:
//!
//! ```
//! use antiphon_config::{ByteSize, HumanDuration, Settings, Sources};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, Deserialize, Serialize)]
//! #[serde(deny_unknown_fields, default)]
//! struct Server {
//!     listen: std::net::SocketAddr,
//!     timeout: HumanDuration,
//!     body_max: ByteSize,
//! }
//!
//! impl Default for Server {
//!     fn default() -> Self {
//!         Self {
//!             listen: ([127, 0, 0, 1], 8080).into(),
//!             timeout: HumanDuration::from_secs(10),
//!             body_max: ByteSize::mib(4),
//!         }
//!     }
//! }
//!
//! # fn main() -> Result<(), antiphon_config::Error> {
//! let sources = Sources::new()
//!     .text("antiphon.toml", "[server]\ntimeout = '2s 500ms'\n")
//!     .environment([("ANTIPHON__SERVER__BODY_MAX", "64KiB")])
//!     .set("--listen", "server.listen", "0.0.0.0:80");
//! let settings = Settings::load(&sources)?;
//! let server: Server = settings.section("server")?;
//! settings.finish()?; // refuses sections that nobody read
//! # assert_eq!(server.timeout.as_millis(), 2_500);
//! # assert_eq!(*server.body_max, 65_536);
//! # assert_eq!(server.listen.port(), 80);
//! # Ok(())
//! # }
//! ```
//!
//! An [`Error`] prints as one line that names the file, line and column, the environment variable
//! or the flag, and what to write instead. Secrets come by reference ([`Secret`]) and never print.

mod de;
mod describe;
mod env;
mod error;
mod file;
mod mistake;
mod quantity;
mod secret;
mod settings;
mod sources;
mod suggest;
mod tls;
mod tree;

pub use describe::{Described, without_login};
pub use error::Error;
pub use mistake::Mistake;
pub use quantity::{ByteSize, HumanDuration};
pub use secret::Secret;
pub use settings::Settings;
pub use sources::Sources;
pub use tls::{TlsFiles, TlsPems};
