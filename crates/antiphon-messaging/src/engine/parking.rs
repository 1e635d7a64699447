//! Messages that wait, or lie dead, at another broker, since their own can do neither.
//!
//! Each group has a topic of its own there, which only it reads. A parked message keeps its id and
//! everything else; what the engine must know besides travels in attributes that are taken off again
//! when the message comes back. It is acknowledged at its own broker only when the other one has it.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{BoxError, Timestamp};

use crate::any_broker::AnyBroker;
use crate::message::Message;
use crate::port::{DeadReason, Delivery, Settled, Settlement};

const TOPIC: &str = "parkedtopic";
const ATTEMPTS: &str = "parkedattempts";
/// How long a message is held here when the other broker does not take it.
const TROUBLE_PAUSE: Duration = Duration::from_secs(1);

/// Why a message goes to the other broker.
pub(crate) enum Parked {
    /// It is tried again after this much time.
    Waiting(Duration),
    /// It is not tried again.
    Dead(DeadReason),
}

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

/// Gives a message to the other broker, then acknowledges it at its own; releases it there if the
/// other one did not take it. `attempts` were made so far.
pub(crate) async fn settle(
    broker: AnyBroker,
    group: Arc<str>,
    delivery: Delivery,
    attempts: u32,
    parked: Parked,
    now: Timestamp,
) -> Settled {
    let message = &delivery.message;
    let kept = match parked {
        Parked::Waiting(after) => {
            let wrapped = wrap(message, &group, attempts).delayed(now, after);
            park(&broker, wrapped).await
        }
        // Redriven, it comes back as a first attempt.
        Parked::Dead(reason) => bury(&broker, &wrap(message, &group, 0), &group, &reason).await,
    };
    let settlement = match kept {
        Ok(()) => Settlement::Ack,
        Err(error) => {
            let id = message.id;
            tracing::warn!(group = &*group, %id, %error, "the parking broker did not take a message");
            // It would come again at once, only to find the same trouble.
            tokio::time::sleep(TROUBLE_PAUSE).await;
            Settlement::Release
        }
    };
    delivery.settle(settlement).outcome().await
}

async fn park(broker: &AnyBroker, wrapped: Message) -> Result<(), BoxError> {
    let answers = broker.publish(vec![wrapped]).await;
    let answer = answers.into_iter().next().ok_or("it gave no answer")?;
    let _receipt = answer?;
    Ok(())
}

async fn bury(
    broker: &AnyBroker,
    wrapped: &Message,
    group: &str,
    reason: &DeadReason,
) -> Result<(), BoxError> {
    let letters = broker.dead_letters().ok_or("it keeps no dead letters")?;
    letters.bury(group, wrapped, reason).await?;
    Ok(())
}
