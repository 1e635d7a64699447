//! The thread that reads, and that notices what other processes have committed.
//!
//! SQLite has no way to be told of a commit in another process. `PRAGMA data_version` is a look at
//! shared memory that takes microseconds, so the thread looks a hundred times a second while it has
//! nothing else to do.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::Connection;

/// How long a commit of another process stays unnoticed at most.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// While there is much to read, every so many jobs.
const JOBS_PER_LOOK: u32 = 64;

type Job = Box<dyn FnOnce(&Connection) + Send>;

/// Where reads are handed in. The thread ends with it.
pub(super) struct Reader(mpsc::Sender<Job>);

impl Reader {
    /// Starts the thread. `changed` is called on it when another connection has committed; it
    /// answers whether anybody is left to be told.
    pub(super) fn start(
        connection: Connection,
        path: &Path,
        changed: impl Fn() -> bool + Send + 'static,
    ) -> std::io::Result<Self> {
        let (sender, jobs) = mpsc::channel::<Job>();
        let name = format!("read {}", path.file_name().unwrap_or_default().display());
        std::thread::Builder::new().name(name).spawn(move || {
            let mut seen = version(&connection);
            let mut unlooked = 0;
            loop {
                match jobs.recv_timeout(LOOK_EVERY) {
                    Ok(job) => job(&connection),
                    Err(mpsc::RecvTimeoutError::Timeout) => unlooked = JOBS_PER_LOOK,
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
                unlooked += 1;
                if unlooked > JOBS_PER_LOOK {
                    unlooked = 0;
                    let now = version(&connection);
                    if now != seen && !changed() {
                        return;
                    }
                    seen = now;
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Asks for a read, whose closure passes on what it found.
    pub(super) fn read(&self, job: impl FnOnce(&Connection) + Send + 'static) {
        // The thread outlives its senders, unless it panicked; then nothing can be read any more.
        drop(self.0.send(Box::new(job)));
    }
}

/// Changes with each commit of another connection; an error is a change as well.
fn version(connection: &Connection) -> Option<i64> {
    connection.prepare_cached("PRAGMA data_version").ok()?.query_row([], |row| row.get(0)).ok()
}
