//! Topics and groups.

use antiphon_messaging::{Group, LANES, Start, Topology};
use antiphon_sqlbroker::Joinable;
use rusqlite::{Connection, OptionalExtension, Result, params};

use super::database::create_log;

/// The number of a topic or group.
pub(super) fn find(
    connection: &Connection,
    table: &'static str,
    name: &str,
) -> Result<Option<i64>> {
    connection
        .prepare_cached(&format!("SELECT id FROM {table} WHERE name = ?"))?
        .query_row([name], |row| row.get(0))
        .optional()
}

/// The number of a topic, which is made if it is not there.
pub(super) fn declare_topic(connection: &Connection, name: &str) -> Result<i64> {
    if let Some(topic) = find(connection, "topic", name)? {
        return Ok(topic);
    }
    connection.execute("INSERT INTO topic (name) VALUES (?)", [name])?;
    let topic = connection.last_insert_rowid();
    connection.execute_batch(&create_log(topic))?;
    Ok(topic)
}

pub(super) fn is_declared(connection: &Connection, topology: &Topology) -> Result<bool> {
    for topic in &topology.topics {
        if find(connection, "topic", topic)?.is_none() {
            return Ok(false);
        }
    }
    for group in &topology.groups {
        if find(connection, "grp", &group.name)?.is_none() {
            return Ok(false);
        }
        for topic in &group.topics {
            if !reads(connection, &group.name, topic)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

pub(super) fn declare(connection: &Connection, topology: &Topology) -> Result<()> {
    let of_groups = topology.groups.iter().flat_map(|group| &group.topics);
    for topic in topology.topics.iter().chain(of_groups) {
        declare_topic(connection, topic)?;
    }
    topology.groups.iter().try_for_each(|group| declare_group(connection, group))
}

fn declare_group(connection: &Connection, group: &Group) -> Result<()> {
    connection.execute("INSERT OR IGNORE INTO grp (name) VALUES (?)", [&group.name])?;
    for topic in &group.topics {
        if reads(connection, &group.name, topic)? {
            continue;
        }
        let id = declare_topic(connection, topic)?;
        let position: i64 = match group.start {
            Start::Latest => {
                let last = format!("SELECT coalesce(max(seq), 0) FROM log_{id}");
                connection.query_row(&last, [], |row| row.get(0))?
            }
            Start::Earliest => 0,
        };
        for lane in 0..LANES {
            connection
                .prepare_cached(
                    "INSERT INTO cursor (grp, topic, lane, position, open, low)
                     SELECT grp.id, ?1, ?2, ?3, x'', ?3 + 1 FROM grp WHERE name = ?4",
                )?
                .execute(params![id, lane, position, group.name])?;
        }
    }
    Ok(())
}

/// Whether the group has a cursor in the topic.
fn reads(connection: &Connection, group: &str, topic: &str) -> Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM cursor JOIN grp ON grp.id = cursor.grp
               JOIN topic ON topic.id = cursor.topic
              WHERE grp.name = ? AND topic.name = ? LIMIT 1",
        )?
        .exists([group, topic])
}

/// A group and which of the topics it reads.
pub(super) fn joinable(
    connection: &Connection,
    name: &str,
    topics: &[String],
) -> Result<Option<Joinable>> {
    let Some(group) = find(connection, "grp", name)? else { return Ok(None) };
    let mut numbers = Vec::with_capacity(topics.len());
    for topic in topics {
        let id = find(connection, "topic", topic)?;
        numbers.push(if reads(connection, name, topic)? { id } else { None });
    }
    Ok(Some(Joinable { group, topics: numbers }))
}
