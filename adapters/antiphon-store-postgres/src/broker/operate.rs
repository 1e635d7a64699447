//! What there is to see for an operator.

use std::collections::{BTreeMap, HashMap};

use antiphon_core::Finding;
use antiphon_messaging::{GroupState, TopicState};
use antiphon_sqlbroker::{Failure, unpack};
use sqlx::{PgConnection, Row};

use crate::settings::SynchronousCommit;

type Result<T> = std::result::Result<T, sqlx::Error>;

fn count(row: &sqlx::postgres::PgRow, index: usize) -> Result<u64> {
    Ok(u64::try_from(row.try_get::<i64, _>(index)?).unwrap_or(0))
}

pub(super) async fn topics(connection: &mut PgConnection) -> Result<Vec<TopicState>> {
    let rows = sqlx::query(
        "SELECT t.name, t.head - tail.first + 1
                + (SELECT count(*) FROM antiphon_mq_delayed d WHERE d.topic = t.id)
           FROM antiphon_mq_topic t JOIN antiphon_mq_tail tail ON tail.topic = t.id
          ORDER BY t.name",
    )
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok(TopicState { name: row.try_get(0)?, messages: Some(count(row, 1)?) }))
        .collect()
}

pub(super) async fn groups(connection: &mut PgConnection) -> Result<Vec<GroupState>> {
    let rows = sqlx::query(
        "SELECT g.id, g.name,
                (SELECT count(*) FROM antiphon_mq_member m WHERE m.grp = g.id),
                (SELECT count(*) FROM antiphon_mq_waiting w WHERE w.grp = g.id AND w.owner = ''),
                (SELECT count(*) FROM antiphon_mq_waiting w WHERE w.grp = g.id AND w.owner <> '')
           FROM antiphon_mq_group g",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut states: BTreeMap<i64, GroupState> = BTreeMap::new();
    for row in &rows {
        let (waiting, claimed) = (count(row, 3)?, count(row, 4)?);
        let state = GroupState {
            name: row.try_get(1)?,
            topics: Vec::new(),
            members: Some(u32::try_from(count(row, 2)?).unwrap_or(u32::MAX)),
            lag: Some(waiting + claimed),
            waiting: Some(waiting),
        };
        states.insert(row.try_get(0)?, state);
    }
    for (group, topic) in topics_of_groups(connection).await? {
        if let Some(state) = states.get_mut(&group) {
            state.topics.push(topic);
        }
    }
    for (group, unsettled) in unsettled(connection).await? {
        if let Some(lag) = states.get_mut(&group).and_then(|state| state.lag.as_mut()) {
            *lag += unsettled;
        }
    }
    let mut states: Vec<GroupState> = states.into_values().collect();
    states.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(states)
}

async fn topics_of_groups(connection: &mut PgConnection) -> Result<Vec<(i64, String)>> {
    let rows = sqlx::query(
        "SELECT DISTINCT c.grp, t.name FROM antiphon_mq_cursor c
           JOIN antiphon_mq_topic t ON t.id = c.topic ORDER BY t.name",
    )
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// What groups have not settled of their logs: what is open, and what lies beyond their cursors.
async fn unsettled(connection: &mut PgConnection) -> Result<HashMap<i64, u64>> {
    let rows = sqlx::query(
        "SELECT c.grp, c.topic, c.open,
                (SELECT count(*) FROM antiphon_mq_log l
                  WHERE l.topic = c.topic AND l.seq > c.position AND l.lane = c.lane)
           FROM antiphon_mq_cursor c",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut counts: HashMap<i64, u64> = HashMap::new();
    let (mut groups, mut topics, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let (group, topic): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let open = unpack(row.try_get(2)?);
        *counts.entry(group).or_default() += count(row, 3)? + open.len() as u64;
        for seq in open {
            groups.push(group);
            topics.push(topic);
            seqs.push(seq);
        }
    }
    // One that waits already is counted there.
    let twice = sqlx::query(
        "SELECT w.grp FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS o (grp, topic, seq)
           JOIN antiphon_mq_waiting w ON w.grp = o.grp AND w.topic = o.topic AND w.seq = o.seq",
    )
    .bind(groups)
    .bind(topics)
    .bind(seqs)
    .fetch_all(connection)
    .await?;
    for row in &twice {
        if let Some(count) = counts.get_mut(&row.try_get::<i64, _>(0)?) {
            *count = count.saturating_sub(1);
        }
    }
    Ok(counts)
}

/// What is asked of the server.
#[derive(Debug)]
pub(super) struct Facts {
    version: String,
    fsync: bool,
    full_page_writes: bool,
    autovacuum: bool,
    dead_rows: i64,
    log_rows: i64,
}

pub(super) async fn facts(connection: &mut PgConnection) -> Result<Facts> {
    let row = sqlx::query(
        "SELECT current_setting('server_version'), current_setting('fsync')::boolean,
                current_setting('full_page_writes')::boolean,
                current_setting('autovacuum')::boolean,
                coalesce((SELECT sum(n_dead_tup) FROM pg_stat_user_tables
                           WHERE relname LIKE 'antiphon\\_mq\\_%'), 0)::bigint,
                (SELECT coalesce(sum(t.head - tail.first + 1), 0) FROM antiphon_mq_topic t
                   JOIN antiphon_mq_tail tail ON tail.topic = t.id)::bigint",
    )
    .fetch_one(connection)
    .await?;
    Ok(Facts {
        version: row.try_get(0)?,
        fsync: row.try_get(1)?,
        full_page_writes: row.try_get(2)?,
        autovacuum: row.try_get(3)?,
        dead_rows: row.try_get(4)?,
        log_rows: row.try_get(5)?,
    })
}

/// What a person should know of it.
pub(super) fn findings(
    shown: &str,
    commit: SynchronousCommit,
    facts: std::result::Result<Facts, Failure>,
) -> Vec<Finding> {
    let facts = match facts {
        Ok(facts) => facts,
        Err(failure) => {
            return vec![Finding::problem(
                "sql broker",
                format!("{shown} does not answer: {failure}"),
                "start the server, or look at host, port and network",
            )];
        }
    };
    let text = format!("PostgreSQL {} at {shown}, {} messages", facts.version, facts.log_rows);
    let mut findings = vec![Finding::fine("sql broker", text)];
    findings.push(match commit {
        _ if !facts.fsync => Finding::warning(
            "durability",
            "the server has fsync off: a loss of power may destroy the whole database",
            "set `fsync = on` in postgresql.conf",
        ),
        _ if !facts.full_page_writes => Finding::warning(
            "durability",
            "the server has full_page_writes off: a loss of power may break pages",
            "set `full_page_writes = on`, unless the file system writes pages as a whole",
        ),
        SynchronousCommit::Off => Finding::warning(
            "durability",
            "a confirmed message is not yet on disk: a crash of the server may undo the last ones",
            "set `synchronous_commit` to `on` where that matters",
        ),
        SynchronousCommit::On | SynchronousCommit::RemoteApply => {
            Finding::fine("durability", "a confirmed message is on disk")
        }
    });
    if !facts.autovacuum {
        findings.push(Finding::problem(
            "vacuum",
            "autovacuum is off: the tables of the broker grow without end",
            "set `autovacuum = on`",
        ));
    } else if facts.dead_rows > 1_000_000 {
        findings.push(Finding::warning(
            "vacuum",
            format!("{} dead rows in the broker's tables slow it down", facts.dead_rows),
            "end transactions that stay open for long; see pg_stat_activity, backend_xmin",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use antiphon_core::Severity;

    use super::*;

    fn facts() -> Facts {
        Facts {
            version: "15.18".into(),
            fsync: true,
            full_page_writes: true,
            autovacuum: true,
            dead_rows: 10,
            log_rows: 7,
        }
    }

    #[test]
    fn findings_say_what_decides_whether_a_message_survives() {
        let worst = |commit, facts| {
            let findings = findings("postgres://h/d", commit, facts);
            findings.into_iter().max_by_key(|finding| finding.severity).unwrap()
        };
        let on = SynchronousCommit::On;
        assert_eq!(worst(on, Ok(facts())).severity, Severity::Fine);
        let found = worst(on, Ok(Facts { fsync: false, ..facts() }));
        assert_eq!((found.severity, &*found.subject), (Severity::Warning, "durability"));
        assert_eq!(worst(SynchronousCommit::Off, Ok(facts())).severity, Severity::Warning);
        let found = worst(on, Ok(Facts { autovacuum: false, ..facts() }));
        assert_eq!((found.severity, &*found.subject), (Severity::Problem, "vacuum"));
        let found = worst(on, Err(Failure::NotMade("refused".into())));
        assert!(found.to_string().contains("does not answer: not written: refused"), "{found}");
    }
}
