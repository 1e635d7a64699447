//! Servers and clients of other languages as processes that are told what to do line by line.
//!
//! They end with their standard input, so none outlives the tests, however these end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::contract::{Answer, Ask};
use crate::soon;

/// Whose gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    Python,
    Node,
    Go,
}

impl Language {
    /// The program for `role`: `server` or `client`.
    fn program(self, role: &str) -> Command {
        let tool = |variable: &str| match std::env::var_os(variable) {
            Some(path) => PathBuf::from(path),
            None => panic!(
                "{variable} is not set; run these tests with `cargo xtask test --only interop`"
            ),
        };
        match self {
            Self::Python => {
                let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
                let mut command = Command::new(tool("ANTIPHON_PYTHON"));
                command.arg(scripts.join(format!("peer_{role}.py")));
                command
            }
            Self::Node => {
                let mut command = Command::new("node");
                command.arg(tool("ANTIPHON_NODE").join(format!("peer_{role}.mjs")));
                command
            }
            Self::Go => {
                let mut command = Command::new(tool("ANTIPHON_GO"));
                command.arg(if role == "server" { "serve" } else { "call" });
                command
            }
        }
    }
}

/// A process that hears and speaks in lines.
struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output).lines() }
    }

    async fn tell(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        self.input.flush().await.unwrap();
    }

    async fn hear(&mut self) -> String {
        let line = soon(self.output.next_line()).await.unwrap();
        line.expect("it ended; its standard error says why")
    }
}

/// How a server of another language behaves.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct PeerSettings {
    pub(crate) name: String,
    /// It compresses its answers for whoever understands that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) compresses: bool,
    /// How old connections become.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) age_ms: Option<u64>,
    /// Pings that come faster than this are punished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pings_apart_ms: Option<u64>,
}

/// A server of another language.
pub(crate) struct Server {
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) async fn start(language: Language, settings: &PeerSettings) -> Self {
        let mut command = language.program("server");
        command.arg(serde_json::to_string(settings).unwrap());
        let mut process = Process::start(command);
        let port: u16 = process.hear().await.parse().unwrap();
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    /// Lets it leave in order: it ends what it has begun, and then itself.
    pub(crate) async fn leave(mut self) {
        self.process.tell("stop").await;
        assert_eq!(self.process.hear().await, "stopped");
        assert!(soon(self.process.child.wait()).await.unwrap().success());
    }
}

/// What a client of another language is to do.
#[derive(Serialize)]
#[serde(tag = "do", rename_all = "lowercase")]
enum Order<'a> {
    Call {
        method: &'a str,
        ask: &'a Ask,
        #[serde(skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cancel_ms: Option<u64>,
    },
    Load {
        method: &'a str,
        ask: &'a Ask,
        tasks: u32,
    },
    Look,
    Stop,
}

/// What became of a call.
#[derive(Debug, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) answer: Option<Answer>,
    /// The number of the status, where there is no answer.
    pub(crate) code: Option<u8>,
    pub(crate) took_ms: f64,
}

/// What has become of a load so far.
#[derive(Debug, Deserialize)]
pub(crate) struct Load {
    /// Calls by the name of the server that answered.
    pub(crate) answered: BTreeMap<String, u64>,
    /// The first of those that failed.
    pub(crate) failures: Vec<String>,
}

impl Load {
    pub(crate) fn by(&self, name: &str) -> u64 {
        self.answered.get(name).copied().unwrap_or(0)
    }
}

/// A client of another language, with a service config by which `Get` is tried four times.
pub(crate) struct Client(Process);

impl Client {
    pub(crate) fn start(language: Language, addresses: &[SocketAddr]) -> Self {
        let mut command = language.program("client");
        command.args(addresses.iter().map(ToString::to_string));
        Self(Process::start(command))
    }

    async fn order<T: DeserializeOwned>(&mut self, order: Order<'_>) -> T {
        self.0.tell(&serde_json::to_string(&order).unwrap()).await;
        let line = self.0.hear().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    pub(crate) async fn call(&mut self, method: &str, ask: &Ask) -> Outcome {
        self.order(Order::Call { method, ask, timeout_ms: None, cancel_ms: None }).await
    }

    pub(crate) async fn call_within(&mut self, method: &str, ask: &Ask, millis: u64) -> Outcome {
        self.order(Order::Call { method, ask, timeout_ms: Some(millis), cancel_ms: None }).await
    }

    pub(crate) async fn call_and_cancel(
        &mut self,
        method: &str,
        ask: &Ask,
        millis: u64,
    ) -> Outcome {
        self.order(Order::Call { method, ask, timeout_ms: None, cancel_ms: Some(millis) }).await
    }

    /// Calls again and again, so many at once.
    pub(crate) async fn load(&mut self, method: &str, ask: &Ask, tasks: u32) -> Load {
        self.order(Order::Load { method, ask, tasks }).await
    }

    pub(crate) async fn look(&mut self) -> Load {
        self.order(Order::Look).await
    }

    pub(crate) async fn stop(&mut self) -> Load {
        self.order(Order::Stop).await
    }
}
