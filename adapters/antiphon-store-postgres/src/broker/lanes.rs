//! A group's life: lanes are shared out, cursors move.
//!
//! Whoever changes who is in a group, or has which of its lanes, has locked the group's row before.
//! Progress needs no such lock: a cursor carries the token of its lane's lease, and whoever takes
//! the lane over writes his own there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use antiphon_sqlbroker::{Beat, Identity, Place, Progress, Shared, Taken, fair_share, unpack};
use sqlx::{PgConnection, Row};

use super::settle;

type Result<T> = std::result::Result<T, sqlx::Error>;

pub(super) fn number(lane: u32) -> i32 {
    i32::try_from(lane).unwrap_or(i32::MAX)
}

pub(super) fn lane(row: &sqlx::postgres::PgRow, index: usize) -> Result<u32> {
    Ok(u32::try_from(row.try_get::<i32, _>(index)?).unwrap_or(u32::MAX))
}

/// Locks the rows of groups, in the order of their numbers.
pub(super) async fn lock(connection: &mut PgConnection, groups: &BTreeSet<i64>) -> Result<()> {
    let groups: Vec<i64> = groups.iter().copied().collect();
    sqlx::query("SELECT 1 FROM antiphon_mq_group WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE")
        .bind(groups)
        .execute(connection)
        .await
        .map(drop)
}

/// Announces a member, renews its leases, and takes free lanes up to its fair share.
pub(super) async fn heartbeat(
    connection: &mut PgConnection,
    member: &Identity,
    beat: &Beat,
) -> Result<Shared> {
    let Identity { group, owner, .. } = member;
    let ttl = beat.ttl.as_secs_f64();
    let joined: bool = sqlx::query(
        "INSERT INTO antiphon_mq_member (grp, owner, until, idle)
         VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3), $4)
         ON CONFLICT (grp, owner) DO UPDATE SET until = excluded.until, idle = excluded.idle
         RETURNING xmax = 0",
    )
    .bind(group)
    .bind(owner)
    .bind(ttl)
    .bind(beat.idle)
    .fetch_one(&mut *connection)
    .await?
    .try_get(0)?;
    let expired = expire(connection, *group).await?;
    let kept = renew(connection, *group, &beat.held, ttl).await?;
    let members = sqlx::query("SELECT owner, idle FROM antiphon_mq_member WHERE grp = $1")
        .bind(group)
        .fetch_all(&mut *connection)
        .await?
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<Vec<(String, bool)>>>()?;
    let target = fair_share(&members, owner);
    let mut taken = Vec::new();
    if !beat.closing && kept.len() < target {
        let free = free_lanes(connection, *group).await?;
        let free: Vec<i32> = free.into_iter().take(target - kept.len()).collect();
        if !free.is_empty() {
            taken = take(connection, member, free, ttl).await?;
        }
    }
    if joined || expired {
        regroup(connection, *group).await?;
    }
    let stirred = sqlx::query("SELECT stirred FROM antiphon_mq_group WHERE id = $1")
        .bind(group)
        .fetch_one(connection)
        .await?
        .try_get(0)?;
    Ok(Shared { target, kept, taken, stirred, joined })
}

/// Removes members that were silent for too long; answers whether there were any.
async fn expire(connection: &mut PgConnection, group: i64) -> Result<bool> {
    let gone = "DELETE FROM antiphon_mq_member WHERE grp = $1 AND until < clock_timestamp()";
    let gone = sqlx::query(gone).bind(group).execute(&mut *connection).await?.rows_affected();
    if gone == 0 {
        return Ok(false);
    }
    let freed = sqlx::query(
        "UPDATE antiphon_mq_waiting SET due = 0, owner = ''
          WHERE grp = $1 AND owner <> ''
            AND owner NOT IN (SELECT owner FROM antiphon_mq_member WHERE grp = $1)",
    )
    .bind(group)
    .execute(&mut *connection)
    .await?;
    if freed.rows_affected() > 0 {
        stir(connection, group).await?;
    }
    Ok(true)
}

async fn renew(
    connection: &mut PgConnection,
    group: i64,
    held: &[(u32, i64)],
    ttl: f64,
) -> Result<Vec<u32>> {
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let (lanes, tokens): (Vec<i32>, Vec<i64>) =
        held.iter().map(|(lane, token)| (number(*lane), *token)).unzip();
    sqlx::query(
        "UPDATE antiphon_mq_lease l SET until = clock_timestamp() + make_interval(secs => $4)
           FROM unnest($2::integer[], $3::bigint[]) AS h (lane, token)
          WHERE l.grp = $1 AND l.lane = h.lane AND l.token = h.token
         RETURNING l.lane",
    )
    .bind(group)
    .bind(lanes)
    .bind(tokens)
    .bind(ttl)
    .fetch_all(connection)
    .await?
    .iter()
    .map(|row| lane(row, 0))
    .collect()
}

async fn free_lanes(connection: &mut PgConnection, group: i64) -> Result<Vec<i32>> {
    sqlx::query(
        "SELECT lane FROM generate_series(0, $2 - 1) AS lane
          WHERE NOT EXISTS (SELECT FROM antiphon_mq_lease l
                             WHERE l.grp = $1 AND l.lane = lane.lane
                               AND l.until > clock_timestamp())
          ORDER BY lane",
    )
    .bind(group)
    .bind(number(antiphon_messaging::LANES))
    .fetch_all(connection)
    .await?
    .iter()
    .map(|row| row.try_get(0))
    .collect()
}

/// Takes lanes: with new tokens, which the cursors get as well.
async fn take(
    connection: &mut PgConnection,
    member: &Identity,
    lanes: Vec<i32>,
    ttl: f64,
) -> Result<Vec<Taken>> {
    let leased = sqlx::query(
        "INSERT INTO antiphon_mq_lease (grp, lane, token, owner, until)
         SELECT $1, lane, nextval('antiphon_mq_token'), $3,
                clock_timestamp() + make_interval(secs => $4)
           FROM unnest($2::integer[]) AS lane
         ON CONFLICT (grp, lane) DO UPDATE
            SET token = excluded.token, owner = excluded.owner, until = excluded.until
         RETURNING lane, token",
    )
    .bind(member.group)
    .bind(lanes)
    .bind(&member.owner)
    .bind(ttl)
    .fetch_all(&mut *connection)
    .await?;
    let mut tokens: BTreeMap<u32, i64> = BTreeMap::new();
    for row in &leased {
        tokens.insert(lane(row, 0)?, row.try_get(1)?);
    }
    let numbers: Vec<i32> = tokens.keys().map(|lane| number(*lane)).collect();
    let fenced = sqlx::query(
        "UPDATE antiphon_mq_cursor c SET token = t.token
           FROM unnest($2::integer[], $3::bigint[]) AS t (lane, token)
          WHERE c.grp = $1 AND c.lane = t.lane
         RETURNING c.lane, c.topic, c.position, c.open",
    )
    .bind(member.group)
    .bind(numbers)
    .bind(tokens.values().copied().collect::<Vec<i64>>())
    .fetch_all(connection)
    .await?;
    let mut cursors: HashMap<(u32, i64), (i64, BTreeSet<i64>)> = HashMap::new();
    for row in &fenced {
        let open: &[u8] = row.try_get(3)?;
        cursors.insert((lane(row, 0)?, row.try_get(1)?), (row.try_get(2)?, unpack(open)));
    }
    let taken = tokens.into_iter().map(|(lane, token)| {
        let of = |topic: &i64| cursors.remove(&(lane, *topic)).unwrap_or_default();
        Taken { lane, token, cursors: member.topics.iter().map(of).collect() }
    });
    Ok(taken.collect())
}

/// Tells the holders of lanes to look at their waiting messages again.
pub(super) async fn stir(connection: &mut PgConnection, group: i64) -> Result<()> {
    sqlx::query("UPDATE antiphon_mq_group SET stirred = stirred + 1 WHERE id = $1")
        .bind(group)
        .execute(connection)
        .await
        .map(drop)
}

async fn regroup(connection: &mut PgConnection, group: i64) -> Result<()> {
    sqlx::query("UPDATE antiphon_mq_group SET regrouped = regrouped + 1 WHERE id = $1")
        .bind(group)
        .execute(connection)
        .await
        .map(drop)
}

/// Writes progress of several members in one statement. With `relaxed`, which must be the only
/// statement of its transaction, the commit need not be on disk: what is lost comes again.
/// Answers for each with the lanes whose lease was lost.
pub(super) async fn advance(
    connection: &mut PgConnection,
    all: &[(i64, &[Progress])],
    relaxed: bool,
) -> Result<Vec<Vec<u32>>> {
    let mut cursors = BTreeMap::new();
    for (group, progress) in all {
        for progress in *progress {
            for written in &progress.cursors {
                cursors.insert((*group, written.topic, progress.lane, progress.token), written);
            }
        }
    }
    let mut held: BTreeSet<(i64, u32, i64)> = BTreeSet::new();
    if !cursors.is_empty() {
        let statement = if relaxed { ADVANCE_RELAXED } else { ADVANCE };
        let written = sqlx::query(statement)
            .bind(cursors.keys().map(|(group, ..)| *group).collect::<Vec<i64>>())
            .bind(cursors.keys().map(|(_, topic, ..)| *topic).collect::<Vec<i64>>())
            .bind(cursors.keys().map(|(_, _, lane, _)| number(*lane)).collect::<Vec<i32>>())
            .bind(cursors.keys().map(|(.., token)| *token).collect::<Vec<i64>>())
            .bind(cursors.values().map(|written| written.position).collect::<Vec<i64>>())
            .bind(cursors.values().map(|written| written.low).collect::<Vec<i64>>())
            .bind(cursors.values().map(|written| &*written.open).collect::<Vec<&[u8]>>())
            .fetch_all(&mut *connection)
            .await?;
        for row in &written {
            held.insert((row.try_get(0)?, lane(row, 1)?, row.try_get(2)?));
        }
    }
    if !relaxed {
        remove_done(connection, all).await?;
    }
    // A lane whose cursors have not moved has lost nothing that was to be written.
    let lost = |group: i64, progress: &Progress| {
        !progress.cursors.is_empty() && !held.contains(&(group, progress.lane, progress.token))
    };
    Ok(all
        .iter()
        .map(|(group, progress)| {
            let lost = progress.iter().filter(|progress| lost(*group, progress));
            lost.map(|progress| progress.lane).collect()
        })
        .collect())
}

const ADVANCE: &str = "
UPDATE antiphon_mq_cursor c SET position = p.position, low = p.low, open = p.open
  FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::bigint[], $5::bigint[], $6::bigint[],
              $7::bytea[]) AS p (grp, topic, lane, token, position, low, open)
 WHERE c.grp = p.grp AND c.topic = p.topic AND c.lane = p.lane AND c.token = p.token
RETURNING c.grp, c.lane, c.token";

const ADVANCE_RELAXED: &str = "
UPDATE antiphon_mq_cursor c SET position = p.position, low = p.low, open = p.open
  FROM set_config('synchronous_commit', 'off', true) AS relaxed,
       unnest($1::bigint[], $2::bigint[], $3::integer[], $4::bigint[], $5::bigint[], $6::bigint[],
              $7::bytea[]) AS p (grp, topic, lane, token, position, low, open)
 WHERE c.grp = p.grp AND c.topic = p.topic AND c.lane = p.lane AND c.token = p.token
RETURNING c.grp, c.lane, c.token";

/// Waiting messages that were handled go, with the memory of their deaths.
async fn remove_done(connection: &mut PgConnection, all: &[(i64, &[Progress])]) -> Result<()> {
    let (mut groups, mut topics, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut numbers, mut tokens) = (Vec::new(), Vec::new());
    for (group, progress) in all {
        for progress in *progress {
            for (topic, seq) in &progress.done {
                groups.push(*group);
                topics.push(*topic);
                seqs.push(*seq);
                numbers.push(number(progress.lane));
                tokens.push(progress.token);
            }
        }
    }
    if groups.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "WITH gone AS (
             DELETE FROM antiphon_mq_waiting w
              USING unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::integer[], $5::bigint[])
                    AS d (grp, topic, seq, lane, token)
              WHERE w.grp = d.grp AND w.topic = d.topic AND w.seq = d.seq
                AND EXISTS (SELECT FROM antiphon_mq_lease l
                             WHERE l.grp = d.grp AND l.lane = d.lane AND l.token = d.token)
             RETURNING w.grp, w.id
         )
         DELETE FROM antiphon_mq_death USING gone
          WHERE antiphon_mq_death.grp = gone.grp AND antiphon_mq_death.id = gone.id",
    )
    .bind(groups)
    .bind(topics)
    .bind(seqs)
    .bind(numbers)
    .bind(tokens)
    .execute(connection)
    .await
    .map(drop)
}

/// Whether there is anything to remove among the waiting.
pub(super) fn has_done(progress: &[Progress]) -> bool {
    progress.iter().any(|progress| !progress.done.is_empty())
}

/// Gives leases back; the `claimed` messages of those lanes stay in the member's hands. The tokens
/// are void from then on.
pub(super) async fn release(
    connection: &mut PgConnection,
    member: &Identity,
    progress: &[Progress],
    claimed: &[(Place, u32)],
) -> Result<()> {
    let lost = advance(connection, &[(member.group, progress)], false).await?;
    let lost = lost.into_iter().flatten().collect::<BTreeSet<u32>>();
    let claimed: Vec<_> = claimed.iter().filter(|(place, _)| !lost.contains(&place.lane)).collect();
    if !claimed.is_empty() {
        settle::claim(connection, &member.owner, &claimed).await?;
    }
    let (lanes, tokens): (Vec<i32>, Vec<i64>) =
        progress.iter().map(|progress| (number(progress.lane), progress.token)).unzip();
    for statement in [
        "DELETE FROM antiphon_mq_lease l USING unnest($2::integer[], $3::bigint[]) AS g (lane, token)
          WHERE l.grp = $1 AND l.lane = g.lane AND l.token = g.token",
        "UPDATE antiphon_mq_cursor c SET token = 0
           FROM unnest($2::integer[], $3::bigint[]) AS g (lane, token)
          WHERE c.grp = $1 AND c.lane = g.lane AND c.token = g.token",
    ] {
        sqlx::query(statement)
            .bind(member.group)
            .bind(&lanes)
            .bind(&tokens)
            .execute(&mut *connection)
            .await?;
    }
    regroup(connection, member.group).await
}

/// Gives everything back and leaves the group.
pub(super) async fn leave(
    connection: &mut PgConnection,
    member: &Identity,
    progress: &[Progress],
) -> Result<()> {
    release(connection, member, progress, &[]).await?;
    let given_up =
        "UPDATE antiphon_mq_waiting SET due = 0, owner = '' WHERE grp = $1 AND owner = $2";
    let given_up = sqlx::query(given_up)
        .bind(member.group)
        .bind(&member.owner)
        .execute(&mut *connection)
        .await?;
    if given_up.rows_affected() > 0 {
        stir(connection, member.group).await?;
    }
    sqlx::query("DELETE FROM antiphon_mq_member WHERE grp = $1 AND owner = $2")
        .bind(member.group)
        .bind(&member.owner)
        .execute(connection)
        .await
        .map(drop)
}
