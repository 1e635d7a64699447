//! Many changes in one transaction.
//!
//! The order inside of a transaction is the one in which locks are taken everywhere: the rows of
//! groups, cursors, and last those of topics. What is settled comes before progress, progress before
//! lanes are given back. What consists of messages or progress only is one text, COMMIT included.

use std::collections::BTreeSet;

use antiphon_sqlbroker::server::{Server, Trouble};
use antiphon_sqlbroker::{Change, Outcome, Place, Progress, Row};
use sqlx::mysql::MySqlConnectOptions;
use sqlx::{Connection as _, MySqlConnection};

use super::publish::Texts;
use super::settle::Parking;
use super::{answers, dead, lanes, publish, settle, topology, trim};
use crate::error::{self, trouble};
use crate::session::{Kind, connect};
use crate::settings::{Settings, seconds};
use crate::sql::{Answer, Sql, run, run_counting};

/// Texts are not made longer than this even if the server would take them.
const TEXT_MAX: usize = 12 * 1024 * 1024;

/// Nothing is thought about in a transaction: when the next statement does not come, the network or
/// the process stands still, and what is locked must be free again before the leases are over. The
/// server counts whole seconds.
const BEGIN: &str = "SET SESSION wait_timeout = 2; BEGIN";

/// Where changes are written.
pub(super) struct Writing {
    pub(super) options: MySqlConnectOptions,
    pub(super) settings: Settings,
    /// What the server takes.
    pub(super) packet_max: usize,
}

impl Server for Writing {
    type Connection = MySqlConnection;

    async fn connect(&self) -> Result<MySqlConnection, String> {
        let connected = connect(&self.options, Kind::Reads, &self.settings).await;
        connected.map_err(|error| error.to_string())
    }

    async fn answers(&self, connection: &mut MySqlConnection) -> bool {
        connection.ping().await.is_ok()
    }

    async fn apply(
        &self,
        connection: &mut MySqlConnection,
        changes: &[&Change],
    ) -> Result<Vec<Outcome>, Trouble> {
        match only(changes) {
            Only::Publishes(batches) => {
                let sql = match self.publishing(Sql::new("BEGIN; "), &batches) {
                    Ok(sql) => sql,
                    Err(error) => return Err(before_commit(&error)),
                };
                let sql = match sql.last(connection).await {
                    Ok(sql) => sql,
                    Err(error) => return Err(self.undo(connection, before_commit(&error)).await),
                };
                let answers = self.commit(connection, sql).await?;
                // The one before COMMIT and the return to rest.
                let heads = answers.len().checked_sub(3).and_then(|index| answers.get(index));
                let grown = publish::heads(heads).map_err(|error| unread(&error))?;
                Ok(published(changes, &grown))
            }
            Only::Progress(progress) => {
                let mut sql = Sql::new("BEGIN; ");
                lanes::advance(&mut sql, &progress);
                let answers = self.commit(connection, sql).await?;
                let lost = lanes::lost(&progress, answers.get(1..).unwrap_or_default());
                Ok(lost.into_iter().map(Outcome::Lost).collect())
            }
            Only::Mixed => self.transaction(connection, changes).await,
        }
    }
}

impl Writing {
    fn publishing(&self, begin: Sql, batches: &[&[Row]]) -> Result<Texts, sqlx::Error> {
        let mut texts = Texts::new(begin, self.packet_max.min(TEXT_MAX));
        texts.publish(batches)?;
        Ok(texts)
    }

    async fn transaction(
        &self,
        connection: &mut MySqlConnection,
        changes: &[&Change],
    ) -> Result<Vec<Outcome>, Trouble> {
        let made = async {
            run(connection, Sql::new(BEGIN)).await?;
            self.make(connection, changes).await
        };
        match made.await {
            Ok(outcomes) => {
                self.commit(connection, Sql::default()).await?;
                Ok(outcomes)
            }
            Err(error) => Err(self.undo(connection, before_commit(&error)).await),
        }
    }

    /// Commits, after running the statements of `sql`, each of which ends with a semicolon or is the
    /// last.
    async fn commit(
        &self,
        connection: &mut MySqlConnection,
        mut sql: Sql,
    ) -> Result<Vec<Answer>, Trouble> {
        if sql.len() > 0 && !sql.as_str().trim_end().ends_with(';') {
            sql.sql("; ");
        }
        // Values are hexadecimal, so every semicolon ends a statement.
        let before = sql.as_str().matches(';').count();
        sql.sql("COMMIT");
        self.at_rest(&mut sql);
        let mut done = 0;
        match run_counting(connection, sql, &mut done).await {
            Ok(answers) => Ok(answers),
            Err(error) => match before_commit(&error) {
                // What was lost may have been committed, wherever the answers ended.
                Trouble::Lost(reason) => Err(Trouble::Unknown(reason)),
                Trouble::Refused(reason) if done >= before => Err(Trouble::Unknown(reason)),
                trouble => Err(self.undo(connection, trouble).await),
            },
        }
    }

    /// Brings the connection to rest after an error, or gives it up.
    async fn undo(&self, connection: &mut MySqlConnection, trouble: Trouble) -> Trouble {
        if matches!(trouble, Trouble::Lost(_) | Trouble::Unknown(_)) {
            return trouble;
        }
        let mut sql = Sql::new("ROLLBACK");
        self.at_rest(&mut sql);
        match run(connection, sql).await {
            Ok(_) => trouble,
            Err(error) => Trouble::Lost(error.to_string()),
        }
    }

    /// Outside of a transaction a connection may be silent for longer; see [`BEGIN`].
    fn at_rest(&self, sql: &mut Sql) {
        let silence = seconds(self.settings.idle_in_transaction_timeout);
        sql.sql("; SET SESSION wait_timeout = ").number(i64::try_from(silence).unwrap_or(60));
    }

    /// Makes changes in the open transaction.
    async fn make(
        &self,
        connection: &mut MySqlConnection,
        changes: &[&Change],
    ) -> Result<Vec<Outcome>, sqlx::Error> {
        let groups: BTreeSet<i64> =
            changes.iter().filter_map(|change| group_to_lock(change)).collect();
        if !groups.is_empty() {
            lanes::lock(connection, &groups).await?;
        }
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
        let mut grown = Vec::new();
        if !batches.is_empty() {
            let sql = self.publishing(Sql::default(), &batches)?.last(connection).await?;
            grown = publish::heads(run(connection, sql).await?.last())?;
        }
        let published = published(changes, &grown);
        let made = outcomes.into_iter().zip(published);
        Ok(made.map(|(made, published)| made.unwrap_or(published)).collect())
    }
}

/// What a transaction consists of.
enum Only<'a> {
    /// New messages, all due.
    Publishes(Vec<&'a [Row]>),
    /// Progress.
    Progress(Vec<(i64, &'a [Progress])>),
    Mixed,
}

fn only<'a>(changes: &[&'a Change]) -> Only<'a> {
    let publishes: Option<Vec<&[Row]>> = changes
        .iter()
        .map(|change| match change {
            Change::Publish(rows) if !rows.is_empty() && !publish::is_delayed(rows) => {
                Some(rows.as_slice())
            }
            _ => None,
        })
        .collect();
    if let Some(publishes) = publishes {
        return Only::Publishes(publishes);
    }
    let progress: Option<Vec<(i64, &[Progress])>> = changes
        .iter()
        .map(|change| match change {
            Change::Advance { group, progress } => Some((*group, progress.as_slice())),
            _ => None,
        })
        .collect();
    progress.map_or(Only::Mixed, Only::Progress)
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
    connection: &mut MySqlConnection,
    changes: &[&Change],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), sqlx::Error> {
    let mut indexes = Vec::new();
    let mut places: Vec<(&Place, i64)> = Vec::new();
    for (index, change) in changes.iter().enumerate() {
        if let Change::Park { place, token, .. } | Change::Bury { place, token, .. } = change {
            indexes.push(index);
            places.push((place, *token));
        }
    }
    if places.is_empty() {
        return Ok(());
    }
    let held = settle::fence(connection, &places).await?;
    let mut parking = Vec::new();
    for (index, held) in indexes.into_iter().zip(held) {
        outcomes[index] = Some(Outcome::Held(held));
        match changes[index] {
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
    connection: &mut MySqlConnection,
    changes: &[&Change],
    outcomes: &mut [Option<Outcome>],
) -> Result<(), sqlx::Error> {
    let mut indexes = Vec::new();
    let mut progress: Vec<(i64, &[Progress])> = Vec::new();
    for (index, change) in changes.iter().enumerate() {
        if let Change::Advance { group, progress: of_member } = change {
            indexes.push(index);
            progress.push((*group, of_member));
        }
    }
    let mut sql = Sql::default();
    lanes::advance(&mut sql, &progress);
    let answers = if sql.len() > 0 { run(connection, sql).await? } else { Vec::new() };
    for (index, lost) in indexes.into_iter().zip(lanes::lost(&progress, &answers)) {
        outcomes[index] = Some(Outcome::Lost(lost));
    }
    Ok(())
}

/// Makes one of the rarer changes.
async fn one(connection: &mut MySqlConnection, change: &Change) -> Result<Outcome, sqlx::Error> {
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

/// What an error means that came before COMMIT was run.
fn before_commit(error: &sqlx::Error) -> Trouble {
    let reason = error.to_string();
    match (error, trouble(error)) {
        (sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. }, _) => {
            Trouble::Refused(reason)
        }
        (_, error::Trouble::Conflict) => Trouble::Again(reason),
        (sqlx::Error::Database(_), error::Trouble::Ended) => Trouble::Lost(reason),
        (sqlx::Error::Database(_), _) => Trouble::Refused(reason),
        _ => Trouble::Lost(reason),
    }
}

/// The transaction is committed, but what it has answered cannot be read.
fn unread(error: &sqlx::Error) -> Trouble {
    Trouble::Unknown(error.to_string())
}
