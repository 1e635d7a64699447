//! The framework's own tables in a service's database.
//!
//! Each component has a number of steps; the database remembers how many were applied. A step that
//! was released is never changed, only followed by another one. The server commits each change of a
//! table at once, so every statement of a step can be run again: whatever was cut short is repaired.
//!
//! Names, keys and ids are columns of bytes: compared as they are, without a character set, and with
//! trailing spaces. Times are microseconds since the epoch.

/// The tables of one part of the framework.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Component {
    pub(crate) name: &'static str,
    pub(crate) steps: &'static [&'static str],
}

/// What a service's database has.
pub(crate) const STORE: &[Component] =
    &[Component { name: "store", steps: &[STORE_1] }, Component { name: "saga", steps: &[SAGA_1] }];

/// Whose rows the locks of keys are: `antiphon_key` has this many.
pub(crate) const KEY_SLOTS: u64 = 1_024;

/// Into how many partitions the days of the inbox are dealt.
pub(crate) const INBOX_PARTITIONS: i64 = 16;

// The outbox is ordered by lane and position, as it is read. Rows that are not due yet stand in
// lanes of their own, and `antiphon_outbox_due` says when they are.
//
// Counters have a row per shard, so that transactions do not wait for each other.
const STORE_1: &str = "
CREATE TABLE IF NOT EXISTS antiphon_outbox (
    lane  SMALLINT NOT NULL,
    seq   BIGINT NOT NULL AUTO_INCREMENT,
    id    BINARY(16) NOT NULL,
    topic VARBINARY(255) NOT NULL,
    kind  VARBINARY(255) NOT NULL,
    head  MEDIUMBLOB NOT NULL,
    body  LONGBLOB NOT NULL,
    PRIMARY KEY (lane, seq),
    KEY antiphon_outbox_seq (seq)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS antiphon_outbox_due (
    lane SMALLINT NOT NULL,
    seq  BIGINT NOT NULL,
    due  BIGINT NOT NULL,
    PRIMARY KEY (lane, seq),
    KEY antiphon_outbox_due_due (due)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS antiphon_outbox_buried (
    seq    BIGINT NOT NULL,
    at     BIGINT NOT NULL,
    reason BLOB NOT NULL,
    id     BINARY(16) NOT NULL,
    topic  VARBINARY(255) NOT NULL,
    kind   VARBINARY(255) NOT NULL,
    head   MEDIUMBLOB NOT NULL,
    body   LONGBLOB NOT NULL,
    PRIMARY KEY (seq),
    KEY antiphon_outbox_buried_at (at)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS antiphon_key (
    slot SMALLINT NOT NULL,
    PRIMARY KEY (slot)
) ENGINE = InnoDB;
INSERT IGNORE INTO antiphon_key (slot)
WITH four (n) AS (SELECT 0 UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3)
SELECT a.n + 4 * b.n + 16 * c.n + 64 * d.n + 256 * e.n
  FROM four AS a, four AS b, four AS c, four AS d, four AS e;

CREATE TABLE IF NOT EXISTS antiphon_sent (
    shard     SMALLINT NOT NULL,
    topic     VARBINARY(255) NOT NULL,
    kind      VARBINARY(255) NOT NULL,
    confirmed BIGINT NOT NULL,
    PRIMARY KEY (shard, topic, kind)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS antiphon_lease (
    scope VARBINARY(255) NOT NULL,
    lane  INT NOT NULL,
    token BIGINT NOT NULL,
    owner VARBINARY(255) NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (scope, lane)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS antiphon_instance (
    scope VARBINARY(255) NOT NULL,
    owner VARBINARY(255) NOT NULL,
    seen  BIGINT NOT NULL,
    PRIMARY KEY (scope, owner)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS antiphon_value (
    name   VARBINARY(32) NOT NULL,
    number BIGINT NOT NULL DEFAULT 0,
    bytes  BINARY(16) NOT NULL,
    PRIMARY KEY (name)
) ENGINE = InnoDB;
INSERT IGNORE INTO antiphon_value (name, number, bytes)
VALUES ('token', 0, x'00000000000000000000000000000000'),
       ('horizon', 0, x'00000000000000000000000000000000');

CREATE TABLE IF NOT EXISTS antiphon_inbox (
    day      INT NOT NULL,
    id       BINARY(16) NOT NULL,
    consumer VARBINARY(255) NOT NULL,
    PRIMARY KEY (day, id, consumer)
) ENGINE = InnoDB PARTITION BY HASH (day) PARTITIONS 16;

CREATE TABLE IF NOT EXISTS antiphon_handled (
    shard      SMALLINT NOT NULL,
    consumer   VARBINARY(255) NOT NULL,
    topic      VARBINARY(255) NOT NULL,
    kind       VARBINARY(255) NOT NULL,
    done       BIGINT NOT NULL,
    duplicates BIGINT NOT NULL,
    PRIMARY KEY (shard, consumer, topic, kind)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS antiphon_call (
    method       VARBINARY(255) NOT NULL,
    name         VARBINARY(255) NOT NULL,
    at           BIGINT NOT NULL,
    request_hash BIGINT NOT NULL,
    answer       LONGBLOB NOT NULL,
    PRIMARY KEY (method, name),
    KEY antiphon_call_at (at)
) ENGINE = InnoDB;
";

const SAGA_1: &str = "
CREATE TABLE IF NOT EXISTS antiphon_saga (
    id          BINARY(16) NOT NULL,
    kind        VARBINARY(255) NOT NULL,
    correlation VARBINARY(512) NOT NULL,
    version     BIGINT NOT NULL,
    state       SMALLINT NOT NULL,
    parked      SMALLINT NOT NULL,
    revision    BIGINT NOT NULL,
    wake_at     BIGINT NULL,
    lane        SMALLINT NOT NULL,
    data        LONGBLOB NOT NULL,
    progress    LONGBLOB NOT NULL,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    ended_at    BIGINT NULL,
    PRIMARY KEY (id),
    UNIQUE KEY antiphon_saga_correlation (correlation, kind),
    KEY antiphon_saga_wake (wake_at, lane),
    KEY antiphon_saga_live (state, kind, version, parked),
    KEY antiphon_saga_ended (ended_at)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS antiphon_barrier (
    saga    BINARY(16) NOT NULL,
    step    VARBINARY(255) NOT NULL,
    side    SMALLINT NOT NULL,
    at      BIGINT NOT NULL,
    blocked SMALLINT NOT NULL,
    done    LONGBLOB NULL,
    reason  BLOB NULL,
    message MEDIUMBLOB NULL,
    PRIMARY KEY (saga, step, side),
    KEY antiphon_barrier_at (at)
) ENGINE = InnoDB;
";
