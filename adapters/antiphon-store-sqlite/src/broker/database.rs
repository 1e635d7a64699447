//! The broker's file: how it is opened, and its tables.
//!
//! * `log_<topic>`: the messages of a topic in the order of their commits; rows are only ever added
//!   at the end and removed at the beginning. The very last row stays, so that no position is used
//!   twice.
//! * `cursor`: how far a group has come in each lane of a topic: everything up to `position` was
//!   settled, except the positions in `open`. `low` is the first position it still needs.
//! * `lease`: which member of a group has which lane; every write for a lane checks its token.
//! * `waiting`: messages of one group that come (again) later: retries, what an ordered group holds
//!   back behind them, and redriven dead letters. A row with an `owner` is in the hands of a member
//!   that has given its lane away, and is due when that member gives it back or is gone.
//! * `delayed`: published messages that are not due; they are moved to the log when they are.
//! * `dead` and `death`: dead letters, and every time that each has died.
//! * `answer`: answers that the process at `address` has not taken.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::error::{OpenError, open_error};
use crate::settings::Settings;

const STEPS: &[&str] = &[STEP_1, STEP_2];

const STEP_1: &str = "
CREATE TABLE topic (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE grp (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE value (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO value (name, value) VALUES ('token', 0), ('stirred', 0);

CREATE TABLE cursor (
    grp      INTEGER NOT NULL,
    topic    INTEGER NOT NULL,
    lane     INTEGER NOT NULL,
    position INTEGER NOT NULL,
    open     BLOB NOT NULL,
    low      INTEGER NOT NULL,
    PRIMARY KEY (grp, topic, lane)
) WITHOUT ROWID;
CREATE INDEX cursor_low ON cursor (topic, low);

CREATE TABLE member (
    grp   INTEGER NOT NULL,
    owner TEXT NOT NULL,
    until INTEGER NOT NULL,
    idle  INTEGER NOT NULL,
    PRIMARY KEY (grp, owner)
) WITHOUT ROWID;
CREATE TABLE lease (
    grp   INTEGER NOT NULL,
    lane  INTEGER NOT NULL,
    token INTEGER NOT NULL,
    owner TEXT NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (grp, lane)
) WITHOUT ROWID;

CREATE TABLE waiting (
    grp      INTEGER NOT NULL,
    topic    INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    lane     INTEGER NOT NULL,
    key      TEXT NOT NULL,
    due      INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    owner    TEXT NOT NULL DEFAULT '',
    id       BLOB NOT NULL,
    kind     TEXT NOT NULL,
    head     BLOB NOT NULL,
    body     BLOB NOT NULL,
    UNIQUE (grp, topic, seq)
);
CREATE INDEX waiting_lane ON waiting (grp, lane);
CREATE INDEX waiting_owner ON waiting (grp, owner) WHERE owner <> '';

CREATE TABLE delayed (
    due   INTEGER NOT NULL,
    topic INTEGER NOT NULL,
    lane  INTEGER NOT NULL,
    id    BLOB NOT NULL,
    kind  TEXT NOT NULL,
    head  BLOB NOT NULL,
    body  BLOB NOT NULL
);
CREATE INDEX delayed_due ON delayed (due);

CREATE TABLE dead (
    grp   INTEGER NOT NULL,
    id    BLOB NOT NULL,
    topic INTEGER NOT NULL,
    seq   INTEGER NOT NULL,
    lane  INTEGER NOT NULL,
    key   TEXT NOT NULL,
    kind  TEXT NOT NULL,
    head  BLOB NOT NULL,
    body  BLOB NOT NULL,
    UNIQUE (grp, id)
);
CREATE TABLE death (
    grp      INTEGER NOT NULL,
    id       BLOB NOT NULL,
    code     TEXT NOT NULL,
    error    TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    at       INTEGER NOT NULL
);
CREATE INDEX death_id ON death (grp, id);
";

const STEP_2: &str = "
CREATE TABLE answer (
    n       INTEGER PRIMARY KEY,
    address TEXT NOT NULL,
    at      INTEGER NOT NULL,
    topic   TEXT NOT NULL,
    id      BLOB NOT NULL,
    kind    TEXT NOT NULL,
    head    BLOB NOT NULL,
    body    BLOB NOT NULL
);
CREATE INDEX answer_address ON answer (address, n);
";

/// How often the lock of another process is asked for before giving up, and how long between.
const BUSY_TRIES: i32 = 20_000;
const BUSY_WAIT: Duration = Duration::from_micros(500);

/// Opens the file for one thread.
pub(super) fn connect(path: &Path, settings: &Settings) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connect = || -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_handler(Some(wait_for_other_processes))?;
        connection.set_prepared_statement_cache_capacity(128);
        connection.execute_batch(&format!(
            "PRAGMA synchronous = {};
             PRAGMA journal_size_limit = 67108864;
             PRAGMA wal_autocheckpoint = 4000;
             PRAGMA temp_store = MEMORY;",
            settings.synchronous.pragma(),
        ))?;
        Ok(connection)
    };
    connect().map_err(failed(path))
}

/// Switches the file to write-ahead logging and brings its tables up to date.
pub(super) fn prepare(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let mut tries = 0;
    // SQLite does not wait for this lock by itself.
    while let Err(error) = connection.execute_batch("PRAGMA journal_mode = WAL") {
        if !is_busy(&error) || !wait_for_other_processes(tries) {
            return Err(failed(path)(error));
        }
        tries += 1;
    }
    connection.execute_batch("BEGIN IMMEDIATE").map_err(failed(path))?;
    let outcome = migrate(connection, path);
    let end = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
    connection.execute_batch(end).map_err(failed(path))?;
    outcome
}

fn migrate(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    connection
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS antiphon_schema (
                component TEXT PRIMARY KEY,
                version   INTEGER NOT NULL
             ) WITHOUT ROWID;
             INSERT OR IGNORE INTO antiphon_schema (component, version) VALUES ('broker', 0);",
        )
        .map_err(failed(path))?;
    let found: i64 = connection
        .query_row("SELECT version FROM antiphon_schema WHERE component = 'broker'", [], |row| {
            row.get(0)
        })
        .map_err(failed(path))?;
    let applied = usize::try_from(found).unwrap_or(0);
    if applied > STEPS.len() {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            component: "antiphon broker".into(),
            found: found.to_string(),
            known: STEPS.len().to_string(),
        });
    }
    for (index, step) in STEPS.iter().enumerate().skip(applied) {
        connection.execute_batch(step).map_err(failed(path))?;
        connection
            .execute(
                "UPDATE antiphon_schema SET version = ? WHERE component = 'broker'",
                [i64::try_from(index + 1).unwrap_or(i64::MAX)],
            )
            .map_err(failed(path))?;
    }
    Ok(())
}

/// The statement that makes the log of a topic.
pub(super) fn create_log(topic: i64) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS log_{topic} (
            seq  INTEGER PRIMARY KEY,
            lane INTEGER NOT NULL,
            id   BLOB NOT NULL,
            kind TEXT NOT NULL,
            head BLOB NOT NULL,
            body BLOB NOT NULL
         )"
    )
}

fn wait_for_other_processes(tries: i32) -> bool {
    std::thread::sleep(BUSY_WAIT.mul_f64(0.5 + fastrand::f64()));
    tries < BUSY_TRIES
}

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(primary_code(error), Some(crate::error::code::BUSY | crate::error::code::LOCKED))
}

pub(super) fn primary_code(error: &rusqlite::Error) -> Option<i32> {
    error.sqlite_error().map(|error| error.extended_code & 0xff)
}

fn failed(path: &Path) -> impl FnOnce(rusqlite::Error) -> OpenError {
    move |error| open_error(path, primary_code(&error), error.into())
}
