//! What becomes of messages: they wait, die, or are settled by the row that a claim left.

use std::collections::{BTreeMap, BTreeSet};

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::DeadReason;
use antiphon_sqlbroker::{Place, Verdict};
use sqlx::{MySqlConnection, Row};

use super::lanes::{affected, lane, rows, stir};
use crate::sql::{Sql, run};

type Result<T> = std::result::Result<T, sqlx::Error>;

/// A message that is to wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parking<'a> {
    pub(super) place: &'a Place,
    pub(super) due: Timestamp,
    pub(super) attempts: u32,
    /// Who keeps it in hand, or nobody.
    pub(super) owner: &'a str,
}

/// Locks the cursors of these places until the end of the transaction, and answers with which of
/// the tokens are still theirs: nobody can take a lane over before what is done now is committed.
pub(super) async fn fence(
    connection: &mut MySqlConnection,
    places: &[(&Place, i64)],
) -> Result<Vec<bool>> {
    let wanted: BTreeSet<(i64, i64, u32)> =
        places.iter().map(|(place, _)| (place.group, place.topic, place.lane)).collect();
    let mut sql = Sql::default();
    for (group, topic, lane) in wanted {
        sql.sql("SELECT grp, topic, lane, token FROM antiphon_mq_cursor WHERE grp = ");
        sql.number(group).sql(" AND topic = ").number(topic);
        sql.sql(" AND lane = ").number(lane).sql(" FOR UPDATE; ");
    }
    let answers = run(connection, sql).await?;
    let mut tokens: BTreeMap<(i64, i64, u32), i64> = BTreeMap::new();
    for row in (0..answers.len()).flat_map(|index| rows(&answers, index)) {
        tokens.insert((row.try_get(0)?, row.try_get(1)?, lane(row, 2)?), row.try_get(3)?);
    }
    let held = places
        .iter()
        .map(|(place, token)| tokens.get(&(place.group, place.topic, place.lane)) == Some(token));
    Ok(held.collect())
}

fn of_place(sql: &mut Sql, place: &Place) {
    sql.sql(" WHERE grp = ").number(place.group).sql(" AND topic = ").number(place.topic);
    sql.sql(" AND seq = ").number(place.seq);
}

/// Lets messages wait. What comes from a log is copied inside the database.
pub(super) async fn park(connection: &mut MySqlConnection, parking: &[Parking<'_>]) -> Result<()> {
    let mut sql = Sql::default();
    for Parking { place, due, attempts, owner } in parking {
        if place.waited {
            sql.sql("UPDATE antiphon_mq_waiting SET due = ").number(due.as_micros());
            sql.sql(", attempts = ").number(*attempts).sql(", owner = ").value(owner);
            of_place(&mut sql, place);
            sql.sql("; ");
            continue;
        }
        sql.sql(
            "INSERT INTO antiphon_mq_waiting \
             (grp, topic, seq, lane, `key`, due, attempts, owner, id, kind, head, body) SELECT ",
        );
        sql.number(place.group).sql(", topic, seq, ").number(place.lane).sql(", ");
        sql.value(&place.key).sql(", ").number(due.as_micros()).sql(", ").number(*attempts);
        sql.sql(", ")
            .value(owner)
            .sql(", id, kind, head, body FROM antiphon_mq_log WHERE topic = ");
        sql.number(place.topic).sql(" AND seq = ").number(place.seq);
        sql.sql(
            " ON DUPLICATE KEY UPDATE due = VALUES(due), attempts = VALUES(attempts), \
             owner = VALUES(owner); ",
        );
    }
    if sql.len() > 0 {
        run(connection, sql).await?;
    }
    Ok(())
}

/// Messages stay in the hands of a member that gives their lanes away.
pub(super) async fn claim(
    connection: &mut MySqlConnection,
    owner: &str,
    claimed: &[&(Place, u32)],
) -> Result<()> {
    let parking: Vec<Parking<'_>> = claimed
        .iter()
        .map(|(place, attempts)| Parking { place, due: Timestamp::MAX, attempts: *attempts, owner })
        .collect();
    park(connection, &parking).await
}

/// Makes a message a dead letter of its group.
pub(super) async fn bury(
    connection: &mut MySqlConnection,
    place: &Place,
    id: MessageId,
    reason: &DeadReason,
    at: Timestamp,
) -> Result<()> {
    let mut sql = Sql::new(
        "INSERT INTO antiphon_mq_dead (grp, id, topic, seq, lane, `key`, kind, head, body) SELECT ",
    );
    sql.number(place.group).sql(", ").value(id.as_bytes()).sql(", topic, seq, ");
    sql.number(place.lane).sql(", ").value(&place.key).sql(", kind, head, body FROM ");
    if place.waited {
        sql.sql("antiphon_mq_waiting");
        of_place(&mut sql, place);
    } else {
        sql.sql("antiphon_mq_log WHERE topic = ").number(place.topic);
        sql.sql(" AND seq = ").number(place.seq);
    }
    sql.sql(
        " ON DUPLICATE KEY UPDATE topic = VALUES(topic), seq = VALUES(seq), lane = VALUES(lane), \
         `key` = VALUES(`key`), kind = VALUES(kind), head = VALUES(head), body = VALUES(body); ",
    );
    note_death(&mut sql, place.group, id, reason, at);
    if place.waited {
        sql.sql("DELETE FROM antiphon_mq_waiting");
        of_place(&mut sql, place);
    }
    run(connection, sql).await.map(drop)
}

/// Adds to what is known of a dead letter.
pub(super) fn note_death(
    sql: &mut Sql,
    group: i64,
    id: MessageId,
    reason: &DeadReason,
    at: Timestamp,
) {
    sql.sql("INSERT INTO antiphon_mq_death (grp, id, code, error, attempts, at) VALUES (");
    sql.number(group).sql(",").value(id.as_bytes()).sql(",").value(reason.code).sql(",");
    sql.value(&reason.error).sql(",").number(reason.attempts).sql(",");
    sql.number(at.as_micros()).sql("); ");
}

/// Settles a claimed message; `false` when the claim is gone.
pub(super) async fn settle_claimed(
    connection: &mut MySqlConnection,
    place: &Place,
    owner: &str,
    verdict: &Verdict,
) -> Result<bool> {
    let mut sql = Sql::new("UPDATE antiphon_mq_waiting SET owner = ''");
    of_place(&mut sql, place);
    sql.sql(" AND owner = ").value(owner);
    if affected(&run(connection, sql).await?, 0) == 0 {
        return Ok(false);
    }
    match verdict {
        Verdict::Done => forget(connection, place).await?,
        Verdict::Again { due, attempts } => {
            let parking = Parking { place, due: *due, attempts: *attempts, owner: "" };
            park(connection, &[parking]).await?;
        }
        Verdict::Dead { id, reason, at } => bury(connection, place, *id, reason, *at).await?,
    }
    stir(connection, place.group).await?;
    Ok(true)
}

/// A waiting message was handled: it and the memory of its deaths go.
async fn forget(connection: &mut MySqlConnection, place: &Place) -> Result<()> {
    let mut sql = Sql::new(
        "DELETE d FROM antiphon_mq_death d JOIN antiphon_mq_waiting w \
         ON w.grp = d.grp AND w.id = d.id WHERE w.grp = ",
    );
    sql.number(place.group).sql(" AND w.topic = ").number(place.topic);
    sql.sql(" AND w.seq = ").number(place.seq).sql("; DELETE FROM antiphon_mq_waiting");
    of_place(&mut sql, place);
    run(connection, sql).await.map(drop)
}
