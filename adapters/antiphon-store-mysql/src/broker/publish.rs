//! Publishing: rows at the heads of the logs, or among the delayed until they are due.

use std::collections::BTreeMap;

use antiphon_sqlbroker::Row;
use sqlx::{MySqlConnection, Row as _};

use crate::sql::{Answer, Sql, run};

/// Whether any of these rows has to wait.
pub(super) fn is_delayed(rows: &[Row]) -> bool {
    rows.iter().any(|row| row.due.is_some())
}

/// Takes positions: locks the rows of `topic` in the order of their numbers, and last of all that a
/// transaction locks, so nobody waits in a circle; the lock lasts until the commit, which puts
/// commits into the order of the positions. The position before the first is then in `@b` with the
/// number of the topic.
pub(super) fn take_positions(sql: &mut Sql, counts: &BTreeMap<i64, i64>) {
    for (topic, count) in counts {
        sql.sql("UPDATE antiphon_mq_topic SET head = LAST_INSERT_ID(head) + ").number(*count);
        sql.sql(" WHERE id = ").number(*topic);
        sql.sql("; SET @b").number(*topic).sql(" = LAST_INSERT_ID(); ");
    }
}

/// Asks for the heads after [`take_positions`].
pub(super) fn ask_heads(sql: &mut Sql, counts: &BTreeMap<i64, i64>) {
    sql.sql("SELECT ").list(" UNION ALL SELECT ", counts, |sql, (topic, count)| {
        sql.number(*topic).sql(", CAST(@b").number(*topic).sql(" AS SIGNED) + ").number(*count);
    });
}

/// Reads what [`ask_heads`] has asked.
pub(super) fn heads(answer: Option<&Answer>) -> Result<Vec<(i64, i64)>, sqlx::Error> {
    let rows = answer.map(|answer| answer.rows.as_slice()).unwrap_or_default();
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Statements of a transaction, in as few texts as the server takes.
pub(super) struct Texts {
    packet_max: usize,
    full: Vec<Sql>,
    sql: Sql,
}

impl Texts {
    pub(super) fn new(sql: Sql, packet_max: usize) -> Self {
        Self { packet_max, full: Vec::new(), sql }
    }

    /// Adds rows to a table; `begin` is the statement up to its values.
    fn insert<'a>(
        &mut self,
        begin: &str,
        rows: &[&'a Row],
        mut values: impl FnMut(&mut Sql, &'a Row),
    ) -> Result<(), sqlx::Error> {
        let mut open = false;
        for row in rows {
            let bytes = 2 * (row.head.len() + row.body.len() + row.kind.len()) + begin.len() + 256;
            if bytes + 1024 > self.packet_max {
                let problem = format!(
                    "a message of {} bytes needs a max_allowed_packet of {bytes} on the server",
                    row.body.len()
                );
                return Err(sqlx::Error::Encode(problem.into()));
            }
            if self.sql.len() + bytes > self.packet_max {
                self.full.push(std::mem::take(&mut self.sql));
                open = false;
            }
            self.sql.sql(if open { "," } else { begin });
            open = true;
            values(&mut self.sql, row);
            let Row { lane, id, kind, head, body, .. } = row;
            self.sql.number(*lane).sql(",").value(id).sql(",").value(kind).sql(",");
            self.sql.value(head).sql(",").value(body).sql(")");
        }
        if open {
            self.sql.sql("; ");
        }
        Ok(())
    }

    /// Adds batches of messages; must come last in the transaction. Answers with how many there are
    /// per topic; [`ask_heads`] was added.
    pub(super) fn publish(
        &mut self,
        batches: &[&[Row]],
    ) -> Result<BTreeMap<i64, i64>, sqlx::Error> {
        let (mut now, mut later) = (Vec::new(), Vec::new());
        let mut counts: BTreeMap<i64, i64> = BTreeMap::new();
        for row in batches.iter().copied().flatten() {
            if row.due.is_some() {
                later.push(row);
            } else {
                *counts.entry(row.topic).or_default() += 1;
                now.push(row);
            }
        }
        self.insert(
            "INSERT INTO antiphon_mq_delayed (due, topic, lane, id, kind, head, body) VALUES ",
            &later,
            |sql, row| {
                let due = row.due.map_or(0, antiphon_core::Timestamp::as_micros);
                sql.sql("(").number(due).sql(",").number(row.topic).sql(",");
            },
        )?;
        if counts.is_empty() {
            return Ok(counts);
        }
        take_positions(&mut self.sql, &counts);
        let mut numbers: BTreeMap<i64, i64> = BTreeMap::new();
        self.insert(
            "INSERT INTO antiphon_mq_log (topic, seq, lane, id, kind, head, body) VALUES ",
            &now,
            |sql, row| {
                let number = numbers.entry(row.topic).or_default();
                *number += 1;
                sql.sql("(").number(row.topic).sql(",@b").number(row.topic).sql("+");
                sql.number(*number).sql(",");
            },
        )?;
        ask_heads(&mut self.sql, &counts);
        Ok(counts)
    }

    /// Runs all but the last, and answers with that.
    pub(super) async fn last(self, connection: &mut MySqlConnection) -> Result<Sql, sqlx::Error> {
        for sql in self.full {
            run(connection, sql).await?;
        }
        Ok(self.sql)
    }
}
