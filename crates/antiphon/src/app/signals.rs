//! SIGINT and SIGTERM: the first asks for the drain, the second cuts it.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;

/// Signals since the start, so that none is missed between two waits.
pub(super) struct Signals(Arc<Semaphore>);

impl Signals {
    /// Begins to listen.
    pub(super) fn new() -> std::io::Result<Self> {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let counted = Arc::new(Semaphore::new(0));
        let counter = Arc::clone(&counted);
        tokio::spawn(async move {
            loop {
                either(&mut interrupt, &mut terminate).await;
                counter.add_permits(1);
            }
        });
        Ok(Self(counted))
    }

    /// Completes at the first signal.
    pub(super) fn first(&self) -> impl Future<Output = ()> + use<> {
        self.one()
    }

    /// Completes at the signal after that.
    pub(super) fn second(&self) -> impl Future<Output = ()> + use<> {
        self.one()
    }

    fn one(&self) -> impl Future<Output = ()> + use<> {
        let counted = Arc::clone(&self.0);
        async move {
            // The semaphore is never closed.
            if let Ok(permit) = counted.acquire().await {
                permit.forget();
            }
        }
    }
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
