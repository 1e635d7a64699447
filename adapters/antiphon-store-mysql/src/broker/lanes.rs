//! A group's life: lanes are shared out, cursors move.
//!
//! Whoever changes who is in a group, or has which of its lanes, has locked the group's row before.
//! Progress needs no such lock: a cursor carries the token of its lane's lease, and whoever takes
//! the lane over writes his own there.

use std::collections::{BTreeSet, HashMap};

use antiphon_messaging::LANES;
use antiphon_sqlbroker::{Beat, Identity, Place, Progress, Shared, Taken, fair_share, unpack};
use sqlx::mysql::MySqlRow;
use sqlx::{MySqlConnection, Row};

use super::settle;
use crate::sql::{Answer, Sql, run, text};

type Result<T> = std::result::Result<T, sqlx::Error>;

/// The database's clock in microseconds, which decides about leases.
const NOW: &str = "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)";

pub(super) fn lane(row: &MySqlRow, index: usize) -> Result<u32> {
    Ok(u32::try_from(row.try_get::<i64, _>(index)?).unwrap_or(u32::MAX))
}

pub(super) fn rows(answers: &[Answer], index: usize) -> &[MySqlRow] {
    answers.get(index).map(|answer| answer.rows.as_slice()).unwrap_or_default()
}

pub(super) fn affected(answers: &[Answer], index: usize) -> u64 {
    answers.get(index).map_or(0, |answer| answer.affected)
}

/// The number in the first column of the first row of an answer.
pub(super) fn number(answers: &[Answer], index: usize) -> Result<i64> {
    rows(answers, index).first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
}

/// Locks the rows of groups, in the order of their numbers.
pub(super) async fn lock(connection: &mut MySqlConnection, groups: &BTreeSet<i64>) -> Result<()> {
    let mut sql = Sql::new("SELECT id FROM antiphon_mq_group FORCE INDEX (PRIMARY) WHERE id IN (");
    sql.numbers(groups.iter().copied()).sql(") ORDER BY id FOR UPDATE");
    run(connection, sql).await.map(drop)
}

/// Announces a member, renews its leases, and takes free lanes up to its fair share.
pub(super) async fn heartbeat(
    connection: &mut MySqlConnection,
    member: &Identity,
    beat: &Beat,
) -> Result<Shared> {
    let Identity { group, owner, .. } = member;
    let ttl = i64::try_from(beat.ttl.as_micros()).unwrap_or(i64::MAX);
    let mut sql = Sql::new("SELECT COUNT(*) FROM antiphon_mq_member WHERE grp = ");
    sql.number(*group).sql(" AND owner = ").value(owner);
    sql.sql("; INSERT INTO antiphon_mq_member (grp, owner, until, idle) VALUES (");
    sql.number(*group).sql(",").value(owner).sql(",").sql(NOW).sql(" + ").number(ttl).sql(",");
    sql.number(i64::from(beat.idle));
    sql.sql(") ON DUPLICATE KEY UPDATE until = VALUES(until), idle = VALUES(idle); ");
    sql.sql("DELETE FROM antiphon_mq_member WHERE grp = ").number(*group);
    sql.sql(" AND until < ").sql(NOW);
    sql.sql("; SELECT owner, idle FROM antiphon_mq_member WHERE grp = ").number(*group);
    for (lane, token) in &beat.held {
        sql.sql("; UPDATE antiphon_mq_lease SET until = ").sql(NOW).sql(" + ").number(ttl);
        sql.sql(" WHERE grp = ").number(*group).sql(" AND lane = ").number(*lane);
        sql.sql(" AND token = ").number(*token);
    }
    sql.sql("; SELECT lane FROM antiphon_mq_lease WHERE grp = ").number(*group);
    sql.sql(" AND until > ").sql(NOW);
    let answers = run(connection, sql).await?;
    let joined = number(&answers, 0)? == 0;
    let expired = affected(&answers, 2) > 0;
    if expired {
        let mut which = Sql::new("owner <> '' AND owner NOT IN (SELECT owner FROM ");
        which.sql("antiphon_mq_member WHERE grp = ").number(*group).sql(")");
        give_up_claims(connection, *group, which.as_str()).await?;
    }
    let members = rows(&answers, 3)
        .iter()
        .map(|row| Ok((text(row, 0)?, row.try_get::<i64, _>(1)? != 0)))
        .collect::<Result<Vec<(String, bool)>>>()?;
    let target = fair_share(&members, owner);
    let renewed = beat.held.iter().zip(4..);
    let kept: Vec<u32> = renewed
        .filter(|(_, index)| affected(&answers, *index) == 1)
        .map(|((lane, _), _)| *lane)
        .collect();
    let leased = rows(&answers, 4 + beat.held.len())
        .iter()
        .map(|row| lane(row, 0))
        .collect::<Result<BTreeSet<u32>>>()?;
    let mut taken = Vec::new();
    if !beat.closing && kept.len() < target {
        let free = (0..LANES).filter(|lane| !leased.contains(lane));
        let free: Vec<u32> = free.take(target - kept.len()).collect();
        if !free.is_empty() {
            taken = take(connection, member, &free, ttl).await?;
        }
    }
    if joined || expired {
        regroup(connection, *group).await?;
    }
    let mut sql = Sql::new("SELECT stirred FROM antiphon_mq_group WHERE id = ");
    sql.number(*group);
    let stirred = number(&run(connection, sql).await?, 0)?;
    Ok(Shared { target, kept, taken, stirred, joined })
}

/// Takes lanes: with new tokens, which the cursors get as well.
async fn take(
    connection: &mut MySqlConnection,
    member: &Identity,
    lanes: &[u32],
    ttl: i64,
) -> Result<Vec<Taken>> {
    let count = i64::try_from(lanes.len()).unwrap_or(0);
    let mut sql = Sql::new("UPDATE antiphon_mq_value SET number = LAST_INSERT_ID(number) + ");
    sql.number(count).sql(" WHERE name = 'token'; SELECT CAST(LAST_INSERT_ID() AS SIGNED)");
    let last = number(&run(connection, sql).await?, 1)?;
    let tokens: Vec<(u32, i64)> = lanes.iter().copied().zip(last + 1..).collect();
    let mut sql =
        Sql::new("INSERT INTO antiphon_mq_lease (grp, lane, token, owner, until) VALUES ");
    sql.list(",", &tokens, |sql, (lane, token)| {
        sql.sql("(").number(member.group).sql(",").number(*lane).sql(",").number(*token).sql(",");
        sql.value(&member.owner).sql(",").sql(NOW).sql(" + ").number(ttl).sql(")");
    });
    sql.sql(" ON DUPLICATE KEY UPDATE token = VALUES(token), owner = VALUES(owner), ");
    sql.sql("until = VALUES(until); UPDATE antiphon_mq_cursor SET token = CASE lane");
    for (lane, token) in &tokens {
        sql.sql(" WHEN ").number(*lane).sql(" THEN ").number(*token);
    }
    sql.sql(" END WHERE grp = ").number(member.group).sql(" AND lane IN (");
    sql.numbers(lanes.iter().copied());
    sql.sql("); SELECT lane, topic, position, open FROM antiphon_mq_cursor WHERE grp = ");
    sql.number(member.group).sql(" AND lane IN (").numbers(lanes.iter().copied()).sql(")");
    let answers = run(connection, sql).await?;
    let mut cursors: HashMap<(u32, i64), (i64, BTreeSet<i64>)> = HashMap::new();
    for row in rows(&answers, 2) {
        let open: Vec<u8> = row.try_get(3)?;
        cursors.insert((lane(row, 0)?, row.try_get(1)?), (row.try_get(2)?, unpack(&open)));
    }
    let taken = tokens.into_iter().map(|(lane, token)| {
        let of = |topic: &i64| cursors.remove(&(lane, *topic)).unwrap_or_default();
        Taken { lane, token, cursors: member.topics.iter().map(of).collect() }
    });
    Ok(taken.collect())
}

/// Claimed messages of a group that match become due at once, for whoever has their lane.
async fn give_up_claims(connection: &mut MySqlConnection, group: i64, which: &str) -> Result<()> {
    let mut sql = Sql::new("UPDATE antiphon_mq_waiting SET due = 0, owner = '' WHERE grp = ");
    sql.number(group).sql(" AND ").sql(which);
    if affected(&run(connection, sql).await?, 0) > 0 {
        stir(connection, group).await?;
    }
    Ok(())
}

/// Tells the holders of lanes to look at their waiting messages again.
pub(super) async fn stir(connection: &mut MySqlConnection, group: i64) -> Result<()> {
    let mut sql = Sql::new("UPDATE antiphon_mq_group SET stirred = stirred + 1 WHERE id = ");
    sql.number(group);
    run(connection, sql).await.map(drop)
}

async fn regroup(connection: &mut MySqlConnection, group: i64) -> Result<()> {
    let mut sql = Sql::new("UPDATE antiphon_mq_group SET regrouped = regrouped + 1 WHERE id = ");
    sql.number(group);
    run(connection, sql).await.map(drop)
}

/// The statements that write progress of several members: one per cursor, and two per waiting
/// message that was handled. Their answers are read by [`lost`].
pub(super) fn advance(sql: &mut Sql, all: &[(i64, &[Progress])]) {
    for (group, progress) in all {
        for Progress { lane, token, cursors, .. } in *progress {
            for written in cursors {
                sql.sql("UPDATE antiphon_mq_cursor SET position = ").number(written.position);
                sql.sql(", low = ").number(written.low).sql(", open = ").value(&written.open);
                sql.sql(" WHERE grp = ").number(*group).sql(" AND topic = ").number(written.topic);
                sql.sql(" AND lane = ").number(*lane).sql(" AND token = ").number(*token);
                sql.sql("; ");
            }
        }
    }
    for (group, progress) in all {
        for Progress { lane, token, done, .. } in *progress {
            for (topic, seq) in done {
                // With it goes the memory of its deaths.
                for (what, join) in
                    [("d", " JOIN antiphon_mq_death d ON d.grp = w.grp AND d.id = w.id"), ("w", "")]
                {
                    sql.sql("DELETE ").sql(what).sql(" FROM antiphon_mq_waiting w").sql(join);
                    sql.sql(" JOIN antiphon_mq_lease l ON l.grp = w.grp AND l.lane = ");
                    sql.number(*lane).sql(" AND l.token = ").number(*token);
                    sql.sql(" WHERE w.grp = ").number(*group).sql(" AND w.topic = ");
                    sql.number(*topic).sql(" AND w.seq = ").number(*seq).sql("; ");
                }
            }
        }
    }
}

/// For each member the lanes whose lease was lost, by the answers to [`advance`].
pub(super) fn lost(all: &[(i64, &[Progress])], answers: &[Answer]) -> Vec<Vec<u32>> {
    let mut answers = answers.iter();
    let mut lost = Vec::with_capacity(all.len());
    for (_, progress) in all {
        let mut of_member = Vec::new();
        for progress in *progress {
            let written = answers.by_ref().take(progress.cursors.len());
            let held = written.filter(|answer| answer.affected == 1).count();
            // A lane whose cursors have not moved has lost nothing that was to be written.
            if held < progress.cursors.len() {
                of_member.push(progress.lane);
            }
        }
        lost.push(of_member);
    }
    lost
}

/// Gives leases back; the `claimed` messages of those lanes stay in the member's hands. The tokens
/// are void from then on.
pub(super) async fn release(
    connection: &mut MySqlConnection,
    member: &Identity,
    progress: &[Progress],
    claimed: &[(Place, u32)],
) -> Result<()> {
    let all = [(member.group, progress)];
    let mut sql = Sql::default();
    advance(&mut sql, &all);
    let answers = if sql.len() > 0 { run(connection, sql).await? } else { Vec::new() };
    let lost: BTreeSet<u32> = lost(&all, &answers).into_iter().flatten().collect();
    let claimed: Vec<_> = claimed.iter().filter(|(place, _)| !lost.contains(&place.lane)).collect();
    settle::claim(connection, &member.owner, &claimed).await?;
    let mut sql = Sql::default();
    for Progress { lane, token, .. } in progress {
        for begin in [
            "DELETE FROM antiphon_mq_lease WHERE grp = ",
            "UPDATE antiphon_mq_cursor SET token = 0 WHERE grp = ",
        ] {
            sql.sql(begin).number(member.group).sql(" AND lane = ").number(*lane);
            sql.sql(" AND token = ").number(*token).sql("; ");
        }
    }
    if sql.len() > 0 {
        run(connection, sql).await?;
    }
    regroup(connection, member.group).await
}

/// Gives everything back and leaves the group.
pub(super) async fn leave(
    connection: &mut MySqlConnection,
    member: &Identity,
    progress: &[Progress],
) -> Result<()> {
    release(connection, member, progress, &[]).await?;
    let mut mine = Sql::new("owner = ");
    mine.value(&member.owner);
    give_up_claims(connection, member.group, mine.as_str()).await?;
    let mut sql = Sql::new("DELETE FROM antiphon_mq_member WHERE grp = ");
    sql.number(member.group).sql(" AND owner = ").value(&member.owner);
    run(connection, sql).await.map(drop)
}
