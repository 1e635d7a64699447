//! What there is to see for an operator.

use std::collections::BTreeMap;
use std::path::Path;

use antiphon_core::Finding;
use antiphon_messaging::{GroupState, TopicState};
use antiphon_sqlbroker::{Failure, unpack};
use rusqlite::{Connection, Result as SqlResult, Row, params};

use crate::settings::Synchronous;

pub(super) fn topics(connection: &Connection) -> SqlResult<Vec<TopicState>> {
    let mut topics: Vec<(i64, String)> = connection
        .prepare_cached("SELECT id, name FROM topic")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<SqlResult<_>>()?;
    topics.sort_by(|one, other| one.1.cmp(&other.1));
    let mut states = Vec::with_capacity(topics.len());
    for (id, name) in topics {
        let sql = format!(
            "SELECT (SELECT count(*) FROM log_{id})
                  + (SELECT count(*) FROM delayed WHERE topic = {id})"
        );
        let messages = connection.query_row(&sql, [], count)?;
        states.push(TopicState { name, messages: Some(messages) });
    }
    Ok(states)
}

/// The count in the first column.
fn count(row: &Row<'_>) -> SqlResult<u64> {
    row.get::<_, i64>(0).map(|count| u64::try_from(count).unwrap_or(0))
}

pub(super) fn groups(connection: &Connection) -> SqlResult<Vec<GroupState>> {
    let groups: BTreeMap<String, i64> = connection
        .prepare_cached("SELECT name, id FROM grp")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<SqlResult<_>>()?;
    groups.into_iter().map(|(name, id)| group(connection, name, id)).collect()
}

fn group(connection: &Connection, name: String, id: i64) -> SqlResult<GroupState> {
    let one =
        |sql: &str| -> SqlResult<u64> { connection.prepare_cached(sql)?.query_row([id], count) };
    let topics: Vec<String> = connection
        .prepare_cached(
            "SELECT DISTINCT topic.name FROM cursor JOIN topic ON topic.id = cursor.topic
              WHERE cursor.grp = ? ORDER BY topic.name",
        )?
        .query_map([id], |row| row.get(0))?
        .collect::<SqlResult<_>>()?;
    let waiting = one("SELECT count(*) FROM waiting WHERE grp = ? AND owner = ''")?;
    let claimed = one("SELECT count(*) FROM waiting WHERE grp = ? AND owner <> ''")?;
    let members = one("SELECT count(*) FROM member WHERE grp = ?")?;
    Ok(GroupState {
        name,
        topics,
        members: Some(u32::try_from(members).unwrap_or(u32::MAX)),
        lag: Some(unsettled(connection, id)? + waiting + claimed),
        waiting: Some(waiting),
    })
}

/// What a group has not settled of its logs: what is open, and what lies beyond its cursors.
fn unsettled(connection: &Connection, group: i64) -> SqlResult<u64> {
    let cursors: Vec<(i64, u32, i64, Vec<u8>)> = connection
        .prepare_cached("SELECT topic, lane, position, open FROM cursor WHERE grp = ?")?
        .query_map([group], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<SqlResult<_>>()?;
    let mut unsettled = 0;
    for (topic, lane, position, open) in cursors {
        let waits = "SELECT 1 FROM waiting WHERE grp = ? AND topic = ? AND seq = ?";
        let mut waits = connection.prepare_cached(waits)?;
        for seq in unpack(&open) {
            // One that waits already is counted there.
            unsettled += u64::from(!waits.exists(params![group, topic, seq])?);
        }
        let beyond = format!("SELECT count(*) FROM log_{topic} WHERE seq > ? AND lane = ?");
        unsettled +=
            connection.prepare_cached(&beyond)?.query_row(params![position, lane], count)?;
    }
    Ok(unsettled)
}

/// What is asked of the file.
#[derive(Debug)]
pub(super) struct Facts {
    version: String,
    journal: String,
    bytes: i64,
}

pub(super) fn facts(connection: &Connection) -> SqlResult<Facts> {
    let bytes = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()";
    Ok(Facts {
        version: connection.query_row("SELECT sqlite_version()", [], |row| row.get(0))?,
        journal: connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?,
        bytes: connection.query_row(bytes, [], |row| row.get(0))?,
    })
}

pub(super) fn findings(
    path: &Path,
    synchronous: Synchronous,
    facts: Result<Facts, Failure>,
) -> Vec<Finding> {
    let subject = "sql broker";
    let facts = match facts {
        Ok(facts) => facts,
        Err(failure) => {
            return vec![Finding::problem(
                subject,
                format!("{} cannot be read: {failure}", path.display()),
                "look at the file, its folder, and the disk",
            )];
        }
    };
    let size = facts.bytes / (1024 * 1024);
    let text = format!("SQLite {} at {}, {size} MiB", facts.version, path.display());
    let mut findings = vec![Finding::fine(subject, text)];
    if !facts.journal.eq_ignore_ascii_case("wal") {
        findings.push(Finding::problem(
            "journal",
            format!("the journal mode is {}", facts.journal),
            "processes block each other; move the file to a local disk and open it again",
        ));
    }
    findings.push(match synchronous {
        Synchronous::Full => Finding::fine("durability", "a confirmed message is on disk"),
        Synchronous::Normal => Finding::warning(
            "durability",
            "a confirmed message survives the process, but maybe not a loss of power",
            "set `synchronous` to `full` where that matters",
        ),
    });
    findings
}
