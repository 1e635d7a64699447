//! The process's own connections, and who keeps them: one that sees the records of topics and
//! groups, and one that publishes. They live and die together.
//!
//! When they are lost they are made anew, and nothing is published before the broker has shown that
//! it still has every topic and group that this process knows, or has been told of them again: a
//! broker that restarted empty would confirm messages that nobody gets.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Publish;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use uuid::Uuid;

use crate::connect::{Dial, Dialer};
use crate::connection::{Link, Outcome, Sink};
use crate::error::OpenError;
use crate::operate::DROPPED;
use crate::registry::{Missing, Registry};
use crate::topology;

/// The first pause before connecting again, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// See the module.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) registry: Arc<Mutex<Registry>>,
    current: watch::Sender<Option<Arc<Uplink>>>,
    /// Why there is no connection.
    trouble: Mutex<String>,
}

/// The process's connections, from their beginning to their end.
#[derive(Debug)]
pub(crate) struct Uplink {
    pub(crate) control: Link,
    pub(crate) publisher: Link,
    fences: Arc<Fences>,
    fence: String,
}

/// Ends the supervisor when the last handle of a broker is gone.
#[derive(Debug)]
pub(crate) struct Guard(AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Hub {
    /// Connects, and from then on keeps the connections.
    pub(crate) async fn open(dialer: Dialer) -> Result<(Arc<Self>, Guard), OpenError> {
        let registry = Registry::new(dialer.names.clone());
        let hub = Arc::new(Self {
            dialer: Arc::new(dialer),
            registry: Arc::new(Mutex::new(registry)),
            current: watch::Sender::new(None),
            trouble: Mutex::default(),
        });
        let first = hub.connect().await?;
        let supervisor = tokio::spawn(Arc::clone(&hub).supervise(first));
        Ok((hub, Guard(supervisor.abort_handle())))
    }

    /// The connections, as soon as there are any.
    ///
    /// # Errors
    /// Why there are none, in words.
    pub(crate) async fn uplink(&self, within: Duration) -> Result<Arc<Uplink>, String> {
        if let Some(uplink) = self.current.borrow().clone() {
            return Ok(uplink);
        }
        let mut current = self.current.subscribe();
        let found = tokio::time::timeout(within, current.wait_for(Option::is_some)).await;
        match found {
            Ok(Ok(uplink)) => uplink.clone().ok_or_else(String::new),
            _ => Err(self.trouble.lock().clone()),
        }
    }

    async fn supervise(self: Arc<Self>, first: Arc<Uplink>) {
        let mut uplink = first;
        loop {
            self.current.send_replace(Some(Arc::clone(&uplink)));
            let end = tokio::select! {
                end = uplink.control.ended() => end,
                end = uplink.publisher.ended() => end,
            };
            self.current.send_replace(None);
            let place = self.dialer.place();
            tracing::warn!(place, why = %end, "connection to the broker lost");
            *self.trouble.lock() = format!("the connection to {place} was lost: {end}");
            uplink = self.reconnect().await;
            tracing::info!(place, "connected to the broker again");
        }
    }

    async fn reconnect(&self) -> Arc<Uplink> {
        let (mut pause, pause_max) = PAUSES;
        loop {
            tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            match self.connect().await {
                Ok(uplink) => return uplink,
                Err(error) => {
                    tracing::debug!(%error, "not connected yet");
                    *self.trouble.lock() = error.to_string();
                }
            }
            pause = (pause * 2).min(pause_max);
        }
    }

    /// Connects, sees what the broker has, and tells it what it has forgotten.
    async fn connect(&self) -> Result<Arc<Uplink>, OpenError> {
        let id = Uuid::new_v4().simple().to_string();
        let names = &self.dialer.names;
        let fence = names.fence(&id);
        let fences = Arc::new(Fences::default());
        self.registry.lock().begin();
        let control = Dial::passing(names.client(&id));
        let sink = sink(Arc::clone(&self.registry), Arc::clone(&fences), names.clone());
        let control = self.dialer.connect(control, sink).await?;
        self.check(&control)?;
        let filters = vec![names.records(), fence.clone()];
        let subscribed = control.subscribe(filters, QoS::AtMostOnce).await;
        subscribed.map_err(|reason| self.forbidden_or_ended(&control, reason))?;
        // Not every server counts, and not every user is told.
        let _ = control.subscribe(vec![DROPPED.to_owned()], QoS::AtMostOnce).await;
        let publisher = Dial::passing(names.client(&format!("{id}-p")));
        let publisher = self.dialer.connect(publisher, Box::new(drop)).await?;
        let uplink = Uplink { control, publisher, fences, fence };
        uplink.fence().await.map_err(|reason| self.ended(reason))?;
        let missing = self.registry.lock().missing();
        if missing != Missing::default() {
            tracing::warn!(
                topics = missing.topics.len(),
                groups = missing.groups.len(),
                "the broker has forgotten topics and groups, and what was in them; it is told again"
            );
            topology::restore(&self.dialer, &uplink, missing).await?;
        }
        Ok(Arc::new(uplink))
    }

    fn ended(&self, reason: String) -> OpenError {
        OpenError::Ended { address: self.dialer.place(), reason }
    }

    fn forbidden_or_ended(&self, link: &Link, reason: String) -> OpenError {
        if link.is_over() {
            return self.ended(reason);
        }
        let action = format!("to subscribe to {}/# ({reason})", self.dialer.settings.prefix);
        OpenError::Forbidden { address: self.dialer.place(), action }
    }

    /// Compares what the server can do with what is needed.
    fn check(&self, link: &Link) -> Result<(), OpenError> {
        let server = link.server();
        let needed = crate::broker::packet_bytes_for(self.dialer.settings.message_max.0);
        let problem = if server.qos_max < 1 {
            "allows only QoS 0, which confirms nothing; allow QoS 1".to_owned()
        } else if !server.retains {
            "keeps no retained messages, in which topics and groups are recorded; allow them (in \
             Mosquitto: `retain_available true`)"
                .to_owned()
        } else if !server.wildcards {
            "allows no wildcard subscriptions; allow them".to_owned()
        } else if server.packet_bytes_max < needed {
            format!(
                "takes packets of {} bytes and broker.mqtt.message_max needs {needed}; raise the \
                 one (in Mosquitto: `max_packet_size`) or lower the other",
                server.packet_bytes_max
            )
        } else {
            return Ok(());
        };
        Err(OpenError::TooLittle { address: self.dialer.place(), problem })
    }
}

fn sink(registry: Arc<Mutex<Registry>>, fences: Arc<Fences>, names: crate::names::Names) -> Sink {
    let mut dropped = None;
    Box::new(move |publish: Publish| {
        let topic = String::from_utf8_lossy(&publish.topic);
        if topic == DROPPED {
            return warn_of_dropped(&mut dropped, &publish.payload);
        }
        match names.record_of(&topic) {
            Some(record) => registry.lock().show(record, &publish.payload),
            None => fences.pass(&publish.payload),
        }
    })
}

/// Nobody else tells: the server has confirmed these messages.
fn warn_of_dropped(before: &mut Option<u64>, text: &[u8]) {
    let now = std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
    if let (Some(before), Some(now)) = (*before, now)
        && now > before
    {
        tracing::error!(
            messages = now - before,
            "the server has thrown away messages that it had confirmed; look at \
             max_queued_messages in its settings"
        );
    }
    *before = now;
}

impl Uplink {
    /// Waits until everything that the broker had taken before has been seen here.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) async fn fence(&self) -> Result<(), String> {
        let (number, passed) = self.fences.set();
        self.control.tell(&self.fence, number.to_string());
        tokio::select! {
            passed = passed => passed.map_err(|_| self.control.why()),
            end = self.control.ended() => Err(end.to_string()),
        }
    }

    /// Sets a note, or removes it.
    ///
    /// # Errors
    /// The broker does not take it.
    pub(crate) async fn note(&self, topic: &str, text: String) -> Result<(), String> {
        match self.control.note(topic, text, None).await {
            Outcome::Answered(reason) if is_taken(reason) => Ok(()),
            Outcome::Answered(reason) => Err(format!("the broker refuses {topic}: {reason:?}")),
            Outcome::Unknown | Outcome::Unsent => Err(self.control.why()),
        }
    }
}

/// Whether a note is kept. Nobody need be there to see it.
pub(crate) const fn is_taken(reason: rumqttc::v5::mqttbytes::v5::PubAckReason) -> bool {
    use rumqttc::v5::mqttbytes::v5::PubAckReason;
    matches!(reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers)
}

/// Messages of a connection to itself. Whatever the broker had taken before one of them comes
/// before it.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    last: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<()>>>,
}

impl Fences {
    pub(crate) fn set(&self) -> (u64, oneshot::Receiver<()>) {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let (pass, passed) = oneshot::channel();
        self.waiting.lock().insert(number, pass);
        (number, passed)
    }

    pub(crate) fn pass(&self, text: &[u8]) {
        let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        let waiting = number.and_then(|number: u64| self.waiting.lock().remove(&number));
        if let Some(waiting) = waiting {
            let _ = waiting.send(());
        }
    }
}
