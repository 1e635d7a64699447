//! What housekeeping does: delayed messages that are due move to the log, and what every group has
//! handled is removed from its tail.

use std::collections::BTreeMap;

use antiphon_core::Timestamp;
use sqlx::{MySqlConnection, Row};

use super::lanes::rows;
use super::publish::{ask_heads, heads, take_positions};
use crate::sql::{Answer, Sql, run};

type Result<T> = std::result::Result<T, sqlx::Error>;

/// Rows that are moved or removed in one transaction, so that others get their turn in between.
const ROWS_AT_ONCE: i64 = 2_048;
/// Messages that a topic keeps while no group has been declared for it.
const KEPT_WITHOUT_GROUPS: i64 = 100_000;

/// Asks when the first delayed message is due.
pub(super) const FIRST_DUE: &str = "SELECT MIN(due) FROM antiphon_mq_delayed";

/// Moves what is due to the logs; answers with their heads. What another process is moving is left
/// to it. The rows of `topic` are locked last, as in publishing.
pub(super) async fn move_due(
    connection: &mut MySqlConnection,
    now: Timestamp,
) -> Result<Vec<(i64, i64)>> {
    let mut sql = Sql::new(
        "SELECT n, topic FROM antiphon_mq_delayed FORCE INDEX (antiphon_mq_delayed_due) \
         WHERE due <= ",
    );
    sql.number(now.as_micros()).sql(" ORDER BY due, n LIMIT ").number(ROWS_AT_ONCE);
    sql.sql(" FOR UPDATE SKIP LOCKED");
    let due = run(connection, sql).await?;
    let mut counts: BTreeMap<i64, i64> = BTreeMap::new();
    let mut numbers: Vec<i64> = Vec::new();
    for row in rows(&due, 0) {
        numbers.push(row.try_get(0)?);
        *counts.entry(row.try_get(1)?).or_default() += 1;
    }
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let mut sql = Sql::default();
    take_positions(&mut sql, &counts);
    sql.sql("INSERT INTO antiphon_mq_log (topic, seq, lane, id, kind, head, body) ");
    sql.sql("SELECT topic, CASE topic");
    for topic in counts.keys() {
        sql.sql(" WHEN ").number(*topic).sql(" THEN @b").number(*topic);
    }
    sql.sql(" END + ROW_NUMBER() OVER (PARTITION BY topic ORDER BY due, n), ");
    sql.sql("lane, id, kind, head, body FROM antiphon_mq_delayed WHERE n IN (");
    sql.numbers(numbers.iter().copied());
    sql.sql("); DELETE FROM antiphon_mq_delayed WHERE n IN (");
    sql.numbers(numbers.iter().copied()).sql("); ");
    ask_heads(&mut sql, &counts);
    heads(run(connection, sql).await?.last())
}

/// Asks for the topics with rows that nobody needs; read by [`read_removable`].
pub(super) fn ask_removable() -> Sql {
    let mut sql = Sql::new(
        "SELECT tail.topic, tail.first, \
                LEAST(COALESCE((SELECT MIN(c.low) FROM antiphon_mq_cursor c \
                                 WHERE c.topic = tail.topic), t.head - ",
    );
    sql.number(KEPT_WITHOUT_GROUPS);
    sql.sql(
        "), t.head + 1) FROM antiphon_mq_tail tail JOIN antiphon_mq_topic t ON t.id = tail.topic",
    );
    sql
}

/// Topics with the first row that there may be, and the first that is needed.
pub(super) fn read_removable(answers: &[Answer]) -> Result<Vec<(i64, i64, i64)>> {
    let mut removable = Vec::new();
    for row in rows(answers, 0) {
        let (topic, first, end): (i64, i64, i64) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if first < end {
            removable.push((topic, first, end));
        }
    }
    Ok(removable)
}

/// Removes some of it; answers whether there is more. What another process removes is left to it.
pub(super) async fn remove(connection: &mut MySqlConnection) -> Result<bool> {
    let mut more = false;
    let removable = run(connection, ask_removable()).await?;
    for (topic, _, end) in read_removable(&removable)? {
        let mut sql = Sql::new("SELECT first FROM antiphon_mq_tail WHERE topic = ");
        sql.number(topic).sql(" AND first < ").number(end).sql(" FOR UPDATE SKIP LOCKED");
        let mine = run(connection, sql).await?;
        let Some(row) = rows(&mine, 0).first() else { continue };
        let first: i64 = row.try_get(0)?;
        let next = end.min(first + ROWS_AT_ONCE);
        let mut sql = Sql::new("DELETE FROM antiphon_mq_log WHERE topic = ");
        sql.number(topic).sql(" AND seq >= ").number(first).sql(" AND seq < ").number(next);
        sql.sql("; UPDATE antiphon_mq_tail SET first = ").number(next);
        sql.sql(" WHERE topic = ").number(topic);
        run(connection, sql).await?;
        more |= next < end;
    }
    Ok(more)
}
