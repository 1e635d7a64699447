//! Turns `.proto` files into Rust in `build.rs`, without `protoc`.
//!
//! ```no_run
//! // build.rs
//! antiphon_build::compile(&["proto/shop/orders/v1/orders.proto"], &["proto"]);
//! ```
//!
//! ```ignore
//! // lib.rs or main.rs
//! antiphon::include_contract!();
//! ```
//!
//! The included file holds one module per package (`shop::orders::v1`) with the messages, their
//! validation, and what this crate generates:
//!
//! | contract | Rust |
//! |---|---|
//! | `service OrdersService` | the trait `OrdersService` to implement, `OrdersServiceServer` to serve it, `OrdersServiceClient` to call it |
//! | `option (antiphon.v1.message).event` | `impl Event` |
//! | `option (antiphon.v1.message).command` | `impl Command` |
//! | every message | `impl Payload` |
//! | `enum OrdersError` with `(antiphon.v1.errors)` | `OrdersError::unknown_sku("…")` and `OrdersError::is_unknown_sku(&status)` |
//!
//! Files that are imported are compiled as well. `google/protobuf`, `google/api`, `google/rpc`,
//! `buf/validate` and `antiphon/v1` are built in.

mod compile;
mod generate;
mod messages;
mod redact;

use std::fmt;
use std::path::{Path, PathBuf};

pub use antiphon_contract::{ContractError, ContractErrors};

/// The name of the file that [`compile`] writes into `OUT_DIR`.
pub const OUT_FILE: &str = "antiphon_contract.rs";

/// Compiles the contract in `files`, which lie under one of `includes`, and writes [`OUT_FILE`].
///
/// For `build.rs`: mistakes go to stderr, one per line with file, line and column, and the process
/// ends with exit code 1, so that the build fails. [`Contract`] has more settings.
pub fn compile(files: &[impl AsRef<Path>], includes: &[impl AsRef<Path>]) {
    let mut contract = Contract::new();
    for file in files {
        contract = contract.file(file);
    }
    for include in includes {
        contract = contract.include(include);
    }
    contract.compile_or_exit();
}

/// What to compile, and how.
#[derive(Clone, Debug)]
pub struct Contract {
    files: Vec<PathBuf>,
    includes: Vec<PathBuf>,
    out_dir: Option<PathBuf>,
    runtime: String,
}

impl Default for Contract {
    fn default() -> Self {
        Self::new()
    }
}

impl Contract {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            files: Vec::new(),
            includes: Vec::new(),
            out_dir: None,
            runtime: "::antiphon::__codegen".to_owned(),
        }
    }

    /// Adds a file. It lies under one of the [`include`](Self::include) folders.
    #[must_use]
    pub fn file(mut self, file: impl AsRef<Path>) -> Self {
        self.files.push(file.as_ref().to_owned());
        self
    }

    /// Adds a folder in which imports are looked up.
    #[must_use]
    pub fn include(mut self, folder: impl AsRef<Path>) -> Self {
        self.includes.push(folder.as_ref().to_owned());
        self
    }

    /// Where to write; `OUT_DIR` otherwise.
    #[must_use]
    pub fn out_dir(mut self, folder: impl AsRef<Path>) -> Self {
        self.out_dir = Some(folder.as_ref().to_owned());
        self
    }

    /// The module that holds what generated code names; `::antiphon::__codegen` otherwise. Crates
    /// below the facade re-export the same names in a module of their own.
    #[must_use]
    pub fn runtime(mut self, path: &str) -> Self {
        path.clone_into(&mut self.runtime);
        self
    }

    /// Compiles and writes [`OUT_FILE`]. Tells cargo which files it depends on.
    ///
    /// # Errors
    /// Every mistake in the contract, or why a file cannot be read or written.
    pub fn compile(&self) -> Result<(), Error> {
        let generated = self.generate()?;
        for path in &generated.read {
            #[expect(clippy::print_stdout, reason = "that is how build scripts talk to cargo")]
            {
                println!("cargo:rerun-if-changed={}", path.display());
            }
        }
        let out_dir = self.folder()?;
        let write = |name: &str, content: &[u8]| {
            let path = out_dir.join(name);
            // Left alone when nothing changed, so that cargo does not build what depends on it.
            if std::fs::read(&path).is_ok_and(|existing| existing == content) {
                return Ok(());
            }
            std::fs::write(&path, content)
                .map_err(|error| Error(format!("{} cannot be written: {error}", path.display())))
        };
        write(messages::DESCRIPTOR_SET_FILE, &generated.descriptor_set)?;
        write(OUT_FILE, generated.source.as_bytes())
    }

    /// What [`compile`](Self::compile) would write.
    ///
    /// # Errors
    /// As [`compile`](Self::compile).
    pub fn generate(&self) -> Result<Generated, Error> {
        let compiled = compile::compile(&self.files, &self.includes)?;
        messages::generate(&compiled, &self.runtime)
    }

    /// [`compile`](Self::compile) for `build.rs`: mistakes go to stderr and end the process with
    /// exit code 1.
    pub fn compile_or_exit(&self) {
        if let Err(error) = self.compile() {
            #[expect(clippy::print_stderr, reason = "cargo shows what a failed build script wrote")]
            {
                eprintln!("{error}");
            }
            std::process::exit(1);
        }
    }

    fn folder(&self) -> Result<PathBuf, Error> {
        let from_cargo = || std::env::var_os("OUT_DIR").map(PathBuf::from);
        self.out_dir
            .clone()
            .or_else(from_cargo)
            .ok_or_else(|| Error("OUT_DIR is not set: call this from build.rs".to_owned()))
    }
}

/// What was generated.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Generated {
    /// The Rust source.
    pub source: String,
    /// The descriptor set that the source embeds: every file with what it imports, with the comments
    /// of all but the built-in files.
    pub descriptor_set: Vec<u8>,
    /// The files that were read from disk, imports included.
    pub read: Vec<PathBuf>,
}

/// Why a contract cannot be compiled: one line per mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}
