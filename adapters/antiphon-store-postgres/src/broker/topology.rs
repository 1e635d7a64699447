//! Topics and groups.

use std::collections::BTreeMap;

use antiphon_messaging::{LANES, Start, Topology};
use antiphon_sqlbroker::Joinable;
use sqlx::{PgConnection, Row};

use super::lanes::number;

type Result<T> = std::result::Result<T, sqlx::Error>;

const TOPIC: &str = "SELECT id FROM antiphon_mq_topic WHERE name = $1";
const GROUP: &str = "SELECT id FROM antiphon_mq_group WHERE name = $1";
const GROUP_LOCKED: &str = "SELECT id FROM antiphon_mq_group WHERE name = $1 FOR NO KEY UPDATE";

async fn find(connection: &mut PgConnection, sql: &'static str, name: &str) -> Result<Option<i64>> {
    let row = sqlx::query(sql).bind(name).fetch_all(connection).await?;
    row.first().map(|row| row.try_get(0)).transpose()
}

/// The number of a topic.
pub(super) async fn topic(connection: &mut PgConnection, name: &str) -> Result<Option<i64>> {
    find(connection, TOPIC, name).await
}

/// The number of a group.
pub(super) async fn group(connection: &mut PgConnection, name: &str) -> Result<Option<i64>> {
    find(connection, GROUP, name).await
}

/// The number of a group, whose row is locked until the end of the transaction.
pub(super) async fn group_locked(connection: &mut PgConnection, name: &str) -> Result<Option<i64>> {
    find(connection, GROUP_LOCKED, name).await
}

/// A group and which of the topics it reads.
pub(super) async fn joinable(
    connection: &mut PgConnection,
    name: &str,
    topics: &[String],
) -> Result<Option<Joinable>> {
    let Some(group) = group(connection, name).await? else { return Ok(None) };
    let rows = sqlx::query(
        "SELECT DISTINCT t.name, t.id FROM antiphon_mq_topic t
           JOIN antiphon_mq_cursor c ON c.grp = $1 AND c.topic = t.id
          WHERE t.name = ANY($2)",
    )
    .bind(group)
    .bind(topics)
    .fetch_all(connection)
    .await?;
    let mut numbers: BTreeMap<String, i64> = BTreeMap::new();
    for row in &rows {
        numbers.insert(row.try_get(0)?, row.try_get(1)?);
    }
    let topics = topics.iter().map(|topic| numbers.get(topic).copied()).collect();
    Ok(Some(Joinable { group, topics }))
}

/// Whether there is nothing to declare.
pub(super) async fn is_declared(
    connection: &mut PgConnection,
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
pub(super) async fn declare_topic(connection: &mut PgConnection, name: &str) -> Result<i64> {
    if let Some(id) = topic(connection, name).await? {
        return Ok(id);
    }
    let make = "INSERT INTO antiphon_mq_topic (name) VALUES ($1)
                ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id";
    let id: i64 = sqlx::query(make).bind(name).fetch_one(&mut *connection).await?.try_get(0)?;
    let tail = "INSERT INTO antiphon_mq_tail (topic, first) VALUES ($1, 1) ON CONFLICT DO NOTHING";
    sqlx::query(tail).bind(id).execute(connection).await?;
    Ok(id)
}

/// Makes what is missing, in the order of the names: others may be doing the same.
pub(super) async fn declare(connection: &mut PgConnection, topology: &Topology) -> Result<()> {
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
        let id = match group(connection, &declared.name).await? {
            Some(id) => id,
            None => {
                let make = "INSERT INTO antiphon_mq_group (name) VALUES ($1)
                            ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id";
                let made = sqlx::query(make).bind(&declared.name).fetch_one(&mut *connection);
                made.await?.try_get(0)?
            }
        };
        let of = declared.topics.iter().filter_map(|topic| numbers.get(topic.as_str()));
        sqlx::query(
            "INSERT INTO antiphon_mq_cursor (grp, topic, lane, position, low, open)
             SELECT $1, t.id, lane, CASE WHEN $3 THEN t.head ELSE 0 END,
                    CASE WHEN $3 THEN t.head ELSE 0 END + 1, ''
               FROM antiphon_mq_topic t, generate_series(0, $4 - 1) AS lane
              WHERE t.id = ANY($2)
              ORDER BY t.id, lane
             ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .bind(of.copied().collect::<Vec<i64>>())
        .bind(declared.start == Start::Latest)
        .bind(number(LANES))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
