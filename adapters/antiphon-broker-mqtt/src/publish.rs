//! Publishes with QoS 1: a receipt is the broker's own PUBACK for that message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use antiphon_core::BoxError;
use antiphon_messaging::{Message, PublishError, PublishErrorKind, Receipt, Sent};
use rumqttc::v5::mqttbytes::v5::{PubAckReason, Publish};

use crate::connection::Outcome;
use crate::envelope::{self, Unwritable};
use crate::hub::{Hub, Uplink};
use crate::registry::Registry;
use crate::settings::Unread;
use crate::topology;

/// What the packet id adds, which a packet gets last.
const ID_BYTES: usize = 2;

/// Publishes what comes from one handle and its clones.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    /// Whether sessions that are gone are being made.
    mending: Arc<AtomicBool>,
}

type Answer = Result<Receipt, PublishError>;

impl Publisher {
    /// Sends all that can be sent, and answers in the order of the input.
    pub(crate) async fn publish(&self, hub: &Arc<Hub>, batch: Vec<Message>) -> Vec<Answer> {
        let uplink = match hub.uplink(hub.dialer.settings.publish_timeout.0).await {
            Ok(uplink) => uplink,
            Err(why) => {
                let no = |message: Message| {
                    Err(failed(message.topic, PublishErrorKind::Disconnected, Sent::No, &why))
                };
                return batch.into_iter().map(no).collect();
            }
        };
        if knows_all(&hub.registry.lock(), &batch) {
            return self.send(hub, &uplink, batch).await;
        }
        // Another process may have declared the topic a moment ago.
        let _ = uplink.fence().await;
        self.send(hub, &uplink, batch).await
    }

    async fn send(&self, hub: &Arc<Hub>, uplink: &Uplink, batch: Vec<Message>) -> Vec<Answer> {
        let packet_bytes_max = uplink.publisher.server().packet_bytes_max;
        let message_bytes_max = hub.dialer.settings.message_max.0;
        let mut refusals: Vec<Option<PublishError>> = Vec::with_capacity(batch.len());
        let mut packets = Vec::with_capacity(batch.len());
        {
            let registry = hub.registry.lock();
            for message in &batch {
                let packet = packet(&registry, message, message_bytes_max, packet_bytes_max);
                refusals.push(packet.map(|packet| packets.push(packet)).err());
            }
        }
        let mut outcomes = uplink.publisher.publish(packets).await.into_iter();
        let judge = |(message, refusal): (Message, Option<PublishError>)| match refusal {
            Some(refusal) => Err(refusal),
            None => {
                let outcome = outcomes.next().unwrap_or(Outcome::Unsent);
                self.judge(hub, uplink, message.topic, outcome)
            }
        };
        batch.into_iter().zip(refusals).map(judge).collect()
    }

    fn judge(&self, hub: &Arc<Hub>, uplink: &Uplink, topic: String, outcome: Outcome) -> Answer {
        let no = |kind, why: &str| Err(failed(topic.clone(), kind, Sent::No, why));
        let reason = match outcome {
            Outcome::Answered(reason) => reason,
            Outcome::Unsent => {
                return no(PublishErrorKind::Disconnected, &uplink.publisher.why());
            }
            Outcome::Unknown => {
                let why = uplink.publisher.why();
                return Err(failed(topic, PublishErrorKind::Disconnected, Sent::Maybe, &why));
            }
        };
        match reason {
            PubAckReason::Success => Ok(Receipt),
            PubAckReason::NoMatchingSubscribers => self.unread(hub, topic),
            PubAckReason::NotAuthorized => no(
                PublishErrorKind::Unauthorized,
                "the broker does not let this user publish there",
            ),
            PubAckReason::QuotaExceeded => {
                no(PublishErrorKind::Overloaded, "a quota of the broker is used up")
            }
            PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => {
                no(PublishErrorKind::Rejected, &format!("the broker says {reason:?}"))
            }
            // The broker did not take it, for a reason of its own that may pass.
            PubAckReason::UnspecifiedError | PubAckReason::ImplementationSpecificError => {
                no(PublishErrorKind::Overloaded, &format!("the broker says {reason:?}"))
            }
            // It counts packet ids in another way than we do: nobody knows what it has.
            PubAckReason::PacketIdentifierInUse => Err(failed(
                topic,
                PublishErrorKind::Disconnected,
                Sent::Maybe,
                "the broker says that the packet id was in use",
            )),
        }
    }

    /// The broker has taken a message and kept it for nobody.
    fn unread(&self, hub: &Arc<Hub>, topic: String) -> Answer {
        let readers = hub.registry.lock().readers(&topic);
        if readers.is_empty() {
            return match hub.dialer.settings.unread {
                Unread::Drop => Ok(Receipt),
                Unread::Refuse => Err(failed(
                    topic,
                    PublishErrorKind::Unroutable,
                    Sent::No,
                    "no group reads it; declare one, or set broker.mqtt.unread to \"drop\"",
                )),
            };
        }
        // There are groups and the broker no longer has their sessions.
        if !self.mending.swap(true, Ordering::AcqRel) {
            let (hub, mending) = (Arc::clone(hub), Arc::clone(&self.mending));
            tokio::spawn(async move {
                for (group, record) in readers {
                    tracing::warn!(group, "the broker has lost the sessions of this group");
                    let made =
                        topology::make_sessions(&hub.dialer, &group, &record, || false).await;
                    if let Err(error) = made {
                        tracing::warn!(group, %error, "its sessions cannot be made again yet");
                    }
                }
                mending.store(false, Ordering::Release);
            });
        }
        let why = "the broker has lost the sessions of its groups; they are being made again";
        Err(failed(topic, PublishErrorKind::Unroutable, Sent::No, why))
    }

    /// Sends an answer to an inbox.
    pub(crate) async fn answer(
        &self,
        hub: &Hub,
        address: &str,
        message: &Message,
    ) -> Result<(), PublishError> {
        let no = |kind, why: &str| Err(failed(address.to_owned(), kind, Sent::No, why));
        if !hub.dialer.names.is_answers(address) {
            return no(PublishErrorKind::Rejected, "this is no address of an inbox");
        }
        let settings = &hub.dialer.settings;
        if message.size() > settings.message_max.0 {
            return no(PublishErrorKind::TooLarge, "it is larger than broker.mqtt.message_max");
        }
        let uplink = match hub.uplink(settings.publish_timeout.0).await {
            Ok(uplink) => uplink,
            Err(why) => return no(PublishErrorKind::Disconnected, &why),
        };
        let packet = match envelope::packet(message, address.to_owned().into()) {
            Ok(packet) => packet,
            Err(why) => return no(kind_of(why), &why.to_string()),
        };
        if packet.size() + ID_BYTES > uplink.publisher.server().packet_bytes_max {
            return no(PublishErrorKind::TooLarge, "it is larger than the server allows");
        }
        match uplink.publisher.publish_one(packet).await {
            Outcome::Answered(PubAckReason::Success | PubAckReason::NoMatchingSubscribers) => {
                Ok(())
            }
            Outcome::Answered(PubAckReason::NotAuthorized) => {
                no(PublishErrorKind::Unauthorized, "the broker does not let this user answer")
            }
            Outcome::Answered(reason) => {
                no(PublishErrorKind::Overloaded, &format!("the broker says {reason:?}"))
            }
            Outcome::Unsent => no(PublishErrorKind::Disconnected, &uplink.publisher.why()),
            Outcome::Unknown => Err(failed(
                address.to_owned(),
                PublishErrorKind::Disconnected,
                Sent::Maybe,
                &uplink.publisher.why(),
            )),
        }
    }
}

fn knows_all(registry: &Registry, batch: &[Message]) -> bool {
    batch.iter().all(|message| registry.route(&message.topic).is_some())
}

/// The packet for a message, or why there is none.
fn packet(
    registry: &Registry,
    message: &Message,
    message_bytes_max: usize,
    packet_bytes_max: usize,
) -> Result<Publish, PublishError> {
    let no = |kind, why: &str| failed(message.topic.clone(), kind, Sent::No, why);
    let Some(route) = registry.route(&message.topic) else {
        let why = "nobody has declared this topic";
        return Err(no(PublishErrorKind::Unroutable, why));
    };
    let size = message.size();
    if size > message_bytes_max {
        let why = format!("{size} bytes, and broker.mqtt.message_max is {message_bytes_max}");
        return Err(no(PublishErrorKind::TooLarge, &why));
    }
    let topic = route.of(&message.key, message.id.as_bytes());
    let packet = envelope::packet(message, topic);
    let packet = packet.map_err(|why| no(kind_of(why), &why.to_string()))?;
    // Sent all the same, it would cost the connection.
    if packet.size() + ID_BYTES > packet_bytes_max {
        let why = format!("{} bytes, and the server takes {packet_bytes_max}", packet.size());
        return Err(no(PublishErrorKind::TooLarge, &why));
    }
    Ok(packet)
}

const fn kind_of(why: Unwritable) -> PublishErrorKind {
    match why {
        Unwritable::TooLong => PublishErrorKind::TooLarge,
        Unwritable::Name => PublishErrorKind::Rejected,
    }
}

fn failed(topic: String, kind: PublishErrorKind, sent: Sent, why: &str) -> PublishError {
    let source: Option<BoxError> = Some(why.to_owned().into());
    PublishError { topic, kind, sent, source }
}
