//! What there is to see for an operator.

use std::collections::{BTreeMap, BTreeSet};

use antiphon_core::Finding;
use antiphon_messaging::{GroupState, TopicState};
use antiphon_sqlbroker::{Failure, unpack};
use sqlx::{MySqlConnection, Row};

use super::lanes::rows;
use crate::server::Server;
use crate::sql::{Answer, Sql, count, run, text};

type Result<T> = std::result::Result<T, sqlx::Error>;

/// Asks for every topic; read by [`read_topics`].
pub(super) const TOPICS: &str = "
SELECT t.name, t.head - tail.first + 1
       + (SELECT COUNT(*) FROM antiphon_mq_delayed d WHERE d.topic = t.id)
  FROM antiphon_mq_topic t JOIN antiphon_mq_tail tail ON tail.topic = t.id ORDER BY t.name";

pub(super) fn read_topics(answers: &[Answer]) -> Result<Vec<TopicState>> {
    rows(answers, 0)
        .iter()
        .map(|row| Ok(TopicState { name: text(row, 0)?, messages: Some(count(row, 1)?) }))
        .collect()
}

pub(super) async fn groups(connection: &mut MySqlConnection) -> Result<Vec<GroupState>> {
    let sql = Sql::new(
        "SELECT g.id, g.name,
                (SELECT COUNT(*) FROM antiphon_mq_member m WHERE m.grp = g.id),
                (SELECT COUNT(*) FROM antiphon_mq_waiting w WHERE w.grp = g.id AND w.owner = ''),
                (SELECT COUNT(*) FROM antiphon_mq_waiting w WHERE w.grp = g.id AND w.owner <> '')
           FROM antiphon_mq_group g;
         SELECT DISTINCT c.grp, t.name FROM antiphon_mq_cursor c
           JOIN antiphon_mq_topic t ON t.id = c.topic ORDER BY t.name;
         SELECT c.grp, c.topic, c.open,
                (SELECT COUNT(*) FROM antiphon_mq_log l
                  WHERE l.topic = c.topic AND l.seq > c.position AND l.lane = c.lane)
           FROM antiphon_mq_cursor c;
         SELECT grp, topic, seq FROM antiphon_mq_waiting",
    );
    let answers = run(connection, sql).await?;
    let mut states: BTreeMap<i64, GroupState> = BTreeMap::new();
    for row in rows(&answers, 0) {
        let (waiting, claimed) = (count(row, 3)?, count(row, 4)?);
        let state = GroupState {
            name: text(row, 1)?,
            topics: Vec::new(),
            members: Some(u32::try_from(count(row, 2)?).unwrap_or(u32::MAX)),
            lag: Some(waiting + claimed),
            waiting: Some(waiting),
        };
        states.insert(row.try_get(0)?, state);
    }
    for row in rows(&answers, 1) {
        if let Some(state) = states.get_mut(&row.try_get::<i64, _>(0)?) {
            state.topics.push(text(row, 1)?);
        }
    }
    add_unsettled(&mut states, &answers)?;
    let mut states: Vec<GroupState> = states.into_values().collect();
    states.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(states)
}

/// What groups have not settled of their logs: what is open, and what lies beyond their cursors.
fn add_unsettled(states: &mut BTreeMap<i64, GroupState>, answers: &[Answer]) -> Result<()> {
    let mut waiting: BTreeSet<(i64, i64, i64)> = BTreeSet::new();
    for row in rows(answers, 3) {
        waiting.insert((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    }
    for row in rows(answers, 2) {
        let (group, topic): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let open = unpack(&row.try_get::<Vec<u8>, _>(2)?);
        // One that waits already is counted there.
        let open = open.iter().filter(|seq| !waiting.contains(&(group, topic, **seq))).count();
        if let Some(lag) = states.get_mut(&group).and_then(|state| state.lag.as_mut()) {
            *lag += count(row, 3)? + open as u64;
        }
    }
    Ok(())
}

/// What a person should know of the server.
pub(super) fn findings(place: &str, server: std::result::Result<Server, Failure>) -> Vec<Finding> {
    match server {
        Err(failure) => vec![Finding::problem(
            "sql broker",
            format!("{place} does not answer: {failure}"),
            "start the server, or look at host, port and network",
        )],
        Ok(server) => {
            let mut findings = vec![Finding::fine("sql broker", place)];
            findings.extend(server.findings());
            findings
        }
    }
}
