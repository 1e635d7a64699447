//! Shops in processes of their own, each with its data folder and ports.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// How long a start, an answer or a change may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The `shop` command.
pub(crate) fn shop() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
    command.kill_on_drop(true).stdin(Stdio::null());
    command
}

/// Runs a command of the shop to its end.
pub(crate) async fn run(arguments: &[&str]) -> Output {
    let output = shop().args(arguments).output();
    tokio::time::timeout(PATIENCE * 5, output).await.expect("the command ends").unwrap()
}

/// A port that nobody uses at the moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A running process of the shop. Killed when dropped.
pub(crate) struct Shop {
    child: Child,
    arguments: Vec<String>,
    pub(crate) api: String,
    pub(crate) admin: String,
    /// Where the process's log goes; appended to by each start.
    pub(crate) log: PathBuf,
}

impl Shop {
    /// The whole shop in one process.
    pub(crate) async fn open(data: &Path) -> Self {
        Self::start(data, "shop", &[]).await
    }

    /// A process with further arguments; `name` names its log.
    pub(crate) async fn start(data: &Path, name: &str, more: &[&str]) -> Self {
        Self::start_at(format!("127.0.0.1:{}", free_port()), data, name, more).await
    }

    /// The same, answering at this address.
    pub(crate) async fn start_at(api: String, data: &Path, name: &str, more: &[&str]) -> Self {
        let admin = format!("127.0.0.1:{}", free_port());
        let data_text = data.to_str().unwrap().to_owned();
        let mut arguments: Vec<String> =
            ["run", "--listen", &api, "--admin", &admin, "--data"].map(str::to_owned).into();
        arguments.push(data_text);
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        let log = data.with_extension(format!("{name}.log"));
        let child = spawn(&arguments, &log);
        let mut shop = Self { child, arguments, api, admin, log };
        shop.ready().await;
        shop
    }

    /// Waits until the first screen is there.
    async fn ready(&mut self) {
        let stdout = self.child.stdout.take().unwrap();
        let mut lines = BufReader::new(stdout).lines();
        let opened = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains("Ctrl-C") {
                    return true;
                }
            }
            false
        };
        let opened = tokio::time::timeout(PATIENCE, opened).await;
        assert!(matches!(opened, Ok(true)), "the shop does not open: {}", self.log_text());
        // Nobody reads on; the pipe stays open so that printing does not fail.
        self.child.stdout = Some(lines.into_inner().into_inner());
    }

    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL, and the same process again on the same ports and data.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.child.kill().await.unwrap();
        self.child = spawn(&self.arguments, &self.log);
        self.ready().await;
    }

    pub(crate) fn signal(&self, signal: &str) {
        send_signal(self.child.id().expect("the process runs"), signal);
    }

    pub(crate) async fn wait(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the process ends").unwrap()
    }

    /// SIGTERM, and a clean end.
    pub(crate) async fn close(mut self) {
        self.signal("TERM");
        let status = self.wait().await;
        let log = self.log_text();
        assert!(status.success() && !log.contains("panicked at"), "{status}: {log}");
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        request(&self.api, "GET", path, &[], "").await
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: &Value) -> Reply {
        let headers = [("content-type", "application/json")];
        request(&self.api, method, path, &headers, &body.to_string()).await
    }
}

fn spawn(arguments: &[String], log: &Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    let command = &mut shop();
    command.args(arguments).stdout(Stdio::piped()).stderr(log).spawn().unwrap()
}

/// Sends a signal by its name, as the shell does.
pub(crate) fn send_signal(pid: u32, signal: &str) {
    let arguments = [format!("-{signal}"), pid.to_string()];
    assert!(std::process::Command::new("kill").args(arguments).status().unwrap().success());
}

/// What came back over HTTP.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// One request over a connection of its own.
pub(crate) async fn request(
    to: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let exchange = async {
        let stream = TcpStream::connect(to).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", to);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::<Bytes>::from(body.to_owned())).unwrap();
        let reply = sender.send_request(request).await.unwrap();
        let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        Reply { status, headers, body }
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("an answer comes")
}

/// Places an order under an idempotency key.
pub(crate) async fn order(shop: &Shop, key: &str, body: &Value) -> Reply {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    request(&shop.api, "POST", "/v1/orders", &headers, &body.to_string()).await
}

/// The value of a metric, by its name with its labels; 0 when it is not there.
pub(crate) async fn figure(admin: &str, name: &str) -> u64 {
    let text = metrics(admin).await;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or(0)
}

/// All metrics of a process, as they are scraped.
pub(crate) async fn metrics(admin: &str) -> String {
    let reply = request(admin, "GET", "/metrics", &[], "").await;
    String::from_utf8(reply.body.to_vec()).unwrap()
}

/// Waits until `look` finds something.
pub(crate) async fn until<T, Fut: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> Fut,
) -> T {
    let search = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, search).await {
        Ok(found) => found,
        Err(_) => panic!("nothing after {PATIENCE:?}: {what}"),
    }
}

/// The audit of a data folder, with the journals of its customers.
pub(crate) async fn audit(data: &Path, journals: &[&Path]) {
    let mut arguments = vec!["audit", "--data", data.to_str().unwrap(), "--wait", "120"];
    for journal in journals {
        arguments.extend(["--journal", journal.to_str().unwrap()]);
    }
    let output = run(&arguments).await;
    let table = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{table}{error}");
}
