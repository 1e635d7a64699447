//! A system in a temporary folder, and the command that looks at it.

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use antiphon::messaging::{
    AnyBroker, Consumer, Group, Handler, Incoming, Messaging, Start, Topology, Worker,
};
use antiphon::sqlite::{Settings, SqliteBroker};
use antiphon::{
    BoxError, Clock, Component, Fail, Health, Message, MessageId, RetryPolicy, Telemetry,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

pub(crate) const TOPIC: &str = "shop.orders";
pub(crate) const GROUP: &str = "points.orders";

/// A broker's file, and what the command is told of it.
pub(crate) struct System {
    pub(crate) broker: AnyBroker,
    folder: TempDir,
}

impl System {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.db");
        let broker = SqliteBroker::open(&path.to_string_lossy(), Settings::default()).await;
        let broker = AnyBroker::new(broker.unwrap());
        let group = Group {
            name: GROUP.into(),
            topics: vec![TOPIC.into()],
            ordered: true,
            start: Start::Earliest,
        };
        let topology = Topology { topics: vec![TOPIC.into()], groups: vec![group] };
        broker.declare(&topology).await.unwrap();
        Self { broker, folder }
    }

    /// Runs the command on this system.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        command()
            .arg("--set")
            .arg(format!("database.dir={}", self.folder.path().display()))
            .args(arguments)
            .output()
            .unwrap()
    }

    /// What the command prints, when it succeeds.
    pub(crate) fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {out}{error}");
        format!("{out}{error}")
    }

    /// A consumer of the group: a body of `poison` fails while `broken` is set.
    pub(crate) fn consumer(&self, handler: Orders) -> Worker {
        let messaging = Messaging::new(self.broker.clone(), Telemetry::new(), Health::new());
        let retry = RetryPolicy::exponential(Duration::from_millis(5), Duration::from_millis(20));
        Consumer::group(GROUP)
            .topic(TOPIC)
            .handler(handler)
            .ordered()
            .concurrency(32)
            .retry(retry.attempts(4))
            .build(&messaging)
            .unwrap()
    }
}

/// The command, with no settings but those it is given.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_antiphon"));
    command.current_dir(std::env::temp_dir());
    command
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn message(key: usize, body: &str) -> Message {
    let time = Clock::system().now();
    Message {
        id: MessageId::new(time),
        topic: TOPIC.into(),
        kind: "shop.orders.v1.OrderPlaced".into(),
        source: "orders".into(),
        key: format!("customer-{key}"),
        time,
        not_before: None,
        attributes: BTreeMap::from([("correlationid".to_owned(), "c-1".to_owned())]),
        body: body.to_owned().into(),
    }
}

/// Notes what is handled; fails at poison while the code is broken.
pub(crate) struct Orders {
    pub(crate) broken: Arc<AtomicBool>,
    pub(crate) handled: mpsc::UnboundedSender<(String, String)>,
}

impl Handler for Orders {
    fn handles(&self, _: &str) -> bool {
        true
    }

    fn handle<'a>(
        &'a self,
        incoming: &'a Incoming,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Fail>> + Send + 'a>> {
        Box::pin(async move {
            let body = text(&incoming.message.body);
            if body == "poison" && self.broken.load(Ordering::Acquire) {
                return Err(Fail::retry("cannot digest this"));
            }
            let _ = self.handled.send((incoming.message.key.clone(), body));
            Ok(())
        })
    }
}

/// Runs a worker until the returned handle is told to drain.
pub(crate) fn run(
    worker: Worker,
) -> (antiphon::ShutdownHandle, tokio::task::JoinHandle<Result<(), BoxError>>) {
    let (handle, shutdown) = antiphon::ShutdownHandle::new();
    (handle, tokio::spawn(worker.run(shutdown)))
}
