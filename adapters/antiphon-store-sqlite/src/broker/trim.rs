//! What housekeeping does: delayed messages that are due move to the log, and what every group has
//! handled is removed from its beginning.

use antiphon_core::Timestamp;
use rusqlite::{Connection, OptionalExtension, Result, params};

/// Rows that are moved or removed in one transaction, so that others get their turn in between.
const ROWS_AT_ONCE: i64 = 4_096;
/// Messages that a topic keeps while no group has been declared for it.
const KEPT_WITHOUT_GROUPS: i64 = 100_000;

/// When the first delayed message is due.
pub(super) fn first_due(connection: &Connection) -> Result<Option<Timestamp>> {
    let due: Option<i64> = connection
        .prepare_cached("SELECT min(due) FROM delayed")?
        .query_row([], |row| row.get(0))?;
    Ok(due.map(Timestamp::from_micros))
}

/// Moves what is due; answers with the topics.
pub(super) fn move_due(connection: &Connection, now: Timestamp) -> Result<Vec<(i64, i64)>> {
    let due: Vec<(i64, i64)> = connection
        .prepare_cached(
            "SELECT rowid, topic FROM delayed WHERE due <= ? ORDER BY due, rowid LIMIT ?",
        )?
        .query_map(params![now.as_micros(), ROWS_AT_ONCE], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_>>()?;
    for (row, topic) in &due {
        connection
            .prepare_cached(&format!(
                "INSERT INTO log_{topic} (lane, id, kind, head, body)
                 SELECT lane, id, kind, head, body FROM delayed WHERE rowid = ?"
            ))?
            .execute([row])?;
        connection.prepare_cached("DELETE FROM delayed WHERE rowid = ?")?.execute([row])?;
    }
    let mut topics: Vec<i64> = due.into_iter().map(|(_, topic)| topic).collect();
    topics.sort_unstable();
    topics.dedup();
    // Nobody needs to know how far the logs reach.
    Ok(topics.into_iter().map(|topic| (topic, 0)).collect())
}

/// Removes some of it; answers whether there is more.
pub(super) fn remove(connection: &Connection) -> Result<bool> {
    let mut more = false;
    for (topic, first, end) in removable(connection)? {
        let until = end.min(first + ROWS_AT_ONCE);
        connection
            .prepare_cached(&format!("DELETE FROM log_{topic} WHERE seq < ?"))?
            .execute([until])?;
        more |= until < end;
    }
    Ok(more)
}

/// The topics with rows that nobody needs: the first row, and the first that is needed. The very
/// last row counts as needed, so that its position is not used again.
pub(super) fn removable(connection: &Connection) -> Result<Vec<(i64, i64, i64)>> {
    let topics: Vec<i64> = connection
        .prepare_cached("SELECT id FROM topic")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_>>()?;
    let mut removable = Vec::new();
    for topic in topics {
        let ends: Option<(i64, i64)> = connection
            .prepare_cached(&format!(
                "SELECT (SELECT min(seq) FROM log_{topic}), (SELECT max(seq) FROM log_{topic})"
            ))?
            .query_row([], |row| Ok(row.get(0).and_then(|first| Ok((first, row.get(1)?)))))?
            .ok();
        let Some((first, last)) = ends else { continue };
        let low: Option<i64> = connection
            .prepare_cached("SELECT low FROM cursor WHERE topic = ? ORDER BY low LIMIT 1")?
            .query_row([topic], |row| row.get(0))
            .optional()?;
        let end = low.unwrap_or(last - KEPT_WITHOUT_GROUPS).min(last);
        if first < end {
            removable.push((topic, first, end));
        }
    }
    Ok(removable)
}
