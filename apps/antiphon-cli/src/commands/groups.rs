//! `antiphon groups`.

use antiphon::operate::Operations;
use clap::Args;
use serde_json::json;

use crate::listing::{Format, Listing};

/// Which groups.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only groups whose name contains this.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Only groups that are behind by at least this many messages.
    #[arg(long, value_name = "COUNT")]
    behind: Option<u64>,
}

pub(crate) async fn run(
    operations: &Operations,
    format: Format,
    options: Options,
) -> antiphon::Result<()> {
    let brokers = operations.brokers().await?;
    let columns = &["group", "topics", "members", "lag", "waiting"];
    let mut listing = Listing::new(columns, "There are no such groups.");
    for group in super::operate(&brokers)?.groups().await? {
        let named = options.name.as_ref().is_none_or(|name| group.name.contains(name.as_str()));
        // A lag that is not known may be any.
        let behind = options.behind.is_none_or(|count| group.lag.is_none_or(|lag| lag >= count));
        if named && behind {
            listing.row([
                json!(group.name),
                json!(group.topics),
                json!(group.members),
                json!(group.lag),
                json!(group.waiting),
            ]);
        }
    }
    listing.print(format);
    Ok(())
}
