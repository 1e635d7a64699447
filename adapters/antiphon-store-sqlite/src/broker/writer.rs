//! The thread that writes: what is asked of it at the same time is done in one transaction.
//!
//! A commit costs the same for one change as for hundreds, so while one runs, the next ones gather.
//! Each is answered after the commit that contains it.

use std::path::Path;
use std::sync::mpsc;

use antiphon_sqlbroker::{Change, Failure, Job, Outcome};
use rusqlite::{Connection, Result as SqlResult};

use super::database::primary_code;
use super::log::not_made;
use super::{answers, dead, publish, rows, topology, trim};
use crate::error::code;

/// Changes that go into one transaction at most.
const GATHER_MAX: usize = 512;

/// Where changes are handed in. The thread ends with it.
pub(super) struct Writer(mpsc::Sender<Job>);

impl Writer {
    /// Starts the thread.
    pub(super) fn start(connection: Connection, path: &Path) -> std::io::Result<Self> {
        let (sender, jobs) = mpsc::channel();
        let name = format!("write {}", path.file_name().unwrap_or_default().display());
        std::thread::Builder::new().name(name).spawn(move || run(&connection, &jobs))?;
        Ok(Self(sender))
    }

    pub(super) fn write(&self, job: Job) {
        // When the thread is gone, the job is dropped, and whoever waits hears that.
        drop(self.0.send(job));
    }
}

fn run(connection: &Connection, jobs: &mpsc::Receiver<Job>) {
    let mut gathered = Vec::new();
    let mut results = Vec::new();
    while let Ok(job) = jobs.recv() {
        gathered.push(job);
        while gathered.len() < GATHER_MAX
            && let Ok(job) = jobs.try_recv()
        {
            gathered.push(job);
        }
        let committed = transaction(connection, &gathered, &mut results);
        let mut results = results.drain(..);
        for job in gathered.drain(..) {
            let outcome = match (results.next(), &committed) {
                (Some(Ok(outcome)), Ok(())) => Ok(outcome),
                (Some(Err(error)), _) => Err(not_made(error)),
                (_, Err(failure)) => Err(failure.clone()),
                (None, Ok(())) => Err(Failure::NotMade("it was not attempted".into())),
            };
            job.finish(outcome);
        }
    }
}

fn transaction(
    connection: &Connection,
    jobs: &[Job],
    results: &mut Vec<SqlResult<Outcome>>,
) -> Result<(), Failure> {
    let step = |sql: &str| connection.prepare_cached(sql)?.execute([]).map(drop);
    step("BEGIN IMMEDIATE").map_err(not_made)?;
    for job in jobs {
        // One that fails must not undo the others.
        let begun = step("SAVEPOINT change");
        let ended = match begun {
            Err(error) => Err(error),
            Ok(()) => {
                let made = make(connection, &job.change);
                let kept = made.is_ok();
                results.push(made);
                if kept {
                    step("RELEASE change")
                } else {
                    step("ROLLBACK TO change").and_then(|()| step("RELEASE change"))
                }
            }
        };
        if let Err(error) = ended {
            // SQLite has given the whole transaction up, or is about to.
            if !connection.is_autocommit() {
                drop(step("ROLLBACK"));
            }
            return Err(not_made(error));
        }
    }
    step("COMMIT").map_err(|error| {
        if !connection.is_autocommit() {
            drop(step("ROLLBACK"));
        }
        match primary_code(&error) {
            Some(code::BUSY | code::FULL | code::READONLY | code::CONSTRAINT) => not_made(error),
            _ => Failure::Unknown(error.to_string()),
        }
    })
}

/// Makes a change in the open transaction.
fn make(connection: &Connection, change: &Change) -> SqlResult<Outcome> {
    match change {
        Change::Declare(topology) => topology::declare(connection, topology).map(done),
        Change::Publish(rows) => publish::insert(connection, rows).map(Outcome::Published),
        Change::Beat(member, beat) => {
            rows::heartbeat(connection, member, beat).map(Outcome::Shared)
        }
        Change::Advance { group, progress } => {
            rows::advance(connection, *group, progress).map(Outcome::Lost)
        }
        Change::Release { member, progress, claimed } => {
            rows::release(connection, member, progress, claimed).map(done)
        }
        Change::Leave { member, progress } => rows::leave(connection, member, progress).map(done),
        Change::Park { place, token, due, attempts } => {
            let held = rows::holds(connection, place.group, place.lane, *token)?;
            if held {
                rows::park(connection, place, *due, *attempts)?;
            }
            Ok(Outcome::Held(held))
        }
        Change::Bury { place, token, id, reason, at } => {
            let held = rows::holds(connection, place.group, place.lane, *token)?;
            if held {
                rows::bury(connection, place, *id, reason, *at)?;
            }
            Ok(Outcome::Held(held))
        }
        Change::Settle { place, owner, verdict } => {
            rows::settle_claimed(connection, place, owner, verdict).map(Outcome::Held)
        }
        Change::BuryForeign { group, message, reason, at } => {
            dead::bury(connection, group, message, reason, *at).map(Outcome::Held)
        }
        Change::Redrive { group, ids } => {
            dead::change(connection, *group, ids, dead::redrive).map(Outcome::Count)
        }
        Change::Discard { group, ids } => {
            dead::change(connection, *group, ids, dead::discard).map(Outcome::Count)
        }
        Change::MoveDue { now } => trim::move_due(connection, *now).map(Outcome::Published),
        Change::Trim => trim::remove(connection).map(Outcome::More),
        Change::Answer { address, message, at } => {
            answers::lay(connection, address, message, *at).map(done)
        }
        Change::TakeAnswers { addresses } => {
            answers::take(connection, addresses).map(Outcome::Answers)
        }
        Change::ForgetAnswers { before } => answers::forget(connection, *before).map(done),
    }
}

fn done((): ()) -> Outcome {
    Outcome::Done
}
