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

// Rows of the outbox come and go by the thousand: vacuum follows at once, and statistics, which
// would be of a table that is full now and empty then, are not kept. Sequences give one number at a
// time: a session that keeps some for later would write them after higher ones.
//
// Counters have a row per writer (`shard`), so that no two transactions wait for each other.
//
// The tables of the inbox are made day by day, see `store/inbox.rs`.
const STORE_1: &str = "
CREATE SEQUENCE antiphon_token CACHE 1;
CREATE SEQUENCE antiphon_outbox_seq CACHE 1;

CREATE TABLE antiphon_outbox (
    lane  integer NOT NULL,
    seq   bigint NOT NULL,
    id    uuid NOT NULL,
    topic text NOT NULL,
    kind  text NOT NULL,
    head  bytea NOT NULL,
    body  bytea NOT NULL,
    PRIMARY KEY (lane, seq)
) WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_threshold = 2000000000,
    toast.autovacuum_vacuum_scale_factor = 0,
    toast.autovacuum_vacuum_threshold = 2000,
    toast.autovacuum_vacuum_cost_delay = 0
);

CREATE TABLE antiphon_outbox_delayed (
    lane  integer NOT NULL,
    seq   bigint NOT NULL,
    due   bigint NOT NULL,
    id    uuid NOT NULL,
    topic text NOT NULL,
    kind  text NOT NULL,
    head  bytea NOT NULL,
    body  bytea NOT NULL,
    PRIMARY KEY (lane, seq)
) WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_threshold = 2000000000
);
CREATE INDEX antiphon_outbox_delayed_due ON antiphon_outbox_delayed (lane, due);

CREATE TABLE antiphon_outbox_buried (
    seq    bigint PRIMARY KEY,
    at     bigint NOT NULL,
    reason text NOT NULL,
    id     uuid NOT NULL,
    topic  text NOT NULL,
    kind   text NOT NULL,
    head   bytea NOT NULL,
    body   bytea NOT NULL
);

CREATE TABLE antiphon_sent (
    topic     text COLLATE \"C\" NOT NULL,
    kind      text COLLATE \"C\" NOT NULL,
    shard     integer NOT NULL,
    confirmed bigint NOT NULL,
    PRIMARY KEY (topic, kind, shard)
) WITH (fillfactor = 50);

CREATE TABLE antiphon_lease (
    scope text COLLATE \"C\" NOT NULL,
    lane  integer NOT NULL,
    token bigint NOT NULL,
    owner text NOT NULL,
    until bigint NOT NULL,
    PRIMARY KEY (scope, lane)
) WITH (fillfactor = 50);

CREATE TABLE antiphon_instance (
    scope text COLLATE \"C\" NOT NULL,
    owner text COLLATE \"C\" NOT NULL,
    seen  bigint NOT NULL,
    PRIMARY KEY (scope, owner)
) WITH (fillfactor = 50);

CREATE TABLE antiphon_horizon (
    id uuid NOT NULL
);
INSERT INTO antiphon_horizon (id) VALUES ('00000000-0000-0000-0000-000000000000');

CREATE TABLE antiphon_handled (
    consumer   text COLLATE \"C\" NOT NULL,
    topic      text COLLATE \"C\" NOT NULL,
    kind       text COLLATE \"C\" NOT NULL,
    shard      integer NOT NULL,
    done       bigint NOT NULL,
    duplicates bigint NOT NULL,
    PRIMARY KEY (consumer, topic, kind, shard)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

CREATE TABLE antiphon_call (
    method       text COLLATE \"C\" NOT NULL,
    key          text COLLATE \"C\" NOT NULL,
    at           bigint NOT NULL,
    request_hash bigint NOT NULL,
    answer       bytea NOT NULL,
    PRIMARY KEY (method, key)
);
CREATE INDEX antiphon_call_at ON antiphon_call (at);
";

const SAGA_1: &str = "
CREATE TABLE antiphon_saga (
    id          uuid PRIMARY KEY,
    kind        text COLLATE \"C\" NOT NULL,
    correlation text COLLATE \"C\" NOT NULL,
    version     bigint NOT NULL,
    state       integer NOT NULL,
    parked      boolean NOT NULL,
    revision    bigint NOT NULL,
    wake_at     bigint,
    lane        integer NOT NULL,
    data        bytea NOT NULL,
    progress    text NOT NULL,
    created_at  bigint NOT NULL,
    updated_at  bigint NOT NULL,
    UNIQUE (correlation, kind)
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX antiphon_saga_wake ON antiphon_saga (wake_at, lane) WHERE wake_at IS NOT NULL;
CREATE INDEX antiphon_saga_live ON antiphon_saga (kind, version, state, parked) WHERE state < 2;
CREATE INDEX antiphon_saga_ended ON antiphon_saga (updated_at) WHERE state >= 2;

CREATE TABLE antiphon_barrier (
    saga    uuid NOT NULL,
    step    text COLLATE \"C\" NOT NULL,
    side    integer NOT NULL,
    at      bigint NOT NULL,
    blocked boolean NOT NULL,
    done    bytea,
    reason  text,
    message text,
    PRIMARY KEY (saga, step, side)
) WITH (fillfactor = 80);
CREATE INDEX antiphon_barrier_at ON antiphon_barrier (at);
";
