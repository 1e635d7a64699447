//! Topics and groups.

use std::collections::BTreeMap;

use antiphon_messaging::{LANES, Start, Topology};
use antiphon_sqlbroker::Joinable;
use sqlx::{MySqlConnection, Row};

use super::lanes::{number, rows};
use crate::sql::{Sql, run, text};

type Result<T> = std::result::Result<T, sqlx::Error>;

async fn find(
    connection: &mut MySqlConnection,
    select: &str,
    name: &str,
    lock: &str,
) -> Result<Option<i64>> {
    let mut sql = Sql::new(select);
    sql.value(name).sql(lock);
    let answers = run(connection, sql).await?;
    rows(&answers, 0).first().map(|row| row.try_get(0)).transpose()
}

/// The number of a topic.
pub(super) async fn topic(connection: &mut MySqlConnection, name: &str) -> Result<Option<i64>> {
    find(connection, "SELECT id FROM antiphon_mq_topic WHERE name = ", name, "").await
}

/// The number of a group.
pub(super) async fn group(connection: &mut MySqlConnection, name: &str) -> Result<Option<i64>> {
    find(connection, "SELECT id FROM antiphon_mq_group WHERE name = ", name, "").await
}

/// The number of a group, whose row is locked until the end of the transaction.
pub(super) async fn group_locked(
    connection: &mut MySqlConnection,
    name: &str,
) -> Result<Option<i64>> {
    find(connection, "SELECT id FROM antiphon_mq_group WHERE name = ", name, " FOR UPDATE").await
}

/// A group and which of the topics it reads.
pub(super) async fn joinable(
    connection: &mut MySqlConnection,
    name: &str,
    topics: &[String],
) -> Result<Option<Joinable>> {
    let Some(group) = group(connection, name).await? else { return Ok(None) };
    let mut sql = Sql::new(
        "SELECT DISTINCT t.name, t.id FROM antiphon_mq_cursor c \
         JOIN antiphon_mq_topic t ON t.id = c.topic WHERE c.grp = ",
    );
    sql.number(group);
    let answers = run(connection, sql).await?;
    let mut numbers: BTreeMap<String, i64> = BTreeMap::new();
    for row in rows(&answers, 0) {
        numbers.insert(text(row, 0)?, row.try_get(1)?);
    }
    let topics = topics.iter().map(|topic| numbers.get(topic).copied()).collect();
    Ok(Some(Joinable { group, topics }))
}

/// Whether there is nothing to declare.
pub(super) async fn is_declared(
    connection: &mut MySqlConnection,
    topology: &Topology,
) -> Result<bool> {
    for name in &topology.topics {
        if topic(connection, name).await?.is_none() {
            return Ok(false);
        }
    }
    for group in &topology.groups {
        match joinable(connection, &group.name, &group.topics).await? {
            Some(found) if found.topics.iter().all(Option::is_some) => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// The number of a topic, which is made if it is not there.
pub(super) async fn declare_topic(connection: &mut MySqlConnection, name: &str) -> Result<i64> {
    if let Some(id) = topic(connection, name).await? {
        return Ok(id);
    }
    let mut sql = Sql::new("INSERT INTO antiphon_mq_topic (name) VALUES (");
    sql.value(name).sql(") ON DUPLICATE KEY UPDATE id = LAST_INSERT_ID(id); ");
    sql.sql("INSERT IGNORE INTO antiphon_mq_tail (topic, first) VALUES (LAST_INSERT_ID(), 1); ");
    sql.sql("SELECT id FROM antiphon_mq_topic WHERE name = ").value(name).sql(" FOR UPDATE");
    number(&run(connection, sql).await?, 2)
}

async fn declare_group(connection: &mut MySqlConnection, name: &str) -> Result<i64> {
    if let Some(id) = group(connection, name).await? {
        return Ok(id);
    }
    let mut sql = Sql::new("INSERT INTO antiphon_mq_group (name) VALUES (");
    sql.value(name).sql(") ON DUPLICATE KEY UPDATE id = LAST_INSERT_ID(id); ");
    sql.sql("SELECT id FROM antiphon_mq_group WHERE name = ").value(name).sql(" FOR UPDATE");
    number(&run(connection, sql).await?, 1)
}

/// Makes what is missing, in the order of the names: others may be doing the same.
pub(super) async fn declare(connection: &mut MySqlConnection, topology: &Topology) -> Result<()> {
    let mut topics: Vec<&String> = topology.topics.iter().collect();
    topics.extend(topology.groups.iter().flat_map(|group| &group.topics));
    topics.sort_unstable();
    topics.dedup();
    let mut numbers: BTreeMap<&str, i64> = BTreeMap::new();
    for topic in topics {
        numbers.insert(topic, declare_topic(connection, topic).await?);
    }
    let mut groups: Vec<_> = topology.groups.iter().collect();
    groups.sort_by(|one, other| one.name.cmp(&other.name));
    for declared in groups {
        let group = declare_group(connection, &declared.name).await?;
        let mut sql = Sql::default();
        for topic in declared.topics.iter().filter_map(|topic| numbers.get(topic.as_str())) {
            for lane in 0..LANES {
                sql.sql(
                    "INSERT IGNORE INTO antiphon_mq_cursor (grp, topic, lane, position, low, open) \
                     SELECT ",
                );
                sql.number(group).sql(", id, ").number(lane);
                // What was published before belongs to a new group, or does not.
                sql.sql(match declared.start {
                    Start::Latest => ", head, head + 1, ''",
                    Start::Earliest => ", 0, 1, ''",
                });
                sql.sql(" FROM antiphon_mq_topic WHERE id = ").number(*topic).sql("; ");
            }
        }
        if sql.len() > 0 {
            run(connection, sql).await?;
        }
    }
    Ok(())
}
