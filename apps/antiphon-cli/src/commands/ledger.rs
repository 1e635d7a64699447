//! `antiphon ledger`.

use antiphon::messaging::DeadFilter;
use antiphon::operate::Operations;
use antiphon::outbox::{InboxStore, Ledger, OutboxStore};
use clap::Args;
use serde_json::json;

use crate::listing::{Format, Listing};

/// How many dead letters are read at once.
const PAGE: usize = 500;

/// Which services.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only these services, separated by commas. What they do not send or handle is not counted.
    #[arg(long, value_name = "SERVICES", value_delimiter = ',')]
    service: Vec<String>,
}

pub(crate) async fn run(
    operations: &Operations,
    format: Format,
    options: Options,
) -> antiphon::Result<()> {
    let databases = super::databases(operations, &options.service).await?;
    let mut ledger = Ledger::new();
    // Consumers first: then nothing is handled that does not seem to be committed.
    for database in &databases {
        ledger.add_handled(&database.store().handled().await?);
    }
    add_dead(&mut ledger, operations).await?;
    for database in &databases {
        ledger.add_sent(&database.store().sent().await?);
    }
    let columns = &[
        "group",
        "kind",
        "committed",
        "in_flight",
        "done",
        "duplicates",
        "dead",
        "buried",
        "lost",
        "surplus",
    ];
    let mut listing = Listing::new(columns, "Nothing was sent or handled yet.");
    let (mut lost, mut surplus) = (0, 0);
    for line in ledger.lines() {
        lost += line.lost;
        surplus += line.surplus;
        listing.row([
            json!(line.group),
            json!(line.kind),
            json!(line.committed),
            json!(line.in_flight),
            json!(line.done),
            json!(line.duplicates),
            json!(line.dead),
            json!(line.buried),
            json!(line.lost),
            json!(line.surplus),
        ]);
    }
    listing.print(format);
    if surplus > 0 {
        return Err(format!("{surplus} messages took effect that nobody committed").into());
    }
    if lost > 0 {
        return Err(format!(
            "{lost} messages are neither handled, dead, nor in an outbox: with work going on they \
             are at the broker; at rest they are lost"
        )
        .into());
    }
    Ok(())
}

async fn add_dead(ledger: &mut Ledger, operations: &Operations) -> antiphon::Result<()> {
    let Some(letters) = operations.brokers().await?.dead_letters() else { return Ok(()) };
    let mut after = None;
    loop {
        let from = after.as_ref().map(|(group, id): &(String, _)| (group.as_str(), *id));
        let page = letters.list(&DeadFilter::default(), from, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some((last.group.clone(), last.message.id));
        for letter in &page {
            ledger.add_dead(&letter.group, &letter.message.topic, &letter.message.kind, 1);
        }
    }
}
