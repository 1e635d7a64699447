//! Where a database lies: from a path or URL to a file whose folder exists.

use std::path::{Path, PathBuf};

use crate::error::OpenError;

/// Turns `sqlite:data/orders.db`, `sqlite:///var/orders.db` or a plain path into a path, and makes
/// its folder.
///
/// # Errors
/// The URL has parameters or names memory, the path is a folder, or its folder cannot be made.
pub(crate) fn prepare(location: &str) -> Result<PathBuf, OpenError> {
    let path = path_of(location)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .map_err(|source| OpenError::Folder { folder: folder.to_owned(), source })?;
    }
    if path.is_dir() {
        return Err(OpenError::Location {
            location: location.to_owned(),
            problem: "this is a folder; name a file in it",
        });
    }
    Ok(path)
}

fn path_of(location: &str) -> Result<PathBuf, OpenError> {
    let refuse = |problem| OpenError::Location { location: location.to_owned(), problem };
    let path = match location.strip_prefix("sqlite:") {
        Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
        None => location,
    };
    if path.is_empty() {
        return Err(refuse("the path is missing"));
    }
    if path.contains(":memory:") {
        return Err(refuse(
            "a database in memory cannot be shared by connections; name a file in a temporary folder",
        ));
    }
    if location.starts_with("sqlite:") && path.contains('?') {
        return Err(refuse("URL parameters are not known; use the settings"));
    }
    Ok(Path::new(path).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_paths_name_files() {
        for (location, path) in [
            ("sqlite:a/b.db", "a/b.db"),
            ("sqlite://a/b.db", "a/b.db"),
            ("sqlite:///a/b.db", "/a/b.db"),
            ("/a/b.db", "/a/b.db"),
        ] {
            assert_eq!(path_of(location).unwrap(), Path::new(path), "{location}");
        }
    }

    #[test]
    fn what_cannot_be_a_shared_file_is_refused() {
        for location in ["", "sqlite:", "sqlite::memory:", "sqlite:a.db?mode=ro"] {
            assert!(path_of(location).is_err(), "{location}");
        }
    }
}
