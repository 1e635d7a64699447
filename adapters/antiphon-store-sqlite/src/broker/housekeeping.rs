//! What nobody waits for: delayed messages that are due move to the log, and what every group has
//! handled is removed from its beginning.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use antiphon_core::Timestamp;
use rusqlite::{Connection, OptionalExtension, Result, params};

use super::core::Core;

/// How often there is a look, at most and, while delayed messages wait, at least.
const EVERY: Duration = Duration::from_millis(50);
/// How often logs are trimmed.
const TRIM_EVERY: u32 = 10;
/// Rows that are moved or removed in one transaction, so that others get their turn in between.
const ROWS_AT_ONCE: i64 = 4_096;
/// Messages that a topic keeps while no group has been declared for it.
const KEPT_WITHOUT_GROUPS: i64 = 100_000;

/// Keeps house until the broker is gone.
pub(super) async fn run(core: Weak<Core>) {
    let mut next_due: Option<Timestamp> = None;
    let mut untrimmed = 0;
    loop {
        let Some(strong) = core.upgrade() else { return };
        let changed = strong.changed.swap(false, Ordering::AcqRel);
        if changed || next_due.is_some_and(|due| due <= strong.now()) {
            next_due = move_due(&strong).await;
        }
        untrimmed += u32::from(changed || untrimmed > 0);
        if untrimmed > TRIM_EVERY {
            untrimmed = 0;
            while trim(&strong).await {}
        }
        let waits = next_due.is_some() || untrimmed > 0;
        let housekeeping = Arc::downgrade(&strong);
        drop(strong);
        if !waits {
            wait(&housekeeping).await;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Waits until something has changed, or the broker is gone.
async fn wait(core: &Weak<Core>) {
    const LOOK_EVERY: Duration = Duration::from_millis(500);
    while let Some(core) = core.upgrade() {
        if core.changed.load(Ordering::Acquire) {
            return;
        }
        drop(tokio::time::timeout(LOOK_EVERY, core.housekeeping.notified()).await);
    }
}

/// Moves what is due, and answers when the next one is.
async fn move_due(core: &Arc<Core>) -> Option<Timestamp> {
    let first = core.query(first_due).await.ok().flatten()?;
    let now = core.now();
    if first > now {
        return Some(first);
    }
    let told = Arc::downgrade(core);
    let moved = core.write(
        move |connection| move_rows(connection, now),
        move |topics| {
            if let (Ok(topics), Some(core)) = (topics, told.upgrade()) {
                core.published(topics);
            }
        },
    );
    if let Err(failure) = moved.get().await {
        tracing::warn!(%failure, "delayed messages were not moved; trying again");
    }
    // Whatever is left is found by the next look.
    Some(first)
}

fn first_due(connection: &Connection) -> Result<Option<Timestamp>> {
    let due: Option<i64> = connection
        .prepare_cached("SELECT min(due) FROM delayed")?
        .query_row([], |row| row.get(0))?;
    Ok(due.map(Timestamp::from_micros))
}

fn move_rows(connection: &Connection, now: Timestamp) -> Result<Vec<i64>> {
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
    Ok(topics)
}

/// Removes some of what every group has handled; answers whether there is more.
async fn trim(core: &Core) -> bool {
    let behind = core.query(|connection| Ok(!removable(connection)?.is_empty())).await;
    if !behind.unwrap_or(false) {
        return false;
    }
    match core.write(remove, |_| {}).get().await {
        Ok(more) => more,
        Err(failure) => {
            tracing::warn!(%failure, "handled messages were not removed; trying again later");
            false
        }
    }
}

fn remove(connection: &Connection) -> Result<bool> {
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
fn removable(connection: &Connection) -> Result<Vec<(i64, i64, i64)>> {
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
