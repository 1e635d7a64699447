//! Ours with a handler that computes for about a millisecond, to see it under more load than it can
//! carry.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{BoxError, Component, Health, ShutdownHandle, Status};
use antiphon_rpc::server::{Server, ServerSettings};
use antiphon_telemetry::Telemetry;
use tokio::time::Instant;

use crate::contract::bench::v1::{EchoMessage, EchoService, EchoServiceServer};

/// How long the handler computes, where nobody takes the processor away.
const WORK: Duration = Duration::from_millis(1);
/// What is timed to know how fast the machine is.
const SAMPLE: u32 = 50_000;

/// Which limits hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Limits {
    Default,
    Off,
}

struct Burn {
    rounds: u32,
}

impl Burn {
    /// The same work for each call, whatever else happens on the machine then.
    fn calibrated() -> Self {
        let timed = || {
            let begun = Instant::now();
            compute(SAMPLE);
            begun.elapsed()
        };
        let fastest = (0..200).map(|_| timed()).min().unwrap_or(WORK);
        let rounds = f64::from(SAMPLE) * WORK.as_secs_f64() / fastest.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small positive number"
        )]
        let rounds = rounds as u32;
        Self { rounds }
    }
}

fn compute(rounds: u32) {
    let mut state = 1_u64;
    for _ in 0..rounds {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

impl EchoService for Burn {
    async fn echo(&self, request: EchoMessage) -> Result<EchoMessage, Status> {
        compute(self.rounds);
        Ok(request)
    }
}

pub(super) async fn serve(address: SocketAddr, limits: Limits) -> Result<(), BoxError> {
    let mut settings = ServerSettings { listen: address, workers: 1, ..ServerSettings::default() };
    if limits == Limits::Off {
        settings.cpu = None;
        settings.fair_shares = false;
        settings.calls_max = u32::MAX;
        let most = u32::MAX;
        settings.concurrency.initial = most;
        settings.concurrency.min = most;
        settings.concurrency.max = most;
    }
    let service = Arc::new(EchoServiceServer::new(Burn::calibrated()));
    let server = Server::bind(vec![service], settings, &Telemetry::new(), &Health::new()).await?;
    let (_handle, shutdown) = ShutdownHandle::new();
    server.run(shutdown).await
}
