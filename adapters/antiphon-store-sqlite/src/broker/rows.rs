//! The statements of a group's life: lanes are shared out, cursors move, messages wait and die.
//!
//! Every change for a lane checks in the same transaction that the lease is still the caller's.

use std::collections::BTreeSet;

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::{DeadReason, LANES};
use rusqlite::{Connection, OptionalExtension, Result, params};

/// A lane that was taken, with the cursors of the topics that were asked for.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) lane: u32,
    pub(super) token: i64,
    pub(super) cursors: Vec<(i64, BTreeSet<i64>)>,
}

/// The answer to a heartbeat.
#[derive(Debug)]
pub(super) struct Shared {
    /// How many lanes the member is to have.
    pub(super) target: usize,
    /// Which of its lanes it still has.
    pub(super) kept: Vec<u32>,
    pub(super) taken: Vec<Taken>,
    /// Changes when waiting messages were changed by somebody else than the holder of their lane.
    pub(super) stirred: i64,
    /// Whether the member is new.
    pub(super) joined: bool,
}

/// A member of a group, as the tables know it.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) group: i64,
    pub(super) owner: String,
    pub(super) topics: Vec<i64>,
}

/// Cursors of one lane to be written, and waiting rows to be removed, as (topic, seq).
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) lane: u32,
    pub(super) token: i64,
    pub(super) cursors: Vec<Written>,
    pub(super) done: Vec<(i64, i64)>,
}

#[derive(Debug)]
pub(super) struct Written {
    pub(super) topic: i64,
    pub(super) position: i64,
    pub(super) low: i64,
    pub(super) open: Vec<u8>,
}

/// Whether `token` is still the lane's.
pub(super) fn holds(connection: &Connection, group: i64, lane: u32, token: i64) -> Result<bool> {
    connection
        .prepare_cached("SELECT 1 FROM lease WHERE grp = ? AND lane = ? AND token = ?")?
        .exists(params![group, lane, token])
}

/// What a member says with its heartbeat.
#[derive(Debug)]
pub(super) struct Beat {
    pub(super) held: Vec<(u32, i64)>,
    /// It takes no more lanes.
    pub(super) closing: bool,
    /// Its consumer has not asked for anything for some time; others may have all its lanes.
    pub(super) idle: bool,
    pub(super) now: Timestamp,
    pub(super) until: Timestamp,
}

/// Announces a member, renews its leases, and takes free lanes up to its fair share.
pub(super) fn heartbeat(connection: &Connection, member: &Identity, beat: &Beat) -> Result<Shared> {
    let (now, until) = (beat.now.as_micros(), beat.until.as_micros());
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
    let target = fair_share(connection, *group, owner, beat.idle)?;
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

/// The lanes divided by the members; the first members in the order of their names get one more.
/// Idle members get none, unless all are idle.
fn fair_share(connection: &Connection, group: i64, owner: &str, idle: bool) -> Result<usize> {
    let count = |idle_too: bool| -> Result<(u32, u32)> {
        connection
            .prepare_cached(
                "SELECT count(*), coalesce(sum(owner < ?2), 0) FROM member
                  WHERE grp = ?1 AND idle <= ?3",
            )?
            .query_row(params![group, owner, idle_too], |row| Ok((row.get(0)?, row.get(1)?)))
    };
    let (members, before) = match count(false)? {
        (0, _) => count(true)?,
        _ if idle => return Ok(0),
        active => active,
    };
    let members = members.max(1);
    Ok((LANES / members) as usize + usize::from(before < LANES % members))
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

/// What becomes of a claimed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    Again { due: Timestamp, attempts: u32 },
    Dead { id: MessageId, reason: DeadReason, at: Timestamp },
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

/// A message of a group, by its place and its key.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) group: i64,
    pub(super) topic: i64,
    pub(super) seq: i64,
    pub(super) lane: u32,
    pub(super) key: String,
    /// Whether it is in `waiting` by now, or still only in the log.
    pub(super) waited: bool,
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

/// Positions as bytes: each is the distance to the one before, as a LEB128 number.
pub(super) fn pack(positions: &BTreeSet<i64>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(positions.len() * 2);
    let mut last = 0;
    for position in positions {
        let mut distance = position.wrapping_sub(last).cast_unsigned();
        last = *position;
        while distance >= 0x80 {
            bytes.push((distance & 0x7f) as u8 | 0x80);
            distance >>= 7;
        }
        bytes.push(distance as u8);
    }
    bytes
}

/// The positions in `bytes`; what is broken at their end is left out.
pub(super) fn unpack(bytes: &[u8]) -> BTreeSet<i64> {
    let mut positions = BTreeSet::new();
    let (mut last, mut distance, mut shift) = (0_i64, 0_u64, 0);
    for byte in bytes {
        distance |= u64::from(byte & 0x7f).unbounded_shl(shift);
        shift += 7;
        if *byte < 0x80 {
            last = last.wrapping_add(distance.cast_signed());
            positions.insert(last);
            (distance, shift) = (0, 0);
        }
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_round_trip() {
        let positions: BTreeSet<i64> = [1, 2, 3, 200, 40_000, i64::MAX].into();
        assert_eq!(unpack(&pack(&positions)), positions);
        assert_eq!(unpack(&pack(&BTreeSet::new())), BTreeSet::new());
        assert_eq!(unpack(&[0x80]), BTreeSet::new());
    }
}
