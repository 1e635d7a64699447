//! Answers that lie at an address until its process has taken them.

use antiphon_core::Timestamp;
use antiphon_messaging::{Message, row};
use sqlx::{MySqlConnection, Row};

use super::lanes::rows;
use super::scan;
use crate::sql::{Sql, run, text};

type Result<T> = std::result::Result<T, sqlx::Error>;

pub(super) async fn lay(
    connection: &mut MySqlConnection,
    address: &str,
    message: &Message,
    at: Timestamp,
) -> Result<()> {
    let mut sql = Sql::new(
        "INSERT INTO antiphon_mq_answer (address, at, topic, id, kind, head, body) VALUES (",
    );
    sql.value(address).sql(",").number(at.as_micros()).sql(",").value(&message.topic).sql(",");
    sql.value(message.id.as_bytes()).sql(",").value(&message.kind).sql(",");
    sql.value(row::encode_head(message)).sql(",").value(&message.body).sql(")");
    run(connection, sql).await.map(drop)
}

fn at_addresses(sql: &mut Sql, addresses: &[String]) {
    sql.sql(" FROM antiphon_mq_answer WHERE address IN (x''");
    for address in addresses {
        sql.sql(",").value(address);
    }
    sql.sql(")");
}

/// Asks whether any are there, with one row if so.
pub(super) fn ask(addresses: &[String]) -> Sql {
    let mut sql = Sql::new("SELECT n");
    at_addresses(&mut sql, addresses);
    sql.sql(" LIMIT 1");
    sql
}

/// Takes them away, in the order in which they were laid down. One that is broken is of no use, and
/// goes as well.
pub(super) async fn take(
    connection: &mut MySqlConnection,
    addresses: &[String],
) -> Result<Vec<(String, Message)>> {
    let mut sql = Sql::new("SELECT n, address, topic, id, kind, head, body");
    at_addresses(&mut sql, addresses);
    sql.sql(" ORDER BY n FOR UPDATE");
    let answers = run(connection, sql).await?;
    let (mut taken, mut numbers) = (Vec::new(), Vec::new());
    for row in rows(&answers, 0) {
        numbers.push(row.try_get::<i64, _>(0)?);
        let (address, topic) = (text(row, 1)?, text(row, 2)?);
        match scan::parts(row, 3, topic) {
            Ok(message) => taken.push((address, message)),
            Err(error) => tracing::error!(address, error, "an answer is broken"),
        }
    }
    if !numbers.is_empty() {
        let mut sql = Sql::new("DELETE FROM antiphon_mq_answer WHERE n IN (");
        sql.numbers(numbers).sql(")");
        run(connection, sql).await?;
    }
    Ok(taken)
}

pub(super) async fn forget(connection: &mut MySqlConnection, before: Timestamp) -> Result<()> {
    let mut sql = Sql::new("DELETE FROM antiphon_mq_answer WHERE at < ");
    sql.number(before.as_micros());
    run(connection, sql).await.map(drop)
}
