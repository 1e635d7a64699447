//! The broker's tables, in the schema that the role creates in. All names begin with `antiphon_mq_`,
//! so a store and a broker can share a database.
//!
//! * `topic`: `head` is the last position that was given out. A transaction that publishes takes
//!   its positions here as its last lock, and so commits in their order: see
//!   `docs/adr/0014-sql-broker-on-servers.md`. `tail`: the first position that may still have a row.
//! * `log`: the messages; rows are only ever added at the head and removed at the tail.
//! * `cursor`: how far a group has come in each lane of a topic: everything up to `position` was
//!   settled, except the positions in `open`. `low` is the first position that it still needs,
//!   `token` that of the lease of its lane: every write for a lane names it.
//! * `lease`: which member of a group has which lane; tokens come from a sequence.
//! * `waiting`: messages of one group that come (again) later: retries, what an ordered group holds
//!   back behind them, and redriven dead letters. A row with an `owner` is in the hands of a member
//!   that has given its lane away, and is due when that member gives it back or is gone.
//! * `delayed`: published messages that are not due; they are moved to the log when they are.
//! * `dead` and `death`: dead letters, and every time that each has died.
//! * `answer`: answers that the process at `address` has not taken.
//!
//! Kinds and keys are bytes, since a text of PostgreSQL cannot hold every string. Moments are
//! microseconds since 1970, except where leases are compared with the database's own clock.

use sqlx::{PgConnection, Row};

use crate::error::{OpenError, open_error};
use crate::location::Location;

/// A number that nobody else locks.
const LOCK: i64 = 0x616e_7469_6d71;

const STEPS: &[&str] = &[STEP_1];

/// Rows of these tables change often or live briefly. Cleaning up after some thousands, without
/// pauses, keeps them small whatever their size was once; bodies are not compressed, since that
/// costs more than it gives here.
const STEP_1: &str = "
CREATE TABLE antiphon_mq_topic (
    id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE \"C\" NOT NULL UNIQUE,
    head bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0);
CREATE TABLE antiphon_mq_tail (
    topic bigint PRIMARY KEY,
    first bigint NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE antiphon_mq_group (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name      text COLLATE \"C\" NOT NULL UNIQUE,
    stirred   bigint NOT NULL DEFAULT 0,
    regrouped bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE SEQUENCE antiphon_mq_token;

CREATE TABLE antiphon_mq_log (
    topic bigint NOT NULL,
    seq   bigint NOT NULL,
    lane  integer NOT NULL,
    id    bytea NOT NULL,
    kind  bytea NOT NULL,
    head  bytea NOT NULL,
    body  bytea NOT NULL,
    PRIMARY KEY (topic, seq)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_vacuum_insert_threshold = -1,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 100000);
ALTER TABLE antiphon_mq_log ALTER body SET STORAGE EXTERNAL, ALTER head SET STORAGE EXTERNAL;

CREATE TABLE antiphon_mq_cursor (
    grp      bigint NOT NULL,
    topic    bigint NOT NULL,
    lane     integer NOT NULL,
    token    bigint NOT NULL DEFAULT 0,
    position bigint NOT NULL,
    low      bigint NOT NULL,
    open     bytea NOT NULL,
    PRIMARY KEY (grp, topic, lane)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0);

CREATE TABLE antiphon_mq_member (
    grp   bigint NOT NULL,
    owner text COLLATE \"C\" NOT NULL,
    until timestamptz NOT NULL,
    idle  boolean NOT NULL,
    PRIMARY KEY (grp, owner)
) WITH (fillfactor = 50);
CREATE TABLE antiphon_mq_lease (
    grp   bigint NOT NULL,
    lane  integer NOT NULL,
    token bigint NOT NULL,
    owner text COLLATE \"C\" NOT NULL,
    until timestamptz NOT NULL,
    PRIMARY KEY (grp, lane)
) WITH (fillfactor = 50);

CREATE TABLE antiphon_mq_waiting (
    grp      bigint NOT NULL,
    topic    bigint NOT NULL,
    seq      bigint NOT NULL,
    lane     integer NOT NULL,
    key      bytea NOT NULL,
    due      bigint NOT NULL,
    attempts integer NOT NULL,
    owner    text COLLATE \"C\" NOT NULL DEFAULT '',
    id       bytea NOT NULL,
    kind     bytea NOT NULL,
    head     bytea NOT NULL,
    body     bytea NOT NULL,
    PRIMARY KEY (grp, topic, seq)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0);
ALTER TABLE antiphon_mq_waiting ALTER body SET STORAGE EXTERNAL, ALTER head SET STORAGE EXTERNAL;
CREATE INDEX antiphon_mq_waiting_lane ON antiphon_mq_waiting (grp, lane);
CREATE INDEX antiphon_mq_waiting_owner ON antiphon_mq_waiting (grp, owner) WHERE owner <> '';

CREATE TABLE antiphon_mq_delayed (
    n     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    due   bigint NOT NULL,
    topic bigint NOT NULL,
    lane  integer NOT NULL,
    id    bytea NOT NULL,
    kind  bytea NOT NULL,
    head  bytea NOT NULL,
    body  bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0);
ALTER TABLE antiphon_mq_delayed ALTER body SET STORAGE EXTERNAL, ALTER head SET STORAGE EXTERNAL;
CREATE INDEX antiphon_mq_delayed_due ON antiphon_mq_delayed (due, n);

CREATE TABLE antiphon_mq_dead (
    grp   bigint NOT NULL,
    id    bytea NOT NULL,
    topic bigint NOT NULL,
    seq   bigint NOT NULL,
    lane  integer NOT NULL,
    key   bytea NOT NULL,
    kind  bytea NOT NULL,
    head  bytea NOT NULL,
    body  bytea NOT NULL,
    PRIMARY KEY (grp, id)
);
CREATE TABLE antiphon_mq_death (
    n        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    grp      bigint NOT NULL,
    id       bytea NOT NULL,
    code     text NOT NULL,
    error    text NOT NULL,
    attempts bigint NOT NULL,
    at       bigint NOT NULL
);
CREATE INDEX antiphon_mq_death_id ON antiphon_mq_death (grp, id);

CREATE TABLE antiphon_mq_answer (
    n       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    address text COLLATE \"C\" NOT NULL,
    at      bigint NOT NULL,
    topic   bytea NOT NULL,
    id      bytea NOT NULL,
    kind    bytea NOT NULL,
    head    bytea NOT NULL,
    body    bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0);
CREATE INDEX antiphon_mq_answer_address ON antiphon_mq_answer (address, n);
";

/// Makes the tables, or brings them up to date; one process at a time.
pub(super) async fn prepare(
    connection: &mut PgConnection,
    location: &Location,
) -> Result<(), OpenError> {
    let prepared = async {
        run(connection, "BEGIN").await?;
        let found = migrate(connection).await?;
        run(connection, "COMMIT").await?;
        Ok(found)
    };
    let found = prepared.await.map_err(|error| open_error(&location.shown, error))?;
    match usize::try_from(found) {
        Ok(found) if found <= STEPS.len() => Ok(()),
        _ => Err(OpenError::Newer {
            database: location.shown.clone(),
            component: "antiphon broker".into(),
            found: found.to_string(),
            known: STEPS.len().to_string(),
        }),
    }
}

async fn run(connection: &mut PgConnection, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(sql).execute(connection).await.map(drop)
}

/// Applies the steps that are missing; answers with the version that was found.
async fn migrate(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *connection).await?;
    run(connection, "CREATE TABLE IF NOT EXISTS antiphon_mq_schema (version bigint NOT NULL)")
        .await?;
    let version = "SELECT coalesce(max(version), 0) FROM antiphon_mq_schema";
    let found: i64 = sqlx::query(version).fetch_one(&mut *connection).await?.get(0);
    for (index, step) in STEPS.iter().enumerate().skip(usize::try_from(found).unwrap_or(0)) {
        run(connection, step).await?;
        let version = i64::try_from(index + 1).unwrap_or(i64::MAX);
        sqlx::query("INSERT INTO antiphon_mq_schema (version) VALUES ($1)")
            .bind(version)
            .execute(&mut *connection)
            .await?;
    }
    Ok(found)
}
