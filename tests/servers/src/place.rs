//! Where files of servers are.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::Trouble;

/// The folder of the servers: `antiphon/services` in the user's cache.
#[must_use]
pub fn folder() -> PathBuf {
    let cache = variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("antiphon/services")
}

/// A variable of the environment that is set to something.
#[expect(clippy::disallowed_methods, reason = "tests are told by variables where servers are")]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Creates a folder and those above it.
pub(crate) fn create(folder: &Path) -> Result<(), Trouble> {
    fs::create_dir_all(folder).map_err(|error| Trouble::file(folder, &error))
}

/// Writes a file that is not there or has another content.
pub(crate) fn write(path: &Path, content: &str) -> Result<(), Trouble> {
    if fs::read_to_string(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    fs::write(path, content).map_err(|error| Trouble::file(path, &error))
}

/// Removes a folder with everything in it; one that is not there is fine.
pub(crate) fn remove(folder: &Path) -> Result<(), Trouble> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Trouble::file(folder, &error))
        }
        _ => Ok(()),
    }
}

/// Whether every user can pass through a folder, which need not be there yet.
pub(crate) fn is_open_to_all(folder: &Path) -> bool {
    folder
        .ancestors()
        .filter_map(|part| fs::metadata(part).ok())
        .all(|part| part.permissions().mode() & 0o001 != 0)
}

/// Where a program is: in the PATH, or in one of `more`.
pub(crate) fn find(program: &str, more: &[&str]) -> Option<PathBuf> {
    let path = variable("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"])
        .chain(more.iter().copied())
        .filter(|folder| !folder.is_empty())
        .map(|folder| Path::new(folder).join(program))
        .find(|file| {
            fs::metadata(file).is_ok_and(|f| f.is_file() && f.permissions().mode() & 0o111 != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_where_they_are() {
        assert!(find("sh", &[]).is_some());
        assert_eq!(find("no-such-program", &["/usr/lib"]), None);
    }

    #[test]
    fn a_private_folder_is_not_open_to_all() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner/deeper");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!is_open_to_all(&inner));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(is_open_to_all(&inner));
    }

    #[test]
    fn what_is_written_already_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        write(&file, "one").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
        write(&file, "one").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "one");
    }
}
