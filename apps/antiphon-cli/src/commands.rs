//! One module per command, and what they share.

pub(crate) mod calls;
pub(crate) mod dead;
pub(crate) mod doctor;
pub(crate) mod groups;
pub(crate) mod ledger;
pub(crate) mod outbox;
pub(crate) mod sagas;
pub(crate) mod topics;

use std::sync::Arc;

use antiphon::Timestamp;
use antiphon::messaging::{DeadLetters, Operate};
use antiphon::operate::{Brokers, Operations};
use antiphon::sql::Database;
use serde_json::{Value, json};

/// The services that are meant: those that were named, or all that the settings name.
fn services(operations: &Operations, named: &[String]) -> antiphon::Result<Vec<String>> {
    if named.is_empty() { operations.services() } else { Ok(named.to_vec()) }
}

/// The databases of the services that are meant.
async fn databases(operations: &Operations, named: &[String]) -> antiphon::Result<Vec<Database>> {
    let mut databases = Vec::new();
    for service in services(operations, named)? {
        databases.push(operations.database(&service).await?);
    }
    Ok(databases)
}

/// The operator's view of the broker.
fn operate(brokers: &Brokers) -> antiphon::Result<Arc<dyn Operate>> {
    brokers.broker.operate().ok_or_else(|| "this broker cannot be looked at".into())
}

fn dead_letters(brokers: &Brokers) -> antiphon::Result<Arc<dyn DeadLetters>> {
    brokers.dead_letters().ok_or_else(|| "nothing here keeps dead letters".into())
}

/// A moment as text.
fn moment(time: Timestamp) -> Value {
    json!(humantime::format_rfc3339_seconds(time.to_system_time()).to_string())
}
