//! Messages that wait, or lie dead, at another broker, since their own can do neither.
//!
//! Each group has a topic of its own there, which only it reads. A parked message keeps its id and
//! everything else; what the engine must know besides travels in attributes that are taken off again
//! when the message comes back. It is acknowledged at its own broker only when the other one has it.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::Timestamp;

use crate::any_broker::AnyBroker;
use crate::message::Message;
use crate::port::{DeadReason, Delivery};

const TOPIC: &str = "parkedtopic";
const ATTEMPTS: &str = "parkedattempts";
/// The topic at the other broker that only this group reads.
pub(crate) fn topic_of(group: &str) -> String {
    format!("parked.{group}")
}

/// The message as the other broker gets it. `attempts` were made so far.
fn wrap(message: &Message, group: &str, attempts: u32) -> Message {
    let mut wrapped = message.clone();
    let topic = std::mem::replace(&mut wrapped.topic, topic_of(group));
    wrapped.attributes.insert(TOPIC.to_owned(), topic);
    wrapped.attributes.insert(ATTEMPTS.to_owned(), attempts.to_string());
    wrapped
}

/// Makes a delivery what it was before it was parked.
pub(crate) fn unwrap(delivery: &mut Delivery) {
    if delivery.message.attribute(TOPIC).is_none() {
        return;
    }
    let mut message = Message::clone(&delivery.message);
    message.topic = message.attributes.remove(TOPIC).unwrap_or_default();
    let attempts = message.attributes.remove(ATTEMPTS);
    let attempts: u32 = attempts.and_then(|text| text.parse().ok()).unwrap_or(0);
    message.not_before = None;
    delivery.message = Arc::new(message);
    delivery.attempt = delivery.attempt.saturating_add(attempts);
}

/// Lets the other broker deliver the message `after` this much time; whether it has it.
pub(crate) async fn park(
    broker: &AnyBroker,
    message: &Message,
    group: &str,
    attempts: u32,
    now: Timestamp,
    after: Duration,
) -> bool {
    let wrapped = wrap(message, group, attempts).delayed(now, after);
    let answers = broker.publish(vec![wrapped]).await;
    match answers.into_iter().next() {
        Some(Ok(_receipt)) => true,
        Some(Err(error)) => not_kept(group, message, &error),
        None => false,
    }
}

/// Lets the other broker keep the dead letter; whether it has it. Redriven, it comes back as a first
/// attempt.
pub(crate) async fn bury(
    broker: &AnyBroker,
    message: &Message,
    group: &str,
    reason: &DeadReason,
) -> bool {
    let Some(letters) = broker.dead_letters() else {
        return false;
    };
    match letters.bury(group, &wrap(message, group, 0), reason).await {
        Ok(()) => true,
        Err(error) => not_kept(group, message, &error),
    }
}

fn not_kept(group: &str, message: &Message, error: &dyn std::fmt::Display) -> bool {
    tracing::warn!(group, id = %message.id, %error, "the parking broker did not take a message");
    false
}
