//! Many changes in one transaction.
//!
//! The order inside of a transaction is the one in which locks are taken everywhere: the rows of
//! groups, cursors, and last those of topics. What is settled comes before progress, progress before
//! lanes are given back.

use std::collections::BTreeSet;
use std::time::Duration;

use antiphon_sqlbroker::server::{Server, Trouble};
use antiphon_sqlbroker::{Change, Outcome, Place, Progress};
use sqlx::postgres::{PgConnectOptions, PgSeverity};
use sqlx::{Connection as _, PgConnection};

use super::settle::Parking;
use super::{answers, dead, lanes, publish, settle, topology, trim};
use crate::connect::connect;
use crate::error::{State, of_server, state};

/// Where changes are written.
pub(super) struct Writing {
    pub(super) options: PgConnectOptions,
    pub(super) connect_timeout: Duration,
}

impl Server for Writing {
    type Connection = PgConnection;

    async fn connect(&self) -> Result<PgConnection, String> {
        connect(&self.options, self.connect_timeout).await.map_err(|error| error.to_string())
    }

    async fn answers(&self, connection: &mut PgConnection) -> bool {
        connection.ping().await.is_ok()
    }

    async fn apply(
        &self,
        connection: &mut PgConnection,
        changes: &[&Change],
    ) -> Result<Vec<Outcome>, Trouble> {
        match only(changes) {
            // One statement is a transaction by itself: one round trip.
            Only::Publishes(batches) => {
                let grown =
                    publish::insert(connection, &batches).await.map_err(while_committing)?;
                Ok(published(changes, &grown))
            }
            Only::Progress(progress) => {
                let lost = lanes::advance(connection, &progress, true).await;
                Ok(lost.map_err(while_committing)?.into_iter().map(Outcome::Lost).collect())
            }
            Only::Mixed => transaction(connection, changes).await,
        }
    }
}

/// What a transaction consists of.
enum Only<'a> {
    /// New messages, all due.
    Publishes(Vec<&'a [antiphon_sqlbroker::Row]>),
    /// Cursors.
    Progress(Vec<(i64, &'a [Progress])>),
    Mixed,
}

fn only<'a>(changes: &[&'a Change]) -> Only<'a> {
    let publishes: Option<Vec<&[antiphon_sqlbroker::Row]>> = changes
        .iter()
        .map(|change| match change {
            Change::Publish(rows) if !publish::is_delayed(rows) => Some(rows.as_slice()),
            _ => None,
        })
        .collect();
    if let Some(publishes) = publishes {
        return Only::Publishes(publishes);
    }
    let progress: Option<Vec<(i64, &[Progress])>> = changes
        .iter()
        .map(|change| match change {
            Change::Advance { group, progress } if !lanes::has_done(progress) => {
                Some((*group, progress.as_slice()))
            }
            _ => None,
        })
        .collect();
    progress.map_or(Only::Mixed, Only::Progress)
}

async fn transaction(
    connection: &mut PgConnection,
    changes: &[&Change],
) -> Result<Vec<Outcome>, Trouble> {
    let groups: BTreeSet<i64> = changes.iter().filter_map(|change| group_to_lock(change)).collect();
    let made = async {
        lanes::begin(connection, &groups).await?;
        make(connection, changes).await
    };
    match made.await {
        Ok(outcomes) => {
            sqlx::raw_sql("COMMIT").execute(connection).await.map_err(while_committing)?;
            Ok(outcomes)
        }
        Err(error) => {
            let trouble = before_commit(error);
            if matches!(trouble, Trouble::Lost(_)) {
                return Err(trouble);
            }
            // At rest again, or else of no more use.
            match sqlx::raw_sql("ROLLBACK").execute(connection).await {
                Ok(_) => Err(trouble),
                Err(error) => Err(Trouble::Lost(error.to_string())),
            }
        }
    }
}

/// Makes changes in the open transaction.
async fn make(
    connection: &mut PgConnection,
    changes: &[&Change],
) -> Result<Vec<Outcome>, sqlx::Error> {
    let mut outcomes: Vec<Option<Outcome>> = changes.iter().map(|_| None).collect();
    settle_fenced(connection, changes, &mut outcomes).await?;
    advance(connection, changes, &mut outcomes).await?;
    let mut batches = Vec::new();
    for (change, outcome) in changes.iter().zip(&mut outcomes) {
        match change {
            Change::Publish(rows) => batches.push(rows.as_slice()),
            _ if outcome.is_some() => {}
            other => *outcome = Some(one(connection, other).await?),
        }
    }
    let grown = publish::insert(connection, &batches).await?;
    let published = published(changes, &grown);
    Ok(outcomes
        .into_iter()
        .zip(published)
        .map(|(made, published)| made.unwrap_or(published))
        .collect())
}

/// The group whose members or waiting messages a change is about.
fn group_to_lock(change: &Change) -> Option<i64> {
    match change {
        Change::Beat(member, _) | Change::Release { member, .. } | Change::Leave { member, .. } => {
            Some(member.group)
        }
        Change::Settle { place, .. } => Some(place.group),
        Change::Redrive { group, .. } | Change::Discard { group, .. } => Some(*group),
        _ => None,
    }
}

/// What is settled under a lease: all of it is fenced at once.
async fn settle_fenced(
    connection: &mut PgConnection,
    changes: &[&Change],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), sqlx::Error> {
    let places: Vec<(usize, &Place, i64)> = changes
        .iter()
        .enumerate()
        .filter_map(|(index, change)| match change {
            Change::Park { place, token, .. } | Change::Bury { place, token, .. } => {
                Some((index, place, *token))
            }
            _ => None,
        })
        .collect();
    if places.is_empty() {
        return Ok(());
    }
    let fenced: Vec<(&Place, i64)> =
        places.iter().map(|(_, place, token)| (*place, *token)).collect();
    let held = settle::fence(connection, &fenced).await?;
    let mut parking = Vec::new();
    for ((index, ..), held) in places.iter().zip(held) {
        outcomes[*index] = Some(Outcome::Held(held));
        match changes[*index] {
            Change::Park { place, due, attempts, .. } if held => {
                parking.push(Parking { place, due: *due, attempts: *attempts, owner: "" });
            }
            Change::Bury { place, id, reason, at, .. } if held => {
                settle::bury(connection, place, *id, reason, *at).await?;
            }
            _ => {}
        }
    }
    settle::park(connection, &parking).await
}

async fn advance(
    connection: &mut PgConnection,
    changes: &[&Change],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), sqlx::Error> {
    let (indexes, progress): (Vec<usize>, Vec<(i64, &[Progress])>) = changes
        .iter()
        .enumerate()
        .filter_map(|(index, change)| match change {
            Change::Advance { group, progress } => Some((index, (*group, progress.as_slice()))),
            _ => None,
        })
        .unzip();
    if progress.is_empty() {
        return Ok(());
    }
    let lost = lanes::advance(connection, &progress, false).await?;
    for (index, lost) in indexes.into_iter().zip(lost) {
        outcomes[index] = Some(Outcome::Lost(lost));
    }
    Ok(())
}

/// Makes one of the rarer changes.
async fn one(connection: &mut PgConnection, change: &Change) -> Result<Outcome, sqlx::Error> {
    let outcome = match change {
        Change::Declare(wanted) => {
            topology::declare(connection, wanted).await?;
            Outcome::Done
        }
        Change::Beat(member, beat) => {
            Outcome::Shared(lanes::heartbeat(connection, member, beat).await?)
        }
        Change::Release { member, progress, claimed } => {
            lanes::release(connection, member, progress, claimed).await?;
            Outcome::Done
        }
        Change::Leave { member, progress } => {
            lanes::leave(connection, member, progress).await?;
            Outcome::Done
        }
        Change::Settle { place, owner, verdict } => {
            Outcome::Held(settle::settle_claimed(connection, place, owner, verdict).await?)
        }
        Change::BuryForeign { group, message, reason, at } => {
            Outcome::Held(dead::bury(connection, group, message, reason, *at).await?)
        }
        Change::Redrive { group, ids } => {
            Outcome::Count(dead::redrive(connection, *group, ids).await?)
        }
        Change::Discard { group, ids } => {
            Outcome::Count(dead::discard(connection, *group, ids).await?)
        }
        Change::MoveDue { now } => Outcome::Published(trim::move_due(connection, *now).await?),
        Change::Trim => Outcome::More(trim::remove(connection).await?),
        Change::Answer { address, message, at } => {
            answers::lay(connection, address, message, *at).await?;
            Outcome::Done
        }
        Change::TakeAnswers { addresses } => {
            Outcome::Answers(answers::take(connection, addresses).await?)
        }
        Change::ForgetAnswers { before } => {
            answers::forget(connection, *before).await?;
            Outcome::Done
        }
        // Made together with others of their kind.
        Change::Publish(_) | Change::Advance { .. } | Change::Park { .. } | Change::Bury { .. } => {
            Outcome::Done
        }
    };
    Ok(outcome)
}

/// What to answer to those who have published: their own topics, as far as they reach now.
fn published(changes: &[&Change], grown: &[(i64, i64)]) -> Vec<Outcome> {
    let of = |change: &&Change| match change {
        Change::Publish(rows) => {
            let is_in = |(topic, _): &&(i64, i64)| rows.iter().any(|row| row.topic == *topic);
            Outcome::Published(grown.iter().filter(is_in).copied().collect())
        }
        _ => Outcome::Done,
    };
    changes.iter().map(of).collect()
}

/// What an error means that came before COMMIT was asked for.
fn before_commit(error: sqlx::Error) -> Trouble {
    match error {
        sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
            Trouble::Refused(error.to_string())
        }
        error => match of_server(&error).map(|error| error.severity()) {
            Some(PgSeverity::Error) if state(&error) == State::Busy => {
                Trouble::Again(error.to_string())
            }
            Some(PgSeverity::Error) => Trouble::Refused(error.to_string()),
            _ => Trouble::Lost(error.to_string()),
        },
    }
}

/// What an error means that may have come from the commit itself: only an ERROR of the server says
/// that nothing was committed.
fn while_committing(error: sqlx::Error) -> Trouble {
    match before_commit(error) {
        Trouble::Lost(reason) => Trouble::Unknown(reason),
        trouble => trouble,
    }
}
