//! A service to call, a server around it, and a small client that shows the bytes.

pub(crate) mod client;
pub(crate) mod echo;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Component, Health, ShutdownHandle};
use antiphon_rpc::Service;
use antiphon_rpc::server::Server;
pub(crate) use antiphon_rpc::server::ServerSettings;
use antiphon_telemetry::Telemetry;
use tokio::task::JoinHandle;

/// A running server.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: ShutdownHandle,
    pub(crate) health: Health,
    pub(crate) telemetry: Telemetry,
    pub(crate) ended: JoinHandle<()>,
}

impl Running {
    /// The metrics as Prometheus reads them.
    pub(crate) fn metrics(&self) -> String {
        self.telemetry.metrics(antiphon_telemetry::metrics::Exposition::OpenMetrics)
    }
}

/// Settings for tests: any port, two workers.
pub(crate) fn settings() -> ServerSettings {
    ServerSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        workers: 2,
        ..ServerSettings::default()
    }
}

pub(crate) async fn start() -> Running {
    start_with(settings()).await
}

pub(crate) async fn start_with(settings: ServerSettings) -> Running {
    start_service(settings, Arc::new(echo::Echo::default())).await
}

pub(crate) async fn start_service(settings: ServerSettings, service: Arc<dyn Service>) -> Running {
    let (telemetry, health) = (Telemetry::new(), Health::new());
    let server = Server::bind(vec![service], settings, &telemetry, &health).await.unwrap();
    let address = server.address();
    let (handle, shutdown) = ShutdownHandle::new();
    let ended = tokio::spawn(async move { server.run(shutdown).await.unwrap() });
    Running { address, shutdown: handle, health, telemetry, ended }
}

/// Waits for something that happens soon.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), what).await.expect("should happen soon")
}

/// Waits until something is so, of which nobody tells.
pub(crate) async fn until(mut is_so: impl FnMut() -> bool) {
    soon(async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Calls that the server works on.
pub(crate) fn calls_in_progress(server: &Running) -> usize {
    let metrics = server.metrics();
    let value = metrics.lines().find_map(|line| line.strip_prefix("rpc_server_active_calls "));
    value.unwrap().parse().unwrap()
}

/// Waits until the server works on so many calls.
pub(crate) async fn in_progress(server: &Running, calls: usize) {
    until(|| calls_in_progress(server) == calls).await;
}

/// So many were turned away for this reason.
pub(crate) fn is_shed(server: &Running, reason: &str, times: u32) {
    let line = format!("rpc_server_shed_total{{reason=\"{reason}\"}} {times}\n");
    let metrics = server.metrics();
    assert!(metrics.contains(&line), "{line}{metrics}");
}
