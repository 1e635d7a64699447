//! A way to a server that counts the connections over it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Passes bytes on, until it is dropped.
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Gate {
    pub(crate) async fn open(behind: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&accepted);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (mut from, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                open.spawn(async move {
                    from.set_nodelay(true).unwrap();
                    let mut to = TcpStream::connect(behind).await.unwrap();
                    to.set_nodelay(true).unwrap();
                    // However it ends, both ends see it.
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                });
                while open.try_join_next().is_some() {}
            }
        });
        Self { address, accepted, _tasks: tasks }
    }

    /// How many connections there were.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}
