//! The statements of a group's life: lanes are shared out, cursors move, messages wait and die.
//!
//! Every change for a lane checks in the same transaction that the lease is still the caller's.

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{DeadReason, LANES};
use antiphon_sqlbroker::{
    Beat, Identity, Place, Progress, Shared, Taken, Verdict, Written, fair_share, unpack,
};
use rusqlite::{Connection, OptionalExtension, Result, params};

/// Whether `token` is still the lane's.
pub(super) fn holds(connection: &Connection, group: i64, lane: u32, token: i64) -> Result<bool> {
    connection
        .prepare_cached("SELECT 1 FROM lease WHERE grp = ? AND lane = ? AND token = ?")?
        .exists(params![group, lane, token])
}

/// Announces a member, renews its leases, and takes free lanes up to its fair share.
pub(super) fn heartbeat(connection: &Connection, member: &Identity, beat: &Beat) -> Result<Shared> {
    let (now, until) = (beat.now.as_micros(), (beat.now + beat.ttl).as_micros());
    let Identity { group, owner, .. } = member;
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        connection.prepare_cached(sql)?.execute(values)
    };
    let renew = "UPDATE member SET until = ?, idle = ? WHERE grp = ? AND owner = ?";
    let joined = run(renew, &[&until, &beat.idle, group, owner])? == 0;
    if joined {
        let join = "INSERT INTO member (grp, owner, until, idle) VALUES (?, ?, ?, ?)";
        run(join, &[group, owner, &until, &beat.idle])?;
    }
    if run("DELETE FROM member WHERE grp = ? AND until < ?", &[group, &now])? > 0 {
        give_up_claims(
            connection,
            "grp = ?1 AND owner <> '' AND owner NOT IN (SELECT owner FROM member WHERE grp = ?1)",
            params![group],
        )?;
    }
    let mut kept = Vec::new();
    for (lane, token) in &beat.held {
        let renew = "UPDATE lease SET until = ? WHERE grp = ? AND lane = ? AND token = ?";
        if run(renew, &[&until, group, lane, token])? == 1 {
            kept.push(*lane);
        }
    }
    let target = fair_share(&members(connection, *group)?, owner);
    let mut taken = Vec::new();
    if !beat.closing && kept.len() < target {
        for lane in free_lanes(connection, *group, now)?.into_iter().take(target - kept.len()) {
            taken.push(take(connection, member, lane, until)?);
        }
    }
    let stirred = connection
        .prepare_cached("SELECT value FROM value WHERE name = 'stirred'")?
        .query_row([], |row| row.get(0))?;
    Ok(Shared { target, kept, taken, stirred, joined })
}

fn members(connection: &Connection, group: i64) -> Result<Vec<(String, bool)>> {
    connection
        .prepare_cached("SELECT owner, idle FROM member WHERE grp = ?")?
        .query_map([group], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

/// Claimed messages that match become due at once, for whoever has their lane.
fn give_up_claims(
    connection: &Connection,
    which: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<()> {
    let changed = connection
        .prepare_cached(&format!("UPDATE waiting SET due = 0, owner = '' WHERE {which}"))?
        .execute(values)?;
    if changed > 0 { stir(connection) } else { Ok(()) }
}

/// Tells the holders of lanes to look at their waiting messages again.
pub(super) fn stir(connection: &Connection) -> Result<()> {
    connection
        .prepare_cached("UPDATE value SET value = value + 1 WHERE name = 'stirred'")?
        .execute([])
        .map(drop)
}

fn free_lanes(connection: &Connection, group: i64, now: i64) -> Result<Vec<u32>> {
    let live: Vec<u32> = connection
        .prepare_cached("SELECT lane FROM lease WHERE grp = ? AND until > ?")?
        .query_map(params![group, now], |row| row.get(0))?
        .collect::<Result<_>>()?;
    Ok((0..LANES).filter(|lane| !live.contains(lane)).collect())
}

fn take(connection: &Connection, member: &Identity, lane: u32, until: i64) -> Result<Taken> {
    let token: i64 = connection
        .prepare_cached("UPDATE value SET value = value + 1 WHERE name = 'token' RETURNING value")?
        .query_row([], |row| row.get(0))?;
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO lease (grp, lane, token, owner, until) VALUES (?, ?, ?, ?, ?)",
        )?
        .execute(params![member.group, lane, token, member.owner, until])?;
    let mut cursor = connection.prepare_cached(
        "SELECT position, open FROM cursor WHERE grp = ? AND topic = ? AND lane = ?",
    )?;
    let cursors = member
        .topics
        .iter()
        .map(|topic| {
            let read = cursor.query_row(params![member.group, topic, lane], |row| {
                Ok((row.get(0)?, unpack(row.get_ref(1)?.as_blob()?)))
            });
            Ok(read.optional()?.unwrap_or_default())
        })
        .collect::<Result<_>>()?;
    Ok(Taken { lane, token, cursors })
}

/// Writes progress; answers with the lanes whose lease was lost, where nothing was written.
pub(super) fn advance(
    connection: &Connection,
    group: i64,
    progress: &[Progress],
) -> Result<Vec<u32>> {
    let mut lost = Vec::new();
    for Progress { lane, token, cursors, done } in progress {
        if !holds(connection, group, *lane, *token)? {
            lost.push(*lane);
            continue;
        }
        let mut write = connection.prepare_cached(
            "UPDATE cursor SET position = ?, open = ?, low = ?
              WHERE grp = ? AND topic = ? AND lane = ?",
        )?;
        for Written { topic, position, low, open } in cursors {
            write.execute(params![position, open, low, group, topic, lane])?;
        }
        for (topic, seq) in done {
            remove_waiting(connection, group, *topic, *seq)?;
        }
    }
    Ok(lost)
}

/// A waiting message was handled: it and the memory of its deaths go.
fn remove_waiting(connection: &Connection, group: i64, topic: i64, seq: i64) -> Result<()> {
    let id: Option<Vec<u8>> = connection
        .prepare_cached("DELETE FROM waiting WHERE grp = ? AND topic = ? AND seq = ? RETURNING id")?
        .query_row(params![group, topic, seq], |row| row.get(0))
        .optional()?;
    if let Some(id) = id {
        connection
            .prepare_cached("DELETE FROM death WHERE grp = ? AND id = ?")?
            .execute(params![group, id])?;
    }
    Ok(())
}

/// Gives leases back; the `claimed` messages of those lanes stay in the member's hands.
pub(super) fn release(
    connection: &Connection,
    member: &Identity,
    progress: &[Progress],
    claimed: &[(Place, u32)],
) -> Result<()> {
    let lost = advance(connection, member.group, progress)?;
    for (place, attempts) in claimed.iter().filter(|(place, _)| !lost.contains(&place.lane)) {
        park(connection, place, Timestamp::MAX, *attempts)?;
        connection
            .prepare_cached("UPDATE waiting SET owner = ? WHERE grp = ? AND topic = ? AND seq = ?")?
            .execute(params![member.owner, place.group, place.topic, place.seq])?;
    }
    let mut release =
        connection.prepare_cached("DELETE FROM lease WHERE grp = ? AND lane = ? AND token = ?")?;
    for Progress { lane, token, .. } in progress {
        release.execute(params![member.group, lane, token])?;
    }
    Ok(())
}

/// Gives everything back and leaves the group.
pub(super) fn leave(
    connection: &Connection,
    member: &Identity,
    progress: &[Progress],
) -> Result<()> {
    release(connection, member, progress, &[])?;
    let Identity { group, owner, .. } = member;
    give_up_claims(connection, "grp = ? AND owner = ?", params![group, owner])?;
    connection
        .prepare_cached("DELETE FROM member WHERE grp = ? AND owner = ?")?
        .execute(params![group, owner])
        .map(drop)
}

/// Settles a claimed message; `false` when the claim is gone.
pub(super) fn settle_claimed(
    connection: &Connection,
    place: &Place,
    owner: &str,
    verdict: &Verdict,
) -> Result<bool> {
    let Place { group, topic, seq, .. } = place;
    let claimed = connection
        .prepare_cached(
            "UPDATE waiting SET owner = '' WHERE grp = ? AND topic = ? AND seq = ? AND owner = ?",
        )?
        .execute(params![group, topic, seq, owner])?;
    if claimed == 0 {
        return Ok(false);
    }
    match verdict {
        Verdict::Done => remove_waiting(connection, *group, *topic, *seq)?,
        Verdict::Again { due, attempts } => park(connection, place, *due, *attempts)?,
        Verdict::Dead { id, reason, at } => bury(connection, place, *id, reason, *at)?,
    }
    stir(connection)?;
    Ok(true)
}

/// Lets a message wait until `due`. Its columns are copied inside the database.
pub(super) fn park(
    connection: &Connection,
    place: &Place,
    due: Timestamp,
    attempts: u32,
) -> Result<()> {
    let Place { group, topic, seq, lane, key, waited } = place;
    let due = due.as_micros();
    if *waited {
        connection
            .prepare_cached(
                "UPDATE waiting SET due = ?, attempts = ? WHERE grp = ? AND topic = ? AND seq = ?",
            )?
            .execute(params![due, attempts, group, topic, seq])?;
    } else {
        connection
            .prepare_cached(&format!(
                "INSERT OR REPLACE INTO waiting
                    (grp, topic, seq, lane, key, due, attempts, id, kind, head, body)
                 SELECT ?, ?, seq, ?, ?, ?, ?, id, kind, head, body FROM log_{topic} WHERE seq = ?"
            ))?
            .execute(params![group, topic, lane, key, due, attempts, seq])?;
    }
    Ok(())
}

/// Makes a message a dead letter of its group.
pub(super) fn bury(
    connection: &Connection,
    place: &Place,
    id: MessageId,
    reason: &DeadReason,
    at: Timestamp,
) -> Result<()> {
    let Place { group, topic, seq, lane, key, waited } = place;
    let id = id.as_bytes();
    let from = if *waited {
        format!("waiting WHERE grp = {group} AND topic = {topic} AND seq = ?")
    } else {
        format!("log_{topic} WHERE seq = ?")
    };
    connection
        .prepare_cached(&format!(
            "INSERT OR REPLACE INTO dead (grp, id, topic, seq, lane, key, kind, head, body)
             SELECT ?, ?, ?, seq, ?, ?, kind, head, body FROM {from}"
        ))?
        .execute(params![group, id, topic, lane, key, seq])?;
    note_death(connection, *group, id, reason, at)?;
    if *waited {
        connection
            .prepare_cached("DELETE FROM waiting WHERE grp = ? AND topic = ? AND seq = ?")?
            .execute(params![group, topic, seq])?;
    }
    Ok(())
}

/// Adds to what is known of a dead letter.
pub(super) fn note_death(
    connection: &Connection,
    group: i64,
    id: &[u8; 16],
    reason: &DeadReason,
    at: Timestamp,
) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO death (grp, id, code, error, attempts, at) VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![group, id, reason.code, reason.error, reason.attempts, at.as_micros()])
        .map(drop)
}
