//! What housekeeping does: delayed messages that are due move to the log, and what every group has
//! handled is removed from its tail.

use antiphon_core::Timestamp;
use sqlx::{PgConnection, Row};

type Result<T> = std::result::Result<T, sqlx::Error>;

/// Rows that are moved or removed in one transaction, so that others get their turn in between.
const ROWS_AT_ONCE: i64 = 2_048;
/// Messages that a topic keeps while no group has been declared for it.
const KEPT_WITHOUT_GROUPS: i64 = 100_000;

/// When the first delayed message is due.
pub(super) async fn first_due(connection: &mut PgConnection) -> Result<Option<Timestamp>> {
    let first = "SELECT min(due) FROM antiphon_mq_delayed";
    let due: Option<i64> = sqlx::query(first).fetch_one(connection).await?.try_get(0)?;
    Ok(due.map(Timestamp::from_micros))
}

/// Moves what is due to the logs; answers with their heads. What another process is moving is left
/// to it. The rows of `topic` are locked last, as in publishing.
pub(super) async fn move_due(
    connection: &mut PgConnection,
    now: Timestamp,
) -> Result<Vec<(i64, i64)>> {
    let grown = sqlx::query(
        "WITH due AS MATERIALIZED (
             SELECT n, due, topic, lane, id, kind, head, body FROM antiphon_mq_delayed
              WHERE due <= $1 ORDER BY due, n LIMIT $2 FOR UPDATE SKIP LOCKED
         ), gone AS (
             DELETE FROM antiphon_mq_delayed WHERE n IN (SELECT n FROM due)
         ), want AS MATERIALIZED (
             SELECT topic, count(*) AS n FROM due GROUP BY topic
         ), locked AS (
             SELECT t.id FROM antiphon_mq_topic t WHERE t.id IN (SELECT topic FROM want)
              ORDER BY t.id FOR NO KEY UPDATE
         ), grown AS (
             UPDATE antiphon_mq_topic t SET head = t.head + want.n
               FROM want JOIN locked ON locked.id = want.topic
              WHERE t.id = want.topic
             RETURNING t.id, t.head, want.n
         ), written AS (
             INSERT INTO antiphon_mq_log (topic, seq, lane, id, kind, head, body)
             SELECT d.topic,
                    grown.head - grown.n
                        + row_number() OVER (PARTITION BY d.topic ORDER BY d.due, d.n),
                    d.lane, d.id, d.kind, d.head, d.body
               FROM due d JOIN grown ON grown.id = d.topic
         )
         SELECT id, head FROM grown",
    )
    .bind(now.as_micros())
    .bind(ROWS_AT_ONCE)
    .fetch_all(connection)
    .await?;
    grown.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// The topics with rows that nobody needs: the first row there may be, and the first that is needed.
pub(super) async fn removable(connection: &mut PgConnection) -> Result<Vec<(i64, i64, i64)>> {
    let rows = sqlx::query(
        "SELECT tail.topic, tail.first, needed.first
           FROM antiphon_mq_tail tail
           JOIN antiphon_mq_topic t ON t.id = tail.topic
           LEFT JOIN (SELECT topic, min(low) AS low FROM antiphon_mq_cursor GROUP BY topic) c
             ON c.topic = tail.topic
          CROSS JOIN LATERAL (SELECT least(coalesce(c.low, t.head - $1), t.head + 1) AS first)
                     AS needed
          WHERE needed.first > tail.first",
    )
    .bind(KEPT_WITHOUT_GROUPS)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
}

/// Removes some of it; answers whether there is more. What another process removes is left to it.
pub(super) async fn remove(connection: &mut PgConnection) -> Result<bool> {
    let mut more = false;
    for (topic, _, end) in removable(connection).await? {
        let rows = sqlx::query(
            "WITH mine AS (
                 SELECT first, least($2, first + $3) AS next FROM antiphon_mq_tail
                  WHERE topic = $1 AND first < $2 FOR NO KEY UPDATE SKIP LOCKED
             ), gone AS (
                 DELETE FROM antiphon_mq_log l USING mine
                  WHERE l.topic = $1 AND l.seq >= mine.first AND l.seq < mine.next
             )
             UPDATE antiphon_mq_tail tail SET first = mine.next FROM mine WHERE tail.topic = $1
             RETURNING tail.first",
        )
        .bind(topic)
        .bind(end)
        .bind(ROWS_AT_ONCE)
        .fetch_all(&mut *connection)
        .await?;
        for row in &rows {
            more |= row.try_get::<i64, _>(0)? < end;
        }
    }
    Ok(more)
}
