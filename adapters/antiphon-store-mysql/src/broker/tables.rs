//! The broker's tables. All names begin with `antiphon_mq_`, so a store and a broker can share a
//! database.
//!
//! * `topic`: `head` is the last position that was given out. A transaction that publishes takes
//!   its positions here as its last lock, and so commits in their order: see
//!   `docs/adr/0014-sql-broker-on-servers.md`. `tail`: the first position that may still have a row.
//! * `log`: the messages; rows are only ever added at the head and removed at the tail.
//! * `cursor`: how far a group has come in each lane of a topic: everything up to `position` was
//!   settled, except the positions in `open`. `low` is the first position that it still needs,
//!   `token` that of the lease of its lane: every write for a lane names it.
//! * `lease`: which member of a group has which lane; tokens are drawn from `value`.
//! * `waiting`: messages of one group that come (again) later: retries, what an ordered group holds
//!   back behind them, and redriven dead letters. A row with an `owner` is in the hands of a member
//!   that has given its lane away, and is due when that member gives it back or is gone.
//! * `delayed`: published messages that are not due; they are moved to the log when they are.
//! * `dead` and `death`: dead letters, and every time that each has died.
//! * `answer`: answers that the process at `address` has not taken.

use crate::schema::Component;

/// What a broker's database has.
pub(super) const BROKER: &[Component] = &[Component { name: "broker", steps: &[BROKER_1] }];

const BROKER_1: &str = "
CREATE TABLE IF NOT EXISTS antiphon_mq_topic (
    id   BIGINT NOT NULL AUTO_INCREMENT,
    name VARBINARY(255) NOT NULL,
    head BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (id),
    UNIQUE KEY antiphon_mq_topic_name (name)
) ENGINE = InnoDB;
CREATE TABLE IF NOT EXISTS antiphon_mq_tail (
    topic BIGINT NOT NULL,
    first BIGINT NOT NULL,
    PRIMARY KEY (topic)
) ENGINE = InnoDB;
CREATE TABLE IF NOT EXISTS antiphon_mq_group (
    id        BIGINT NOT NULL AUTO_INCREMENT,
    name      VARBINARY(255) NOT NULL,
    stirred   BIGINT NOT NULL DEFAULT 0,
    regrouped BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (id),
    UNIQUE KEY antiphon_mq_group_name (name)
) ENGINE = InnoDB;
CREATE TABLE IF NOT EXISTS antiphon_mq_value (
    name   VARBINARY(16) NOT NULL,
    number BIGINT NOT NULL,
    PRIMARY KEY (name)
) ENGINE = InnoDB;
INSERT IGNORE INTO antiphon_mq_value (name, number) VALUES ('token', 0);

CREATE TABLE IF NOT EXISTS antiphon_mq_log (
    topic BIGINT NOT NULL,
    seq   BIGINT NOT NULL,
    lane  SMALLINT NOT NULL,
    id    VARBINARY(16) NOT NULL,
    kind  BLOB NOT NULL,
    head  MEDIUMBLOB NOT NULL,
    body  LONGBLOB NOT NULL,
    PRIMARY KEY (topic, seq)
) ENGINE = InnoDB;
CREATE TABLE IF NOT EXISTS antiphon_mq_cursor (
    grp      BIGINT NOT NULL,
    topic    BIGINT NOT NULL,
    lane     SMALLINT NOT NULL,
    token    BIGINT NOT NULL DEFAULT 0,
    position BIGINT NOT NULL,
    low      BIGINT NOT NULL,
    open     MEDIUMBLOB NOT NULL,
    PRIMARY KEY (grp, topic, lane)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS antiphon_mq_member (
    grp   BIGINT NOT NULL,
    owner VARBINARY(64) NOT NULL,
    until BIGINT NOT NULL,
    idle  SMALLINT NOT NULL,
    PRIMARY KEY (grp, owner)
) ENGINE = InnoDB;
CREATE TABLE IF NOT EXISTS antiphon_mq_lease (
    grp   BIGINT NOT NULL,
    lane  SMALLINT NOT NULL,
    token BIGINT NOT NULL,
    owner VARBINARY(64) NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (grp, lane)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS antiphon_mq_waiting (
    grp      BIGINT NOT NULL,
    topic    BIGINT NOT NULL,
    seq      BIGINT NOT NULL,
    lane     SMALLINT NOT NULL,
    `key`    BLOB NOT NULL,
    due      BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    owner    VARBINARY(64) NOT NULL DEFAULT '',
    id       VARBINARY(16) NOT NULL,
    kind     BLOB NOT NULL,
    head     MEDIUMBLOB NOT NULL,
    body     LONGBLOB NOT NULL,
    PRIMARY KEY (grp, topic, seq),
    KEY antiphon_mq_waiting_lane (grp, lane),
    KEY antiphon_mq_waiting_owner (grp, owner)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS antiphon_mq_delayed (
    n     BIGINT NOT NULL AUTO_INCREMENT,
    due   BIGINT NOT NULL,
    topic BIGINT NOT NULL,
    lane  SMALLINT NOT NULL,
    id    VARBINARY(16) NOT NULL,
    kind  BLOB NOT NULL,
    head  MEDIUMBLOB NOT NULL,
    body  LONGBLOB NOT NULL,
    PRIMARY KEY (n),
    KEY antiphon_mq_delayed_due (due, n)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS antiphon_mq_dead (
    grp   BIGINT NOT NULL,
    id    VARBINARY(16) NOT NULL,
    topic BIGINT NOT NULL,
    seq   BIGINT NOT NULL,
    lane  SMALLINT NOT NULL,
    `key` BLOB NOT NULL,
    kind  BLOB NOT NULL,
    head  MEDIUMBLOB NOT NULL,
    body  LONGBLOB NOT NULL,
    PRIMARY KEY (grp, id)
) ENGINE = InnoDB;
CREATE TABLE IF NOT EXISTS antiphon_mq_death (
    n        BIGINT NOT NULL AUTO_INCREMENT,
    grp      BIGINT NOT NULL,
    id       VARBINARY(16) NOT NULL,
    code     BLOB NOT NULL,
    error    BLOB NOT NULL,
    attempts BIGINT NOT NULL,
    at       BIGINT NOT NULL,
    PRIMARY KEY (n),
    KEY antiphon_mq_death_id (grp, id)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS antiphon_mq_answer (
    n       BIGINT NOT NULL AUTO_INCREMENT,
    address VARBINARY(255) NOT NULL,
    at      BIGINT NOT NULL,
    topic   BLOB NOT NULL,
    id      VARBINARY(16) NOT NULL,
    kind    BLOB NOT NULL,
    head    MEDIUMBLOB NOT NULL,
    body    LONGBLOB NOT NULL,
    PRIMARY KEY (n),
    KEY antiphon_mq_answer_address (address, n)
) ENGINE = InnoDB;
";
