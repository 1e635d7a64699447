//! What the tests share: a broker at the real server, and removing what a test has made.

use antiphon_broker_nats::{NatsBroker, Settings};
use antiphon_testing::services::Service;

/// A broker at the server of the tests.
pub(crate) async fn open() -> NatsBroker {
    match NatsBroker::open(Settings::new(Service::Nats.url())).await {
        Ok(broker) => broker,
        Err(error) => panic!("{error}: start the server with `cargo xtask services up nats`"),
    }
}

/// Removes the topics and groups that were declared through this broker. For tests on a runtime with
/// several threads.
pub(crate) fn clean_up(broker: &NatsBroker) {
    let declared = broker.declared();
    tokio::task::block_in_place(|| {
        tokio::runtime::Handle::current().block_on(async {
            for group in declared.groups {
                let _ = broker.delete_group(&group.name).await;
            }
            for topic in declared.topics {
                let _ = broker.delete_topic(&topic).await;
            }
        });
    });
}
