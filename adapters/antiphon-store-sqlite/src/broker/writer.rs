//! The thread that writes: what is asked of it at the same time is done in one transaction.
//!
//! A commit costs the same for one change as for hundreds, so while one runs, the next ones gather.
//! Each is answered after the commit that contains it.

use std::path::Path;
use std::sync::mpsc;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::database::primary_code;
use crate::error::code;

/// Changes that go into one transaction at most.
const GATHER_MAX: usize = 512;

/// Why a change was not confirmed.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It was not made.
    #[error("not written: {0}")]
    RolledBack(String),
    /// Nobody knows.
    #[error("it is not known whether it was written: {0}")]
    Unknown(String),
}

/// Where changes are handed in. The thread ends with it.
pub(super) struct Writer(mpsc::Sender<Box<dyn Job>>);

impl Writer {
    /// Starts the thread.
    pub(super) fn start(connection: Connection, path: &Path) -> std::io::Result<Self> {
        let (sender, jobs) = mpsc::channel();
        let name = format!("write {}", path.file_name().unwrap_or_default().display());
        std::thread::Builder::new().name(name).spawn(move || run(&connection, &jobs))?;
        Ok(Self(sender))
    }

    /// Asks for a change; it is made whether or not the answer is awaited. `then` is called with
    /// the outcome, on the writing thread, before the answer is given.
    pub(super) fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        then: impl FnOnce(&Result<T, Failure>) + Send + 'static,
    ) -> Answer<T> {
        let (answer, receiver) = oneshot::channel();
        let change = Change { work: Some(change), then: Some(then), result: None, answer };
        // When the thread is gone, the answer's sender is dropped with the change.
        drop(self.0.send(Box::new(change)));
        Answer(receiver)
    }
}

/// The answer to a change, when it is committed.
pub(super) struct Answer<T>(oneshot::Receiver<Result<T, Failure>>);

impl<T> Answer<T> {
    pub(super) async fn get(self) -> Result<T, Failure> {
        match self.0.await {
            Ok(result) => result,
            Err(_) => Err(Failure::Unknown("the writing thread has ended".into())),
        }
    }
}

trait Job: Send {
    /// Makes the change in the open transaction; `false` when it failed.
    fn run(&mut self, connection: &Connection) -> bool;
    /// Answers.
    fn finish(self: Box<Self>, committed: &Result<(), Failure>);
}

struct Change<T, W, A> {
    work: Option<W>,
    then: Option<A>,
    result: Option<rusqlite::Result<T>>,
    answer: oneshot::Sender<Result<T, Failure>>,
}

impl<T, W, A> Job for Change<T, W, A>
where
    T: Send,
    W: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
    A: FnOnce(&Result<T, Failure>) + Send,
{
    fn run(&mut self, connection: &Connection) -> bool {
        self.result = self.work.take().map(|work| work(connection));
        matches!(self.result, Some(Ok(_)))
    }

    fn finish(mut self: Box<Self>, committed: &Result<(), Failure>) {
        let outcome = match (self.result.take(), committed) {
            (Some(Ok(value)), Ok(())) => Ok(value),
            (Some(Err(error)), _) => Err(Failure::RolledBack(error.to_string())),
            (_, Err(failure)) => Err(failure.clone()),
            (None, Ok(())) => Err(Failure::RolledBack("it was not attempted".into())),
        };
        if let Some(then) = self.then.take() {
            then(&outcome);
        }
        drop(self.answer.send(outcome));
    }
}

fn run(connection: &Connection, jobs: &mpsc::Receiver<Box<dyn Job>>) {
    let mut gathered = Vec::new();
    while let Ok(job) = jobs.recv() {
        gathered.push(job);
        while gathered.len() < GATHER_MAX
            && let Ok(job) = jobs.try_recv()
        {
            gathered.push(job);
        }
        let committed = transaction(connection, &mut gathered);
        for job in gathered.drain(..) {
            job.finish(&committed);
        }
    }
}

fn transaction(connection: &Connection, jobs: &mut [Box<dyn Job>]) -> Result<(), Failure> {
    let step = |sql: &str| connection.prepare_cached(sql)?.execute([]).map(drop);
    step("BEGIN IMMEDIATE").map_err(|error| Failure::RolledBack(error.to_string()))?;
    for job in jobs.iter_mut() {
        // One that fails must not undo the others.
        let begun = step("SAVEPOINT change");
        let kept = begun.is_ok() && job.run(connection);
        let ended = match (begun, kept) {
            (Err(error), _) => Err(error),
            (Ok(()), true) => step("RELEASE change"),
            (Ok(()), false) => step("ROLLBACK TO change").and_then(|()| step("RELEASE change")),
        };
        if let Err(error) = ended {
            // SQLite has given the whole transaction up, or is about to.
            if !connection.is_autocommit() {
                drop(step("ROLLBACK"));
            }
            return Err(Failure::RolledBack(error.to_string()));
        }
    }
    step("COMMIT").map_err(|error| {
        if !connection.is_autocommit() {
            drop(step("ROLLBACK"));
        }
        match primary_code(&error) {
            Some(code::BUSY | code::FULL | code::READONLY | code::CONSTRAINT) => {
                Failure::RolledBack(error.to_string())
            }
            _ => Failure::Unknown(error.to_string()),
        }
    })
}
