//! `antiphon topics`.

use antiphon::operate::Operations;
use serde_json::json;

use crate::listing::{Format, Listing};

pub(crate) async fn run(operations: &Operations, format: Format) -> antiphon::Result<()> {
    let brokers = operations.brokers().await?;
    let mut listing = Listing::new(&["topic", "messages"], "There are no topics.");
    for topic in super::operate(&brokers)?.topics().await? {
        listing.row([json!(topic.name), json!(topic.messages)]);
    }
    listing.print(format);
    Ok(())
}
