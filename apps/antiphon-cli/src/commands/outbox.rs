//! `antiphon outbox`.

use antiphon::operate::Operations;
use antiphon::outbox::OutboxStore;
use clap::Args;
use serde_json::json;

use crate::listing::{Format, Listing};

/// Which outboxes.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only these services, separated by commas.
    #[arg(long, value_name = "SERVICES", value_delimiter = ',')]
    service: Vec<String>,
    /// Lists what the broker refused for good, the latest first, instead of counting.
    #[arg(long)]
    buried: bool,
    /// How many of them per service.
    #[arg(long, value_name = "COUNT", default_value_t = 50, requires = "buried")]
    limit: u32,
}

pub(crate) async fn run(
    operations: &Operations,
    format: Format,
    options: Options,
) -> antiphon::Result<()> {
    let databases = super::databases(operations, &options.service).await?;
    if options.buried {
        let columns = &["service", "id", "topic", "kind", "key", "reason", "at"];
        let mut listing = Listing::new(columns, "The broker has refused nothing for good.");
        for database in &databases {
            for buried in database.store().buried(options.limit).await? {
                let message = &buried.message;
                listing.row([
                    json!(database.service()),
                    json!(message.id.to_string()),
                    json!(message.topic),
                    json!(message.kind),
                    json!(message.key),
                    json!(buried.reason),
                    super::moment(buried.at),
                ]);
            }
        }
        listing.print(format);
        return Ok(());
    }
    let columns = &["service", "topic", "kind", "committed", "waiting", "buried", "oldest"];
    let mut listing = Listing::new(columns, "Nothing was ever sent.");
    for database in &databases {
        let (_, oldest) = database.store().backlog().await?;
        for count in database.store().sent().await? {
            let oldest = oldest.filter(|_| count.waiting > 0);
            listing.row([
                json!(database.service()),
                json!(count.topic),
                json!(count.kind),
                json!(count.committed),
                json!(count.waiting),
                json!(count.buried),
                oldest.map_or(serde_json::Value::Null, super::moment),
            ]);
        }
    }
    listing.print(format);
    Ok(())
}
