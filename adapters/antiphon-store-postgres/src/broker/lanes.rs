//! A group's life: lanes are shared out, cursors move.
//!
//! Whoever changes who is in a group, or has which of its lanes, has locked the group's row before.
//! Progress needs no such lock: a cursor carries the token of its lane's lease, and whoever takes
//! the lane over writes his own there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use antiphon_messaging::LANES;
use antiphon_sqlbroker::{Beat, Identity, Place, Progress, Shared, Taken, fair_share, unpack};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::settle;

type Result<T> = std::result::Result<T, sqlx::Error>;

pub(super) fn number(lane: u32) -> i32 {
    i32::try_from(lane).unwrap_or(i32::MAX)
}

pub(super) fn lane(row: &sqlx::postgres::PgRow, index: usize) -> Result<u32> {
    Ok(u32::try_from(row.try_get::<i32, _>(index)?).unwrap_or(u32::MAX))
}

/// Begins a transaction in which the rows of these groups are locked, in the order of their numbers.
pub(super) async fn begin(connection: &mut PgConnection, groups: &BTreeSet<i64>) -> Result<()> {
    let mut sql = "BEGIN".to_owned();
    if !groups.is_empty() {
        let groups: Vec<String> = groups.iter().map(i64::to_string).collect();
        sql.push_str("; SELECT FROM antiphon_mq_group WHERE id IN (");
        sql.push_str(&groups.join(","));
        sql.push_str(") ORDER BY id FOR NO KEY UPDATE");
    }
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
}

/// A heartbeat in one round trip: the member is announced, those that were silent for too long are
/// removed, leases are renewed. What is listed of members and leases is as it was before.
const BEAT: &str = "
WITH me AS (
    INSERT INTO antiphon_mq_member (grp, owner, until, idle)
    VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3), $4)
    ON CONFLICT (grp, owner) DO UPDATE SET until = excluded.until, idle = excluded.idle
), gone AS (
    DELETE FROM antiphon_mq_member
     WHERE grp = $1 AND owner <> $2 AND until < clock_timestamp() RETURNING owner
), kept AS (
    UPDATE antiphon_mq_lease l SET until = clock_timestamp() + make_interval(secs => $3)
      FROM unnest($5::integer[], $6::bigint[]) AS h (lane, token)
     WHERE l.grp = $1 AND l.lane = h.lane AND l.token = h.token
    RETURNING l.lane
)
SELECT 'member', owner, idle::integer::bigint FROM antiphon_mq_member WHERE grp = $1
UNION ALL SELECT 'gone', owner, 0 FROM gone
UNION ALL SELECT 'kept', '', lane FROM kept
UNION ALL SELECT 'leased', '', lane FROM antiphon_mq_lease
           WHERE grp = $1 AND until > clock_timestamp()
UNION ALL SELECT 'stirred', '', stirred FROM antiphon_mq_group WHERE id = $1";

/// Announces a member, renews its leases, and takes free lanes up to its fair share.
pub(super) async fn heartbeat(
    connection: &mut PgConnection,
    member: &Identity,
    beat: &Beat,
) -> Result<Shared> {
    let Identity { group, owner, .. } = member;
    let ttl = beat.ttl.as_secs_f64();
    let (lanes, tokens): (Vec<i32>, Vec<i64>) =
        beat.held.iter().map(|(lane, token)| (number(*lane), *token)).unzip();
    let rows = sqlx::query(BEAT)
        .bind(group)
        .bind(owner)
        .bind(ttl)
        .bind(beat.idle)
        .bind(lanes)
        .bind(tokens)
        .fetch_all(&mut *connection)
        .await?;
    let mut members: BTreeMap<String, bool> = BTreeMap::new();
    let (mut gone, mut kept, mut leased) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut stirred = 0;
    for row in &rows {
        let (name, value): (String, i64) = (row.try_get(1)?, row.try_get(2)?);
        let lane = u32::try_from(value).unwrap_or(u32::MAX);
        match row.try_get(0)? {
            "member" => drop(members.insert(name, value != 0)),
            "gone" => gone.push(name),
            "kept" => kept.push(lane),
            "leased" => drop(leased.insert(lane)),
            _ => stirred = value,
        }
    }
    let joined = members.insert(owner.clone(), beat.idle).is_none();
    for name in &gone {
        members.remove(name);
    }
    if !gone.is_empty() && free_claims(connection, *group, &gone).await? {
        stirred += 1;
    }
    let members: Vec<(String, bool)> = members.into_iter().collect();
    let target = fair_share(&members, owner);
    let mut taken = Vec::new();
    if !beat.closing && kept.len() < target {
        let free = (0..LANES).filter(|lane| !leased.contains(lane) && !kept.contains(lane));
        let free: Vec<i32> = free.take(target - kept.len()).map(number).collect();
        if !free.is_empty() {
            taken = take(connection, member, free, ttl).await?;
        }
    }
    if joined || !gone.is_empty() {
        regroup(connection, *group).await?;
    }
    Ok(Shared { target, kept, taken, stirred, joined })
}

/// What these members had claimed is due at once, for whoever has its lane; answers whether there
/// was anything.
async fn free_claims(connection: &mut PgConnection, group: i64, owners: &[String]) -> Result<bool> {
    let freed = sqlx::query(
        "UPDATE antiphon_mq_waiting SET due = 0, owner = ''
          WHERE grp = $1 AND owner = ANY($2) AND owner <> ''",
    )
    .bind(group)
    .bind(owners)
    .execute(&mut *connection)
    .await?;
    if freed.rows_affected() == 0 {
        return Ok(false);
    }
    stir(connection, group).await?;
    Ok(true)
}

/// Takes lanes: with new tokens, which the cursors get as well.
const TAKE: &str = "
WITH leased AS (
    INSERT INTO antiphon_mq_lease (grp, lane, token, owner, until)
    SELECT $1, lane, nextval('antiphon_mq_token'), $3,
           clock_timestamp() + make_interval(secs => $4)
      FROM unnest($2::integer[]) AS lane
    ON CONFLICT (grp, lane) DO UPDATE
       SET token = excluded.token, owner = excluded.owner, until = excluded.until
    RETURNING lane, token
), fenced AS (
    UPDATE antiphon_mq_cursor c SET token = leased.token FROM leased
     WHERE c.grp = $1 AND c.lane = leased.lane
    RETURNING c.lane, c.topic, c.position, c.open
)
SELECT lane, token, 0::bigint, ''::bytea, true FROM leased
UNION ALL SELECT lane, topic, position, open, false FROM fenced";

async fn take(
    connection: &mut PgConnection,
    member: &Identity,
    lanes: Vec<i32>,
    ttl: f64,
) -> Result<Vec<Taken>> {
    let rows = sqlx::query(TAKE)
        .bind(member.group)
        .bind(lanes)
        .bind(&member.owner)
        .bind(ttl)
        .fetch_all(connection)
        .await?;
    let mut tokens: BTreeMap<u32, i64> = BTreeMap::new();
    let mut cursors: HashMap<(u32, i64), (i64, BTreeSet<i64>)> = HashMap::new();
    for row in &rows {
        let (lane, number) = (lane(row, 0)?, row.try_get(1)?);
        if row.try_get(4)? {
            tokens.insert(lane, number);
        } else {
            cursors.insert((lane, number), (row.try_get(2)?, unpack(row.try_get(3)?)));
        }
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
    sqlx::query(
        "WITH given AS (
             SELECT * FROM unnest($2::integer[], $3::bigint[]) AS given (lane, token)
         ), leases AS (
             DELETE FROM antiphon_mq_lease l USING given
              WHERE l.grp = $1 AND l.lane = given.lane AND l.token = given.token
         ), cursors AS (
             UPDATE antiphon_mq_cursor c SET token = 0 FROM given
              WHERE c.grp = $1 AND c.lane = given.lane AND c.token = given.token
         )
         UPDATE antiphon_mq_group SET regrouped = regrouped + 1 WHERE id = $1",
    )
    .bind(member.group)
    .bind(&lanes)
    .bind(&tokens)
    .execute(connection)
    .await
    .map(drop)
}

/// Gives everything back and leaves the group.
pub(super) async fn leave(
    connection: &mut PgConnection,
    member: &Identity,
    progress: &[Progress],
) -> Result<()> {
    release(connection, member, progress, &[]).await?;
    free_claims(connection, member.group, std::slice::from_ref(&member.owner)).await?;
    sqlx::query("DELETE FROM antiphon_mq_member WHERE grp = $1 AND owner = $2")
        .bind(member.group)
        .bind(&member.owner)
        .execute(connection)
        .await
        .map(drop)
}
