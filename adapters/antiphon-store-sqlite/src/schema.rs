//! The framework's own tables in a service's database.
//!
//! Each component has a number of steps; the database remembers how many were applied. A step that
//! was released is never changed, only followed by another one.

/// The tables of one part of the framework.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Component {
    pub(crate) name: &'static str,
    pub(crate) steps: &'static [&'static str],
}

/// What a service's database has.
pub(crate) const STORE: &[Component] =
    &[Component { name: "store", steps: &[STORE_1] }, Component { name: "saga", steps: &[SAGA_1] }];

// Positions in the outbox are never used twice, although rows go: the last row stays as a tombstone
// (lane -1) when it is confirmed. AUTOINCREMENT would promise the same, and cost every transaction
// one more page.
const STORE_1: &str = "
CREATE TABLE antiphon_outbox (
    seq   INTEGER PRIMARY KEY,
    lane  INTEGER NOT NULL,
    due   INTEGER,
    id    BLOB NOT NULL,
    topic TEXT NOT NULL,
    kind  TEXT NOT NULL,
    head  BLOB NOT NULL,
    body  BLOB NOT NULL
);
CREATE INDEX antiphon_outbox_lane ON antiphon_outbox (lane, seq) WHERE due IS NULL;
CREATE INDEX antiphon_outbox_due ON antiphon_outbox (lane, due) WHERE due IS NOT NULL;

CREATE TABLE antiphon_outbox_buried (
    seq    INTEGER PRIMARY KEY,
    at     INTEGER NOT NULL,
    reason TEXT NOT NULL,
    id     BLOB NOT NULL,
    topic  TEXT NOT NULL,
    kind   TEXT NOT NULL,
    head   BLOB NOT NULL,
    body   BLOB NOT NULL
);

CREATE TABLE antiphon_sent (
    topic     TEXT NOT NULL,
    kind      TEXT NOT NULL,
    confirmed INTEGER NOT NULL,
    PRIMARY KEY (topic, kind)
) WITHOUT ROWID;

CREATE TABLE antiphon_lease (
    scope TEXT NOT NULL,
    lane  INTEGER NOT NULL,
    token INTEGER NOT NULL,
    owner TEXT NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (scope, lane)
) WITHOUT ROWID;

CREATE TABLE antiphon_instance (
    scope TEXT NOT NULL,
    owner TEXT NOT NULL,
    seen  INTEGER NOT NULL,
    PRIMARY KEY (scope, owner)
) WITHOUT ROWID;

CREATE TABLE antiphon_value (
    name  TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;
INSERT INTO antiphon_value (name, value) VALUES ('token', 0), ('horizon', zeroblob(16));

CREATE TABLE antiphon_inbox (
    id       BLOB NOT NULL,
    consumer TEXT NOT NULL,
    PRIMARY KEY (id, consumer)
) WITHOUT ROWID;

CREATE TABLE antiphon_handled (
    consumer   TEXT NOT NULL,
    topic      TEXT NOT NULL,
    kind       TEXT NOT NULL,
    done       INTEGER NOT NULL,
    duplicates INTEGER NOT NULL,
    PRIMARY KEY (consumer, topic, kind)
) WITHOUT ROWID;

CREATE TABLE antiphon_call (
    method       TEXT NOT NULL,
    key          TEXT NOT NULL,
    at           INTEGER NOT NULL,
    request_hash INTEGER NOT NULL,
    answer       BLOB NOT NULL,
    UNIQUE (method, key)
);
CREATE INDEX antiphon_call_at ON antiphon_call (at);
";

const SAGA_1: &str = "
CREATE TABLE antiphon_saga (
    id          BLOB PRIMARY KEY,
    kind        TEXT NOT NULL,
    correlation TEXT NOT NULL,
    version     INTEGER NOT NULL,
    state       INTEGER NOT NULL,
    parked      INTEGER NOT NULL,
    revision    INTEGER NOT NULL,
    wake_at     INTEGER,
    lane        INTEGER NOT NULL,
    data        BLOB NOT NULL,
    progress    TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    UNIQUE (correlation, kind)
) WITHOUT ROWID;
CREATE INDEX antiphon_saga_wake ON antiphon_saga (wake_at, lane) WHERE wake_at IS NOT NULL;
CREATE INDEX antiphon_saga_live ON antiphon_saga (kind, version, state, parked) WHERE state < 2;
CREATE INDEX antiphon_saga_ended ON antiphon_saga (updated_at) WHERE state >= 2;

CREATE TABLE antiphon_barrier (
    saga    BLOB NOT NULL,
    step    TEXT NOT NULL,
    side    INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    blocked INTEGER NOT NULL,
    done    BLOB,
    reason  TEXT,
    message TEXT,
    PRIMARY KEY (saga, step, side)
) WITHOUT ROWID;
CREATE INDEX antiphon_barrier_at ON antiphon_barrier (at);
";
