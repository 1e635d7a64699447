//! What went wrong, by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

use antiphon_core::BoxError;
use antiphon_outbox::StoreError;

/// Why a database file was not opened. Nothing was changed in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The location is not one of a file.
    #[error("cannot use {location:?} as a SQLite database: {problem}")]
    Location {
        /// As given.
        location: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The folder of the file cannot be made.
    #[error("cannot create the folder {}: {source}", folder.display())]
    Folder {
        /// Which one.
        folder: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file or its folder cannot be opened or written.
    #[error(
        "cannot open {} for writing: {source}; the file and its folder must be writable",
        path.display()
    )]
    Permission {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The file is something else, or broken.
    #[error("{} is not a SQLite database: {source}", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// A newer version of this program has migrated the database.
    #[error(
        "{} was migrated by a newer version of this program ({component} {found}; this one knows \
         {known}); start the newer version",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Which part of the schema.
        component: String,
        /// What the database says.
        found: String,
        /// What this program knows.
        known: String,
    },
    /// A migration that was applied has another text by now.
    #[error(
        "migration {name:?} of {service} was changed after it had been applied to {}; restore it \
         and add a new migration instead",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Whose migration.
        service: String,
        /// Which migration.
        name: String,
    },
    /// A migration failed and was undone.
    #[error("migration {name:?} of {service} failed on {}: {source}", path.display())]
    Migration {
        /// The file.
        path: PathBuf,
        /// Whose migration.
        service: String,
        /// Which migration.
        name: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// Anything else.
    #[error("cannot open {}: {source}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: BoxError,
    },
}

/// The primary result codes of SQLite that decide what is done next
/// (<https://www.sqlite.org/rescode.html>).
pub(crate) mod code {
    pub(crate) const PERM: i32 = 3;
    pub(crate) const BUSY: i32 = 5;
    pub(crate) const LOCKED: i32 = 6;
    pub(crate) const READONLY: i32 = 8;
    pub(crate) const CANTOPEN: i32 = 14;
    pub(crate) const CORRUPT: i32 = 11;
    pub(crate) const FULL: i32 = 13;
    pub(crate) const CONSTRAINT: i32 = 19;
    pub(crate) const NOTADB: i32 = 26;
}

/// The primary result code of an error of the driver, if it is one of SQLite.
pub(crate) fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let extended: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(extended & 0xff)
}

/// Whether another process or connection is in the way for now.
pub(crate) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(code::BUSY | code::LOCKED))
}

/// The error of an attempted statement, for the ports.
pub(crate) fn store_error(action: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |error| {
        if is_busy(&error) {
            StoreError::Busy(error.into())
        } else {
            StoreError::Failed { action, source: error.into() }
        }
    }
}

/// The error of an attempt to open the file at `path`.
pub(crate) fn open_error(path: &Path, primary: Option<i32>, source: BoxError) -> OpenError {
    let path = path.to_owned();
    match primary {
        Some(code::PERM | code::READONLY | code::CANTOPEN) => {
            OpenError::Permission { path, source }
        }
        Some(code::NOTADB | code::CORRUPT) => OpenError::NotADatabase { path, source },
        _ => OpenError::Failed { path, source },
    }
}
