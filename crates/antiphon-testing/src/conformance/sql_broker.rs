//! What a SQL broker on a server must do beyond the ports of a broker: several processes on one
//! database, positions in the order of commits, connections that end at any moment.
//!
//! An adapter writes a [`SqlBrokerHarness`] and one line,
//! [`sql_broker_conformance!`](crate::sql_broker_conformance). The tables have the same names and
//! columns on every server, so that the cases can look at them.

pub mod connections;
pub mod processes;
pub mod rows;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use antiphon_core::{Clock, MessageId};
use antiphon_messaging::{
    AnyBroker, Delivery, Fetched, Group, Message, PublishError, Receipt, Sent, Settled, Settlement,
    Source, Start, Subscription, Topology,
};
use tokio::time::timeout;

use crate::proxy::Proxy;

/// How long a case waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// A database of its own for one case.
pub trait SqlBrokerHarness: Send + Sync + Sized + 'static {
    /// A database that does not exist yet.
    fn start() -> impl Future<Output = Self> + Send;

    /// Opens the broker, as another process would.
    fn open(&self) -> impl Future<Output = AnyBroker> + Send;

    /// Opens the broker, as another process would, over a network that can fail.
    fn open_through(&self) -> impl Future<Output = (AnyBroker, Proxy)> + Send;

    /// Runs SQL in the database.
    fn execute(&self, sql: &str) -> impl Future<Output = ()> + Send;

    /// A number from the database.
    fn number(&self, sql: &str) -> impl Future<Output = i64> + Send;

    /// Ends every connection to the database but those of this harness.
    fn kill_connections(&self) -> impl Future<Output = ()> + Send;
}

/// Makes a test of every case: `sql_broker_conformance!(Harness)`. The test crate needs tokio with
/// `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! sql_broker_conformance {
    ($harness:ty) => {
        $crate::sql_broker_conformance!(@module processes, $harness, [
            processes_that_start_at_once_agree,
            publishers_in_two_processes_skip_nothing,
            processes_share_lanes_and_hear_of_each_others_messages,
            a_message_of_another_process_comes_soon,
            answers_go_to_the_process_that_waits,
        ]);
        $crate::sql_broker_conformance!(@module connections, $harness, [
            killed_connections_lose_nothing,
            a_confirmation_that_is_lost_is_in_doubt_and_the_message_comes_once_more,
            a_message_that_did_not_get_through_comes_when_it_is_sent_again,
            a_member_that_was_cut_off_is_fenced,
        ]);
        $crate::sql_broker_conformance!(@module rows, $harness, [
            a_broken_row_becomes_a_dead_letter_and_blocks_nobody,
            handled_messages_are_removed_and_positions_go_on,
            what_an_ordered_group_holds_back_survives_a_restart_in_order,
            letters_of_elsewhere_do_not_displace_each_other,
        ]);
    };
    (@module $module:ident, $harness:ty, [$($case:ident),* $(,)?]) => {
        mod $module {
            #[allow(unused_imports, reason = "a harness may be named by a path of its own")]
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    use $crate::conformance::sql_broker::SqlBrokerHarness;
                    let harness = <$harness as SqlBrokerHarness>::start().await;
                    $crate::conformance::sql_broker::$module::$case(&harness).await;
                }
            )*
        }
    };
}

/// Declares the topic `orders` and the group `billing`, in order.
pub async fn declare(broker: &AnyBroker) {
    let (topics, start) = (vec!["orders".to_owned()], Start::Earliest);
    let group = Group { name: "billing".into(), topics, start, ordered: true };
    let topology = Topology { topics: vec!["orders".into()], groups: vec![group] };
    broker.declare(&topology).await.expect("the topology is declared");
}

/// The message number `n`, with a key of its own.
#[must_use]
pub fn message(n: usize) -> Message {
    let time = Clock::system().now();
    Message {
        id: MessageId::new(time),
        topic: "orders".into(),
        kind: "shop.orders.v1.OrderPlaced".into(),
        source: "orders".into(),
        key: format!("order-{n}"),
        time,
        not_before: None,
        attributes: BTreeMap::from([("correlationid".to_owned(), "c".to_owned())]),
        body: n.to_string().into(),
    }
}

/// Publishes these numbers, all of which must be taken.
pub async fn publish(broker: &AnyBroker, numbers: std::ops::Range<usize>) {
    for answer in broker.publish(numbers.map(message).collect()).await {
        let _receipt = answer.expect("the message is taken");
    }
}

/// Publishes one message as a relay would: again after every error, with the same id. Answers with
/// how often the outcome was in doubt.
pub async fn publish_until_taken(broker: &AnyBroker, message: Message) -> usize {
    let mut in_doubt = 0;
    let trying = async {
        loop {
            let answer: Result<Receipt, PublishError> =
                broker.publish(vec![message.clone()]).await.remove(0);
            match answer {
                Ok(_) => return,
                Err(error) => in_doubt += usize::from(error.sent == Sent::Maybe),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, trying).await.expect("the message is taken in the end");
    in_doubt
}

/// A consumer of `billing`, driven by hand.
pub struct Consumer {
    broker: AnyBroker,
    source: Box<dyn Source>,
    /// How often it had to subscribe anew.
    pub losses: usize,
}

impl Consumer {
    /// Joins the group.
    pub async fn join(broker: &AnyBroker) -> Self {
        Self { broker: broker.clone(), source: subscribe(broker).await, losses: 0 }
    }

    /// Fetches once, subscribing anew whenever the source was lost.
    pub async fn fetch(&mut self, credits: usize) -> Vec<Delivery> {
        let fetching = async {
            loop {
                match self.source.fetch(credits).await {
                    Fetched::Deliveries(deliveries) => return deliveries,
                    Fetched::Revoked { done, .. } => drop(done),
                    Fetched::Lost(_) => {
                        self.losses += 1;
                        self.source = subscribe(&self.broker).await;
                    }
                }
            }
        };
        timeout(PATIENCE, fetching).await.expect("deliveries come in time")
    }

    /// Fetches `count` messages in all, and acknowledges them; answers with their sorted numbers.
    pub async fn handle(&mut self, count: usize) -> Vec<usize> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            for delivery in self.fetch(count - numbers.len()).await {
                numbers.push(number(&delivery));
                assert_ne!(delivery.settle(Settlement::Ack).outcome().await, Settled::Stale);
            }
        }
        numbers.sort_unstable();
        numbers
    }

    /// Nothing comes for a while.
    pub async fn is_quiet(&mut self) -> bool {
        timeout(Duration::from_millis(400), self.fetch(1)).await.is_err()
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("losses", &self.losses).finish_non_exhaustive()
    }
}

async fn subscribe(broker: &AnyBroker) -> Box<dyn Source> {
    let subscribing = async {
        loop {
            let subscription = Subscription {
                group: "billing".into(),
                topics: vec!["orders".into()],
                ordered: true,
            };
            match broker.subscribe(subscription).await {
                Ok(source) => return source,
                Err(error) => assert!(error.transient, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, subscribing).await.expect("the group can be joined in the end")
}

/// The number in the body.
#[must_use]
pub fn number(delivery: &Delivery) -> usize {
    let text = std::str::from_utf8(&delivery.message.body).expect("a text");
    text.parse().expect("a number")
}
