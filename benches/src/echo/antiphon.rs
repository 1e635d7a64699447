//! Ours: one worker, all default layers on.

use std::net::SocketAddr;
use std::sync::Arc;

use antiphon_core::{BoxError, Component, Health, ShutdownHandle, Status};
use antiphon_rpc::server::{Server, ServerSettings};
use antiphon_telemetry::Telemetry;

use crate::contract::bench::v1::{EchoMessage, EchoService, EchoServiceServer};

struct Echo;

impl EchoService for Echo {
    async fn echo(&self, request: EchoMessage) -> Result<EchoMessage, Status> {
        Ok(request)
    }
}

pub(super) async fn serve(address: SocketAddr) -> Result<(), BoxError> {
    let settings = ServerSettings { listen: address, workers: 1, ..ServerSettings::default() };
    let service = Arc::new(EchoServiceServer::new(Echo));
    let server = Server::bind(vec![service], settings, &Telemetry::new(), &Health::new()).await?;
    let (_handle, shutdown) = ShutdownHandle::new();
    server.run(shutdown).await
}
