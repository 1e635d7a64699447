//! Instances that a file lists, followed while the file changes.
//!
//! What is watched is the folder of the file: a new version that is moved to its place, or a link in
//! the folder that is turned to another folder (as Kubernetes does with mounted settings), changes the
//! folder and not the file that was there. Where the system tells nothing, as on network file systems,
//! the time of the file is looked at every two seconds. A version that makes no sense is refused, and
//! callers keep what they have.

mod list;

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use antiphon_core::BoxFuture;
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::{Answers, Instance, RegistryError};

/// How long a folder must be quiet before the file is read: whoever writes it may not be done.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// After so many stretches of noise it is read all the same.
const DEBOUNCE_MAX: u32 = 10;
/// How often the time of the file is looked at.
const POLL: Duration = Duration::from_secs(2);

/// What a list of a file says, whenever the file changes.
///
/// The file is JSON when its name ends with `.json`, else TOML: lists by name, of addresses or of
/// tables that say more. Fields that are not known are mistakes.
///
/// ```toml
/// points = ["10.0.0.1:8080", "10.0.0.2:8080"]
///
/// [[orders]]
/// address = "10.0.1.1:8080"
/// weight = 2                        # 1 unless said
/// priority = 0                      # those with lower numbers first
/// zone = "a"
/// state = "draining"                # "serving" unless said
/// metadata = { version = "7" }
/// ```
pub struct Listed {
    path: PathBuf,
    list: String,
    poll: Duration,
    folder: Option<Folder>,
    /// What was read last; `None` when it is to be read whatever it is.
    seen: Option<Stamp>,
}

/// A version of a file, as far as can be told without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamp {
    Missing,
    There { modified: Option<SystemTime>, length: u64 },
}

/// Tells that something happened in a folder, where the system does.
struct Folder {
    changed: Arc<Notify>,
    _watcher: Option<RecommendedWatcher>,
}

impl Listed {
    /// The list of that name in the file.
    #[must_use]
    pub const fn new(path: PathBuf, list: String) -> Self {
        Self { path, list, poll: POLL, folder: None, seen: None }
    }

    async fn answer(&mut self) -> Result<Vec<Instance>, RegistryError> {
        let folder = self.folder.get_or_insert_with(|| Folder::watch(&self.path));
        let changed = Arc::clone(&folder.changed);
        let stamp = loop {
            let stamp = stamp(&self.path);
            if self.seen != Some(stamp) {
                break stamp;
            }
            // Nobody rings where the system tells nothing: then time passes.
            if timeout(self.poll, changed.notified()).await.is_ok() {
                settle(&changed).await;
            }
        };
        let path = self.path.clone();
        let content = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
        let content = content.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        match content {
            Ok(content) => {
                // Also a version that is refused is not read again until there is another.
                self.seen = Some(stamp);
                list::parse(&self.path, &content, &self.list)
            }
            Err(error) => {
                self.seen = (error.kind() == ErrorKind::NotFound).then_some(Stamp::Missing);
                let context = format!("{} cannot be read", self.path.display());
                Err(RegistryError::away(context, error))
            }
        }
    }
}

impl fmt::Debug for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listed")
            .field("path", &self.path)
            .field("list", &self.list)
            .finish_non_exhaustive()
    }
}

impl Answers for Listed {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, RegistryError>> {
        Box::pin(self.answer())
    }

    fn look_again(&mut self) {
        self.seen = None;
    }
}

impl Folder {
    fn watch(path: &Path) -> Self {
        let changed = Arc::new(Notify::new());
        let folder = path.parent().unwrap_or(path);
        let bell = Arc::clone(&changed);
        let told = move |event: notify::Result<notify::Event>| {
            let read_only = |kind: &EventKind| {
                matches!(kind, EventKind::Access(kind)
                    if *kind != AccessKind::Close(AccessMode::Write))
            };
            // Our own reading is an event, too.
            if event.is_ok_and(|event| read_only(&event.kind)) {
                return;
            }
            bell.notify_one();
        };
        let watcher = notify::recommended_watcher(told).and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        if let Err(error) = &watcher {
            tracing::info!(
                folder = %folder.display(),
                %error,
                "the system does not tell of changes in this folder; its file is looked at instead"
            );
        }
        Self { changed, _watcher: watcher.ok() }
    }
}

/// Waits until nothing rings any more.
async fn settle(changed: &Notify) {
    for _ in 0..DEBOUNCE_MAX {
        sleep(DEBOUNCE).await;
        // A ring since then is stored; without one this does not wait.
        if timeout(Duration::ZERO, changed.notified()).await.is_err() {
            return;
        }
    }
}

/// Follows links, so that another file behind the same name is another version.
fn stamp(path: &Path) -> Stamp {
    match std::fs::metadata(path) {
        Ok(file) => Stamp::There { modified: file.modified().ok(), length: file.len() },
        Err(_) => Stamp::Missing,
    }
}

#[cfg(test)]
mod tests;
