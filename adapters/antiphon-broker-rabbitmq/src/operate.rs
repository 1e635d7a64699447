//! The operator's view: what was declared, how much waits, and what a person should know.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{BoxFuture, Finding};
use antiphon_messaging::{GroupState, Operate, OperateError, TopicState};
use lapin::uri::AMQPScheme;
use tokio::time::timeout;

use crate::connection::{Access, Line, Live};
use crate::error::{Fault, OpenError};
use crate::names;
use crate::presence;
use crate::probe::{Server, probe};
use crate::registry::{self, Entry, List};
use crate::settings::Settings;
use crate::topology::{Layout, Maker};

/// How long the members of a group may take to answer.
const ASK_WITHIN: Duration = Duration::from_secs(2);

pub(crate) struct Operator {
    access: Access,
    settings: Settings,
    line: Arc<Line>,
    layout: Layout,
}

impl Operator {
    pub(crate) fn new(access: Access, settings: Settings, line: Arc<Line>, layout: Layout) -> Self {
        Self { access, settings, line, layout }
    }

    async fn live(&self, action: &'static str) -> Result<Arc<Live>, OperateError> {
        let live = self.line.live(self.access.timeout).await;
        live.map_err(|why| OperateError { action, source: why.to_string().into() })
    }

    async fn list(&self, action: &'static str) -> Result<(Arc<Live>, List), OperateError> {
        let live = self.live(action).await?;
        let list = registry::read(&live, &self.layout).await.map_err(|f| failed(action, &f))?;
        Ok((live, list))
    }

    async fn group(&self, live: &Live, name: &str, entry: &Entry) -> Result<GroupState, Fault> {
        let topics = entry.topics.iter().cloned().collect();
        let mut state = GroupState { name: name.to_owned(), topics, ..GroupState::default() };
        let mut maker = Maker::new(live, &self.layout);
        let mut ready = Some(0);
        for queue in queues(name, entry) {
            let depth = maker.depth(&queue).await?;
            ready = ready.zip(depth).map(|(ready, depth)| ready + u64::from(depth.ready));
        }
        // A server that takes no messages carries no questions.
        let asking = presence::count(live, &self.layout, name);
        if let (false, Ok(asked)) = (live.is_blocked(), timeout(ASK_WITHIN, asking).await) {
            let (members, held) = asked?;
            state.members = Some(members);
            state.lag = ready.map(|ready| ready + held);
        }
        state.waiting = Some(0);
        Ok(state)
    }

    async fn looked_at(&self) -> Vec<Finding> {
        let server = match probe(&self.access.uri, &self.access.tls, self.access.timeout).await {
            Ok(server) => server,
            Err(error) => return vec![unusable(&error)],
        };
        let mut findings = vec![version(&server)];
        if let Err(error) = self.access.connect("doctor").await {
            findings.push(unusable(&error));
            return findings;
        }
        findings.extend(transport(&self.access));
        findings.push(durability(&self.settings));
        match self.list("looking at the groups").await {
            Ok((live, list)) => {
                findings.push(flow(&live));
                findings.extend(self.groups_looked_at(&live, &list).await);
            }
            Err(error) => findings.push(Finding::problem(
                "connection",
                format!("{error}: {}", error.source),
                "look into the server's log",
            )),
        }
        findings
    }

    /// Queues that were deleted: what is published now does not reach the group.
    async fn groups_looked_at(&self, live: &Live, list: &List) -> Vec<Finding> {
        let mut maker = Maker::new(live, &self.layout);
        let mut findings = Vec::new();
        for (name, entry) in &list.groups {
            if entry.lanes != 0 && entry.lanes != self.layout.lanes {
                findings.push(Finding::warning(
                    format!("group {name}"),
                    format!(
                        "it has {} lanes, and `broker.rabbitmq.lanes` is {}",
                        entry.lanes, self.layout.lanes
                    ),
                    "give `broker.rabbitmq.lanes` the value it had when the group was declared",
                ));
            }
            for queue in queues(name, entry) {
                if matches!(maker.depth(&queue).await, Ok(None)) {
                    findings.push(Finding::problem(
                        format!("group {name}"),
                        format!("its queue {queue} is gone: what is published now is lost to it"),
                        "restart a consumer of the group, which declares it again",
                    ));
                }
            }
        }
        findings
    }
}

impl Operate for Operator {
    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicState>, OperateError>> {
        Box::pin(async move {
            let (_live, list) = self.list("listing the topics").await?;
            let state = |name| TopicState { name, messages: None };
            Ok(list.topics.into_iter().map(state).collect())
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupState>, OperateError>> {
        Box::pin(async move {
            let action = "listing the groups";
            let (live, list) = self.list(action).await?;
            // Each waits a moment for the answers of its members.
            let asked = list.groups.iter().map(|(name, entry)| self.group(&live, name, entry));
            let states = futures_util::future::try_join_all(asked).await;
            states.map_err(|fault| failed(action, &fault))
        })
    }

    fn findings(&self) -> BoxFuture<'_, Vec<Finding>> {
        Box::pin(self.looked_at())
    }
}

fn failed(action: &'static str, fault: &Fault) -> OperateError {
    OperateError { action, source: fault.text().to_owned().into() }
}

fn queues(name: &str, entry: &Entry) -> Vec<String> {
    match entry.lanes {
        0 => vec![name.to_owned()],
        lanes => (0..lanes).map(|lane| names::lane_queue(name, lane)).collect(),
    }
}

fn unusable(error: &OpenError) -> Finding {
    let advice = match error {
        OpenError::Unreachable { .. } => "start the server, or correct `broker.url`",
        OpenError::Tls { .. } => {
            "set `broker.rabbitmq.ca_file` to the authority of the server's certificate"
        }
        OpenError::NotRabbitmq { .. } => "correct `broker.url`",
        OpenError::TooOld { .. } => "upgrade the server to 3.13 or 4.x",
        OpenError::Credentials { .. } => {
            "correct `broker.url`, or `broker.rabbitmq.user` and `broker.rabbitmq.password`"
        }
        OpenError::VirtualHost { .. } => "create the virtual host, or correct the path of the URL",
        _ => "look into the server's log",
    };
    Finding::problem("connection", error.to_string(), advice)
}

fn version(server: &Server) -> Finding {
    let text = format!("RabbitMQ {}", server.version);
    if server.major < 4 {
        let note = "; this series gets no more fixes, and 4.x has faster quorum queues";
        return Finding::note("version", text + note);
    }
    Finding::fine("version", text)
}

fn transport(access: &Access) -> Option<Finding> {
    let host = access.uri.authority.host.as_str();
    let is_local =
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    (access.uri.scheme == AMQPScheme::AMQP && !is_local).then(|| {
        Finding::warning(
            "transport",
            "user, password and messages travel in the clear",
            "use amqps:// with `broker.rabbitmq.ca_file`",
        )
    })
}

fn durability(settings: &Settings) -> Finding {
    if settings.replicated {
        return Finding::fine("durability", "quorum queues, confirmed by a majority on disk");
    }
    Finding::warning(
        "durability",
        "quorum queues on one node: a confirmed message is on its disk, and lost with it",
        "run three nodes and set `broker.rabbitmq.replicated = true`",
    )
}

fn flow(live: &Live) -> Finding {
    if live.is_blocked() {
        return Finding::problem(
            "flow",
            "the server takes no messages: it is short of memory or disk",
            "free disk space, or raise vm_memory_high_watermark",
        );
    }
    Finding::fine("flow", "the server takes messages")
}

#[cfg(test)]
mod tests {
    use antiphon_core::Severity;

    use super::*;

    #[test]
    fn an_old_server_is_noted_and_a_new_one_is_fine() {
        let server = |version: &str, major| Server { version: version.to_owned(), major };
        assert_eq!(version(&server("3.10.8", 3)).severity, Severity::Note);
        assert_eq!(version(&server("4.1.0", 4)).severity, Severity::Fine);
    }

    #[test]
    fn clear_text_is_warned_of_except_on_this_machine() {
        let found = |url: &str| {
            let access = Access::new(&Settings::at(url)).expect(url);
            transport(&access).map(|finding| finding.severity)
        };
        assert_eq!(found("amqp://rabbit.example"), Some(Severity::Warning));
        assert_eq!(found("amqps://rabbit.example"), None);
        assert_eq!(found("amqp://127.0.0.1:5672"), None);
        assert_eq!(found("amqp://localhost"), None);
    }

    #[test]
    fn one_node_is_warned_of() {
        let one = Settings::default();
        let three = Settings { replicated: true, ..one.clone() };
        assert_eq!(durability(&one).severity, Severity::Warning);
        assert_eq!(durability(&three).severity, Severity::Fine);
    }
}
