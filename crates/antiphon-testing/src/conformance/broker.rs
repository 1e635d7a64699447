//! What every broker must do: one case per rule of the ports in `antiphon-messaging`.
//!
//! An adapter writes a [`BrokerHarness`] and one line, [`broker_conformance!`](crate::broker_conformance).
//! Nothing is skipped: where a capability is optional, the case checks that it is honoured if it is
//! declared and refused if it is not.
//!
//! Not here, since only the adapter can bring it about: that an unknown outcome is
//! [`Sent::Maybe`](antiphon_messaging::Sent::Maybe) (`Broker` 2), that publishing is slowed down
//! before memory runs out (`Broker` 10), and that a lost connection ends the epoch (`Source` 4).

pub mod answers;
pub mod dead_letters;
pub mod engine;
pub mod members;
pub mod operate;
pub mod order;
pub mod publish;
pub mod settle;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use antiphon_core::{Clock, MessageId, Timestamp};
use antiphon_messaging::{
    AnyBroker, Delivery, Fetched, Group, Message, Settled, Settlement, Source, Start, Subscription,
    Topology,
};
use tokio::time::{Instant, timeout};

/// How long a case waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long a case watches for what must not happen.
pub const QUIET: Duration = Duration::from_millis(300);

/// Starts one broker for one case.
pub trait BrokerHarness: Send + Sync + Sized + 'static {
    /// A broker that holds nothing.
    fn start() -> impl Future<Output = Self> + Send;

    /// A handle to it; every call may be a connection of its own.
    fn broker(&self) -> AnyBroker;

    /// Whether members own lanes also when their group is not ordered: what waits in a lane waits for
    /// its owner, and goes to another member only with the lane, once nothing of it is in the owner's
    /// hands.
    fn members_own_lanes(&self) -> bool {
        false
    }

    /// Whether a member that leaves keeps all its lanes until it has settled what it holds of any.
    fn lanes_leave_together(&self) -> bool {
        false
    }

    /// For a broker that cannot delay messages or keep dead letters: the one that does it instead.
    fn parking(&self) -> Option<AnyBroker> {
        None
    }
}

/// Makes a test of every case: `broker_conformance!(Harness)`, or `broker_conformance!(paused
/// Harness)` for brokers without I/O, whose time can be paused. The test crate needs tokio with
/// `macros`, `rt-multi-thread` and (for `paused`) `test-util`.
#[macro_export]
macro_rules! broker_conformance {
    ($harness:ty) => {
        $crate::broker_conformance!(@cases $harness, [flavor = "multi_thread", worker_threads = 2]);
    };
    (paused $harness:ty) => {
        $crate::broker_conformance!(@cases $harness, [start_paused = true]);
    };
    (@cases $harness:ty, $how:tt) => {
        $crate::broker_conformance!(@module publish, $harness, $how, [
            every_message_is_confirmed_and_arrives_unchanged,
            answers_come_in_the_order_of_the_messages,
            an_oversized_message_is_refused_and_the_connection_lives,
            a_message_for_an_unknown_topic_is_unroutable,
            topics_do_not_mix,
            a_delayed_message_is_not_early_and_holds_nothing_back,
            many_publishers_and_subscribers_lose_nothing,
        ]);
        $crate::broker_conformance!(@module members, $harness, $how, [
            groups_copy_and_members_share,
            a_new_group_begins_where_it_says,
            declaring_again_changes_nothing,
            an_undeclared_group_cannot_be_joined,
            a_fetch_yields_at_most_its_credits,
            a_fetch_can_be_dropped_without_loss,
            concurrent_joining_and_leaving_loses_nothing,
        ]);
        $crate::broker_conformance!(@module order, $harness, $how, [
            messages_of_a_key_come_in_order,
            a_key_is_in_one_members_hands_at_a_time,
            a_waiting_message_holds_back_its_key_and_no_other,
            released_messages_come_back_in_order,
        ]);
        $crate::broker_conformance!(@module settle, $harness, $how, [
            a_retry_waits_as_long_as_it_says,
            attempts_are_counted_as_told,
            a_dropped_delivery_comes_back,
            what_a_lost_member_held_comes_back_and_is_stale_to_it,
            stopping_in_the_middle_of_a_batch_loses_nothing,
            what_was_delivered_can_be_settled_while_closing,
        ]);
        $crate::broker_conformance!(@module dead_letters, $harness, $how, [
            a_dead_letter_keeps_message_reason_and_history,
            a_redrive_goes_to_the_failing_group_only_with_the_same_id,
            dead_letters_are_listed_in_pages_and_by_filter,
            a_discarded_letter_is_gone,
        ]);
        $crate::broker_conformance!(@module operate, $harness, $how, [
            topics_and_groups_without_members_are_listed,
            the_lag_of_a_group_counts_what_is_not_handled,
            what_waits_for_a_retry_is_counted,
            a_broker_that_works_has_findings_and_no_problem,
        ]);
        $crate::broker_conformance!(@module answers, $harness, $how, [
            an_answer_arrives_at_its_inbox_and_no_other,
            many_answers_arrive_once_each,
            an_answer_to_an_ended_inbox_takes_nobodys_time,
            an_inbox_outlives_impatience_and_oversized_answers,
        ]);
        $crate::broker_conformance!(@module engine, $harness, $how, [
            keys_stay_in_order_with_eight_consumers_and_failures,
            stuck_handlers_hold_no_more_than_the_credits,
            a_drain_gives_back_what_has_not_started,
            a_poisoned_key_does_not_stop_the_others,
            retries_end_in_a_dead_letter_after_the_last_attempt,
        ]);
    };
    (@module $module:ident, $harness:ty, $how:tt, [$($case:ident),* $(,)?]) => {
        mod $module {
            #[allow(unused_imports, reason = "a harness may be named by a path of its own")]
            use super::*;
            $($crate::broker_conformance!(@case $module, $case, $harness, $how);)*
        }
    };
    (@case $module:ident, $case:ident, $harness:ty, [$($how:tt)*]) => {
        #[tokio::test($($how)*)]
        async fn $case() {
            let harness = <$harness as $crate::conformance::broker::BrokerHarness>::start().await;
            $crate::conformance::broker::$module::$case(&harness).await;
        }
    };
}

/// A topic of its own, and what cases do with it.
#[derive(Debug)]
pub struct Site {
    /// The broker.
    pub broker: AnyBroker,
    /// Where the consumer engine parks what the broker cannot keep.
    pub parking: Option<AnyBroker>,
    /// The topic.
    pub topic: String,
    /// Whether its groups are declared as ordered.
    pub ordered: bool,
}

impl Site {
    /// A topic with these groups, which begin at its first message.
    pub async fn with_groups(harness: &impl BrokerHarness, groups: &[&str]) -> Self {
        Self::new(harness, groups, false).await
    }

    /// A topic with these groups, which begin at its first message and are read in order, if the
    /// broker keeps any.
    pub async fn with_ordered_groups(harness: &impl BrokerHarness, groups: &[&str]) -> Self {
        let ordered = harness.broker().capabilities().ordered;
        Self::new(harness, groups, ordered).await
    }

    async fn new(harness: &impl BrokerHarness, groups: &[&str], ordered: bool) -> Self {
        let topic = format!("conformance.{}", MessageId::new(Clock::system().now()));
        let site = Self { broker: harness.broker(), parking: harness.parking(), topic, ordered };
        site.declare(groups, Start::Earliest).await;
        site
    }

    /// Declares the topic and groups of it.
    pub async fn declare(&self, groups: &[&str], start: Start) {
        let group = |name: &&str| Group {
            name: self.group(name),
            topics: vec![self.topic.clone()],
            start,
            ordered: self.ordered,
        };
        let topology = Topology {
            topics: vec![self.topic.clone()],
            groups: groups.iter().map(group).collect(),
        };
        self.broker.declare(&topology).await.expect("the topology is declared");
    }

    /// The full name of a group of this site.
    #[must_use]
    pub fn group(&self, name: &str) -> String {
        format!("{}.{name}", self.topic)
    }

    /// What a member of the group asks for.
    #[must_use]
    pub fn subscription(&self, group: &str, ordered: bool) -> Subscription {
        Subscription { group: self.group(group), topics: vec![self.topic.clone()], ordered }
    }

    /// Joins a group.
    pub async fn join(&self, group: &str, ordered: bool) -> Member {
        let source = self.broker.subscribe(self.subscription(group, ordered)).await;
        Member(source.expect("the group can be joined"))
    }

    /// A new message for the topic.
    #[must_use]
    pub fn message(&self, key: &str, text: &str) -> Message {
        let time = Clock::system().now();
        Message {
            id: MessageId::new(time),
            topic: self.topic.clone(),
            kind: KIND.to_owned(),
            source: "conformance".to_owned(),
            key: key.to_owned(),
            time: Timestamp::from_millis(time.as_millis()),
            not_before: None,
            attributes: BTreeMap::new(),
            body: text.to_owned().into(),
        }
    }

    /// Publishes new messages, one for each key and text, and returns them.
    pub async fn publish(&self, messages: &[(&str, &str)]) -> Vec<Message> {
        let batch: Vec<Message> =
            messages.iter().map(|(key, text)| self.message(key, text)).collect();
        self.send(batch.clone()).await;
        batch
    }

    /// Publishes `count` messages with keys and texts `0`, `1`, ….
    pub async fn publish_numbered(&self, count: usize) -> Vec<Message> {
        let batch: Vec<Message> =
            (0..count).map(|n| self.message(&n.to_string(), &n.to_string())).collect();
        self.send(batch.clone()).await;
        batch
    }

    /// Publishes messages, all of which must be taken.
    pub async fn send(&self, batch: Vec<Message>) {
        let count = batch.len();
        let answers = self.broker.publish(batch).await;
        assert_eq!(answers.len(), count, "one answer per message");
        for answer in answers {
            let _receipt = answer.expect("the message is taken");
        }
    }
}

/// The kind of every message of the suite.
pub const KIND: &str = "antiphon.conformance.Tested";

/// A member of a group, driven by hand.
pub struct Member(pub Box<dyn Source>);

impl Member {
    /// Fetches once; gives up lanes when asked to, since it holds nothing that it would keep.
    pub async fn fetch(&mut self, credits: usize) -> Vec<Delivery> {
        let within = timeout(PATIENCE, self.fetch_patiently(credits));
        within.await.expect("deliveries come in time")
    }

    async fn fetch_patiently(&mut self, credits: usize) -> Vec<Delivery> {
        loop {
            match self.0.fetch(credits).await {
                Fetched::Deliveries(deliveries) => {
                    assert!(!deliveries.is_empty(), "a fetch yields something");
                    assert!(deliveries.len() <= credits, "a fetch yields at most its credits");
                    return deliveries;
                }
                Fetched::Revoked { done, .. } => drop(done),
                Fetched::Lost(reason) => unreachable!("the source was lost: {reason}"),
            }
        }
    }

    /// Fetches until `count` deliveries are held.
    pub async fn collect(&mut self, count: usize) -> Vec<Delivery> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            all.extend(self.fetch(count - all.len()).await);
        }
        all
    }

    /// Fetches `count` messages, acknowledges them, and returns their texts.
    pub async fn handle(&mut self, count: usize) -> Vec<String> {
        let mut texts = Vec::with_capacity(count);
        while texts.len() < count {
            for delivery in self.fetch(count - texts.len()).await {
                texts.push(text(&delivery));
                ack(delivery).await;
            }
        }
        texts
    }

    /// Handles messages until none has come for a while; yields their texts.
    pub async fn handle_all(&mut self) -> Vec<String> {
        let mut texts = Vec::new();
        while let Ok(deliveries) = timeout(QUIET * 6, self.fetch_patiently(64)).await {
            for delivery in deliveries {
                texts.push(text(&delivery));
                ack(delivery).await;
            }
        }
        texts
    }

    /// Nothing comes for a while.
    pub async fn stays_quiet(&mut self) {
        if let Ok(deliveries) = timeout(QUIET, self.fetch_patiently(1)).await {
            unreachable!("nothing may come, but this did: {deliveries:?}");
        }
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Member").finish_non_exhaustive()
    }
}

/// The text of a delivery.
#[must_use]
pub fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

/// Settles a delivery, which must not be too late.
pub async fn settle(delivery: Delivery, settlement: Settlement) {
    let settled = timeout(PATIENCE, delivery.settle(settlement).outcome()).await;
    assert_ne!(settled.expect("a settlement is answered"), Settled::Stale, "it is not too late");
}

/// Acknowledges a delivery.
pub async fn ack(delivery: Delivery) {
    settle(delivery, Settlement::Ack).await;
}

/// Whether what began at `begun` took `expected`, within a fifth and a little for slow machines.
pub fn assert_took(begun: Instant, expected: Duration) {
    let took = begun.elapsed();
    let early = expected.mul_f64(0.8);
    let late = expected.mul_f64(1.2) + Duration::from_millis(250);
    assert!((early..=late).contains(&took), "took {took:?}, expected {expected:?}");
}
