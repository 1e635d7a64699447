//! Where answers to this process arrive: a topic that one connection of its own reads.

use antiphon_core::BoxFuture;
use antiphon_messaging::{Inbox, Message};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Publish;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::connect::{Dial, Dialer};
use crate::connection::Link;
use crate::envelope;
use crate::error::OpenError;

/// How many answers may wait to be received. What comes beyond is dropped, as an answer may be.
const WAITING_MAX: usize = 1_024;

/// See the module. The connection ends with it, and with that the address.
pub(crate) struct MqttInbox {
    address: String,
    link: Link,
    answers: mpsc::Receiver<Message>,
}

pub(crate) async fn open(dialer: &Dialer) -> Result<MqttInbox, OpenError> {
    let id = Uuid::new_v4().simple().to_string();
    let address = dialer.names.answers(&id);
    let (sender, answers) = mpsc::channel(WAITING_MAX);
    let topic = address.clone();
    let sink = Box::new(move |packet: Publish| {
        if sender.try_send(envelope::message(&topic, packet)).is_err() {
            tracing::warn!(address = topic, "an answer is dropped: nobody takes them in time");
        }
    });
    let link = dialer.connect(Dial::passing(dialer.names.client(&id)), sink).await?;
    let subscribed = link.subscribe(vec![address.clone()], QoS::AtMostOnce).await;
    subscribed.map_err(|reason| OpenError::Ended { address: dialer.place(), reason })?;
    Ok(MqttInbox { address, link, answers })
}

impl Inbox for MqttInbox {
    fn address(&self) -> &str {
        &self.address
    }

    fn receive(&mut self) -> BoxFuture<'_, Option<Message>> {
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = self.answers.recv() => answer,
                _ = self.link.ended() => None,
            }
        })
    }
}
