//! A thread that serves: one `current_thread` runtime, and the connections handed to it.
//!
//! All of a connection's work, handlers included, runs on one thread. That is what makes small calls
//! cheap: a connection writes after all its runnable handlers have answered, so answers share writes,
//! and nothing wakes another core.

use std::net::{IpAddr, TcpStream as StdTcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use antiphon_core::Shutdown;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};

use super::answer::Answers;
use super::connection::{self, Protocols};
use super::layers::Calls;
use super::listener::Admitted;

/// A connection on its way to a worker.
pub(super) type Handed = (StdTcpStream, Admitted);

/// The handle of a worker thread.
#[derive(Debug)]
pub(super) struct Worker {
    connections: mpsc::UnboundedSender<Handed>,
    load: Arc<Load>,
    ended: oneshot::Receiver<()>,
}

/// The open connections of a worker.
#[derive(Debug, Default)]
struct Load {
    open: AtomicUsize,
    none: Notify,
}

/// Keeps a connection counted.
struct Counted(Arc<Load>);

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

impl Load {
    async fn none(&self) {
        loop {
            let none = self.none.notified();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            none.await;
        }
    }
}

impl Worker {
    /// Starts worker number `number`.
    ///
    /// # Errors
    /// When the system gives no thread or no reactor.
    pub(super) fn start(
        number: usize,
        calls: &Calls,
        answers: Arc<Answers>,
        shutdown: Shutdown,
    ) -> std::io::Result<Self> {
        let (connections, handed) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel();
        let load = Arc::new(Load::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let work = work(handed, calls.clone(), answers, Arc::clone(&load), shutdown);
        thread::Builder::new().name(format!("antiphon-serve-{number}")).spawn(move || {
            runtime.block_on(work);
            // What a handler left on blocking threads must not hold up the end.
            runtime.shutdown_background();
            // Nobody waits when the server was dropped.
            let _ = end.send(());
        })?;
        Ok(Self { connections, load, ended })
    }

    /// How many connections it serves.
    pub(super) fn load(&self) -> usize {
        self.load.open.load(Ordering::Relaxed)
    }

    /// Gives it a connection.
    pub(super) fn hand(&self, handed: Handed) {
        self.load.open.fetch_add(1, Ordering::AcqRel);
        if self.connections.send(handed).is_err() {
            // It has ended, and the connection with it.
            drop(Counted(Arc::clone(&self.load)));
        }
    }

    /// Waits until it has ended.
    pub(super) async fn ended(self) {
        drop(self.connections);
        // An error means that the thread is gone, which is an end as well.
        let _ = self.ended.await;
    }
}

async fn work(
    mut handed: mpsc::UnboundedReceiver<Handed>,
    calls: Calls,
    answers: Arc<Answers>,
    load: Arc<Load>,
    shutdown: Shutdown,
) {
    let protocols = Arc::new(Protocols::new(calls.settings()));
    let drained = async {
        while let Some((stream, admitted)) = handed.recv().await {
            let counted = Counted(Arc::clone(&load));
            let (protocols, answers) = (Arc::clone(&protocols), Arc::clone(&answers));
            let shutdown = shutdown.clone();
            tokio::spawn(async move {
                let peer = admitted.address();
                let _counted = (counted, admitted);
                if let Err(error) = serve(stream, peer, &protocols, answers, &shutdown).await {
                    tracing::debug!(%error, "connection broke");
                }
            });
        }
        // The channel is closed: no connection will come any more. Upgraded ones are calls that
        // outlive their connection.
        load.none().await;
        calls.idle().await;
        answers.sockets_closed().await;
    };
    tokio::select! {
        () = drained => {}
        () = shutdown.cut() => {}
    }
}

async fn serve(
    stream: StdTcpStream,
    peer: IpAddr,
    protocols: &Protocols,
    answers: Arc<Answers>,
    shutdown: &Shutdown,
) -> Result<(), antiphon_core::BoxError> {
    connection::serve(TcpStream::from_std(stream)?, peer, protocols, answers, shutdown).await
}
