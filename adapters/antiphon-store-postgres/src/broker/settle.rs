//! What becomes of messages: they wait, die, or are settled by the row that a claim left.

use std::collections::{BTreeMap, BTreeSet};

use antiphon_core::{MessageId, Timestamp};
use antiphon_messaging::DeadReason;
use antiphon_sqlbroker::{Place, Verdict};
use sqlx::{PgConnection, Row};

use super::lanes::{lane, number, stir};

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
    connection: &mut PgConnection,
    places: &[(&Place, i64)],
) -> Result<Vec<bool>> {
    let wanted: BTreeSet<(i64, i64, i32)> =
        places.iter().map(|(place, _)| (place.group, place.topic, number(place.lane))).collect();
    let rows = sqlx::query(
        "SELECT c.grp, c.topic, c.lane, c.token
           FROM antiphon_mq_cursor c
           JOIN unnest($1::bigint[], $2::bigint[], $3::integer[]) AS p (grp, topic, lane)
             ON c.grp = p.grp AND c.topic = p.topic AND c.lane = p.lane
          ORDER BY c.grp, c.topic, c.lane FOR NO KEY UPDATE OF c",
    )
    .bind(wanted.iter().map(|(group, ..)| *group).collect::<Vec<i64>>())
    .bind(wanted.iter().map(|(_, topic, _)| *topic).collect::<Vec<i64>>())
    .bind(wanted.iter().map(|(.., lane)| *lane).collect::<Vec<i32>>())
    .fetch_all(connection)
    .await?;
    let mut tokens: BTreeMap<(i64, i64, u32), i64> = BTreeMap::new();
    for row in &rows {
        tokens.insert((row.try_get(0)?, row.try_get(1)?, lane(row, 2)?), row.try_get(3)?);
    }
    let held = places
        .iter()
        .map(|(place, token)| tokens.get(&(place.group, place.topic, place.lane)) == Some(token));
    Ok(held.collect())
}

/// Lets messages wait. What comes from a log is copied inside the database.
pub(super) async fn park(connection: &mut PgConnection, parking: &[Parking<'_>]) -> Result<()> {
    for (waited, statement) in [
        (
            false,
            "INSERT INTO antiphon_mq_waiting
                 (grp, topic, seq, lane, key, due, attempts, owner, id, kind, head, body)
             SELECT p.grp, p.topic, p.seq, p.lane, p.key, p.due, p.attempts, p.owner,
                    l.id, l.kind, l.head, l.body
               FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::integer[], $5::bytea[],
                           $6::bigint[], $7::integer[], $8::text[])
                    AS p (grp, topic, seq, lane, key, due, attempts, owner)
               JOIN antiphon_mq_log l ON l.topic = p.topic AND l.seq = p.seq
             ON CONFLICT (grp, topic, seq) DO UPDATE
                SET due = excluded.due, attempts = excluded.attempts, owner = excluded.owner",
        ),
        (
            true,
            "UPDATE antiphon_mq_waiting w
                SET due = p.due, attempts = p.attempts, owner = p.owner
               FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::integer[], $5::bytea[],
                           $6::bigint[], $7::integer[], $8::text[])
                    AS p (grp, topic, seq, lane, key, due, attempts, owner)
              WHERE w.grp = p.grp AND w.topic = p.topic AND w.seq = p.seq",
        ),
    ] {
        let rows: BTreeMap<_, _> = parking
            .iter()
            .filter(|parking| parking.place.waited == waited)
            .map(|parking| ((parking.place.group, parking.place.topic, parking.place.seq), parking))
            .collect();
        if rows.is_empty() {
            continue;
        }
        let places = || rows.values().map(|parking| parking.place);
        let attempts = rows.values().map(|p| i32::try_from(p.attempts).unwrap_or(i32::MAX));
        sqlx::query(statement)
            .bind(places().map(|place| place.group).collect::<Vec<i64>>())
            .bind(places().map(|place| place.topic).collect::<Vec<i64>>())
            .bind(places().map(|place| place.seq).collect::<Vec<i64>>())
            .bind(places().map(|place| number(place.lane)).collect::<Vec<i32>>())
            .bind(places().map(|place| place.key.as_bytes()).collect::<Vec<&[u8]>>())
            .bind(rows.values().map(|parking| parking.due.as_micros()).collect::<Vec<i64>>())
            .bind(attempts.collect::<Vec<i32>>())
            .bind(rows.values().map(|parking| parking.owner).collect::<Vec<&str>>())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Messages stay in the hands of a member that gives their lanes away.
pub(super) async fn claim(
    connection: &mut PgConnection,
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
    connection: &mut PgConnection,
    place: &Place,
    id: MessageId,
    reason: &DeadReason,
    at: Timestamp,
) -> Result<()> {
    let Place { group, topic, seq, lane, key, waited } = place;
    let statement = if *waited {
        "INSERT INTO antiphon_mq_dead (grp, id, topic, seq, lane, key, kind, head, body)
         SELECT $1, $2, $3, seq, $5, $6, kind, head, body FROM antiphon_mq_waiting
          WHERE grp = $1 AND topic = $3 AND seq = $4
         ON CONFLICT (grp, id) DO UPDATE
            SET topic = excluded.topic, seq = excluded.seq, lane = excluded.lane,
                key = excluded.key, kind = excluded.kind, head = excluded.head,
                body = excluded.body"
    } else {
        "INSERT INTO antiphon_mq_dead (grp, id, topic, seq, lane, key, kind, head, body)
         SELECT $1, $2, $3, seq, $5, $6, kind, head, body FROM antiphon_mq_log
          WHERE topic = $3 AND seq = $4
         ON CONFLICT (grp, id) DO UPDATE
            SET topic = excluded.topic, seq = excluded.seq, lane = excluded.lane,
                key = excluded.key, kind = excluded.kind, head = excluded.head,
                body = excluded.body"
    };
    sqlx::query(statement)
        .bind(group)
        .bind(id.as_bytes().as_slice())
        .bind(topic)
        .bind(seq)
        .bind(number(*lane))
        .bind(key.as_bytes())
        .execute(&mut *connection)
        .await?;
    note_death(connection, *group, id, reason, at).await?;
    if *waited {
        let gone = "DELETE FROM antiphon_mq_waiting WHERE grp = $1 AND topic = $2 AND seq = $3";
        sqlx::query(gone).bind(group).bind(topic).bind(seq).execute(connection).await?;
    }
    Ok(())
}

/// Adds to what is known of a dead letter.
pub(super) async fn note_death(
    connection: &mut PgConnection,
    group: i64,
    id: MessageId,
    reason: &DeadReason,
    at: Timestamp,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO antiphon_mq_death (grp, id, code, error, attempts, at)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(group)
    .bind(id.as_bytes().as_slice())
    .bind(reason.code)
    // The one character that a text of PostgreSQL cannot hold.
    .bind(reason.error.replace('\0', "\u{fffd}"))
    .bind(i64::from(reason.attempts))
    .bind(at.as_micros())
    .execute(connection)
    .await
    .map(drop)
}

/// Settles a claimed message; `false` when the claim is gone.
pub(super) async fn settle_claimed(
    connection: &mut PgConnection,
    place: &Place,
    owner: &str,
    verdict: &Verdict,
) -> Result<bool> {
    let claimed = sqlx::query(
        "UPDATE antiphon_mq_waiting SET owner = ''
          WHERE grp = $1 AND topic = $2 AND seq = $3 AND owner = $4",
    )
    .bind(place.group)
    .bind(place.topic)
    .bind(place.seq)
    .bind(owner)
    .execute(&mut *connection)
    .await?;
    if claimed.rows_affected() == 0 {
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
async fn forget(connection: &mut PgConnection, place: &Place) -> Result<()> {
    sqlx::query(
        "WITH gone AS (
             DELETE FROM antiphon_mq_waiting WHERE grp = $1 AND topic = $2 AND seq = $3
             RETURNING grp, id
         )
         DELETE FROM antiphon_mq_death USING gone
          WHERE antiphon_mq_death.grp = gone.grp AND antiphon_mq_death.id = gone.id",
    )
    .bind(place.group)
    .bind(place.topic)
    .bind(place.seq)
    .execute(connection)
    .await
    .map(drop)
}
