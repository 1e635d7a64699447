//! The operator's view: what is recorded, who is there, and what a person should know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use antiphon_core::{BoxFuture, Finding};
use antiphon_messaging::{GroupState, Operate, OperateError, TopicState};

use crate::hub::{Guard, Hub};
use crate::names::Note;
use crate::settings::{Keeping, Unread};

/// See the module.
pub(crate) struct Operator {
    hub: Arc<Hub>,
    _guard: Arc<Guard>,
}

/// What a server says of itself.
const VERSION: &str = "$SYS/broker/version";
/// How many messages Mosquitto has thrown away, most of them since a queue was full.
pub(crate) const DROPPED: &str = "$SYS/broker/publish/messages/dropped";

impl Operator {
    pub(crate) fn new(hub: Arc<Hub>, guard: Arc<Guard>) -> Self {
        Self { hub, _guard: guard }
    }

    /// Waits until the records are those of now.
    async fn see(&self, action: &'static str) -> Result<(), OperateError> {
        let fail = |reason: String| OperateError { action, source: reason.into() };
        let within = self.hub.dialer.settings.connect_timeout.0;
        let uplink = self.hub.uplink(within).await.map_err(fail)?;
        uplink.fence().await.map_err(fail)
    }

    async fn group_states(&self) -> Result<Vec<GroupState>, OperateError> {
        const ACTION: &str = "listing groups";
        self.see(ACTION).await?;
        let names = &self.hub.dialer.names;
        let fail = |reason: String| OperateError { action: ACTION, source: reason.into() };
        let notes = self.hub.dialer.look(vec![names.presences()]).await.map_err(fail)?;
        let mut members: BTreeMap<String, u32> = BTreeMap::new();
        for topic in notes.keys() {
            if let Some(Note::Member { group, .. }) = names.note_of(topic) {
                *members.entry(group).or_default() += 1;
            }
        }
        let registry = self.hub.registry.lock();
        let state = |(name, record): (&String, &crate::registry::GroupRecord)| GroupState {
            name: name.clone(),
            topics: record.topics.iter().cloned().collect(),
            members: Some(members.get(name).copied().unwrap_or(0)),
            // No MQTT server tells how much waits in a session.
            lag: None,
            waiting: None,
        };
        Ok(registry.groups().map(state).collect())
    }

    async fn find(&self) -> Vec<Finding> {
        let dialer = &self.hub.dialer;
        let problem = |why: String| {
            let advice = "start the server, or correct broker.url";
            vec![Finding::problem("connection", why, advice)]
        };
        let uplink = match self.hub.uplink(dialer.settings.connect_timeout.0).await {
            Ok(uplink) => uplink,
            Err(why) => return problem(why),
        };
        // The connection may be over and nobody has noticed yet.
        let notes = match dialer.look(vec![VERSION.to_owned(), DROPPED.to_owned()]).await {
            Ok(notes) => notes,
            Err(why) => return problem(why),
        };
        let place = dialer.place();
        let mut findings =
            vec![Finding::fine("connection", format!("{place} answers over MQTT 5"))];
        findings.extend(about_server(&notes));
        findings.push(about_durability(dialer.settings.durability));
        let server = uplink.publisher.server();
        findings.push(Finding::note(
            "limits",
            format!(
                "{} unconfirmed messages at a time, packets of {} bytes",
                server.receive_max.min(dialer.settings.publish_window),
                server.packet_bytes_max
            ),
        ));
        if server.receive_max < 100 && dialer.settings.publish_window > server.receive_max {
            findings.push(Finding::warning(
                "throughput",
                format!("the server lets {} messages be on their way", server.receive_max),
                "in Mosquitto: `max_inflight_messages 1000`",
            ));
        }
        let _ = uplink.fence().await;
        let registry = self.hub.registry.lock();
        let read: BTreeSet<&String> =
            registry.groups().flat_map(|(_, group)| &group.topics).collect();
        for topic in registry.topics().filter(|topic| !read.contains(*topic)) {
            let becomes = match dialer.settings.unread {
                Unread::Refuse => "what is sent there waits in the outbox",
                Unread::Drop => "what is sent there is lost",
            };
            findings.push(Finding::note(
                format!("topic {topic}"),
                format!("no group reads it; {becomes}"),
            ));
        }
        findings
    }
}

fn about_server(notes: &BTreeMap<String, Vec<u8>>) -> Vec<Finding> {
    let text = |topic| notes.get(topic).map(|text| String::from_utf8_lossy(text).into_owned());
    let mut findings = Vec::new();
    match text(VERSION) {
        Some(version) => findings.push(Finding::fine("version", version)),
        None => {
            findings.push(Finding::note("version", "the server does not say which one it is"));
        }
    }
    let dropped = text(DROPPED).and_then(|text| text.parse::<u64>().ok());
    if dropped.is_some_and(|dropped| dropped > 0) {
        findings.push(Finding::warning(
            "queues",
            format!(
                "the server has thrown away {} messages since it started, after confirming them; \
                 Mosquitto does so when more than max_queued_messages (1000 unless set) wait for \
                 one lane of a group",
                dropped.unwrap_or_default()
            ),
            "in Mosquitto: `max_queued_messages 0` and `max_queued_bytes 0`",
        ));
    } else {
        findings.push(Finding::note(
            "queues",
            "no message was thrown away so far; Mosquitto does so, after confirming it, when more \
             than max_queued_messages (1000 unless set to 0) wait for one lane of a group",
        ));
    }
    findings
}

fn about_durability(keeping: Keeping) -> Finding {
    match keeping {
        Keeping::Memory => Finding::warning(
            "durability",
            "a confirmed message is in the memory of the server; if its process is killed or the \
             power fails, everything since it last saved is lost",
            "in Mosquitto: `persistence true`, `autosave_on_changes true`, `autosave_interval 1`, \
             which saves everything once per change; keep messages that must not be lost on a \
             broker that writes first. If your server does, set broker.mqtt.durability",
        ),
        Keeping::PageCache => Finding::note(
            "durability",
            "broker.mqtt.durability says that confirmed messages survive the server's process; \
             MQTT gives no way to check it",
        ),
        Keeping::Disk => Finding::note(
            "durability",
            "broker.mqtt.durability says that messages are on disk before they are confirmed; \
             MQTT gives no way to check it, and with Mosquitto it is not true",
        ),
    }
}

impl Operate for Operator {
    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicState>, OperateError>> {
        Box::pin(async move {
            self.see("listing topics").await?;
            let registry = self.hub.registry.lock();
            let state = |name: &String| TopicState { name: name.clone(), messages: None };
            Ok(registry.topics().map(state).collect())
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupState>, OperateError>> {
        Box::pin(self.group_states())
    }

    fn findings(&self) -> BoxFuture<'_, Vec<Finding>> {
        Box::pin(self.find())
    }
}
