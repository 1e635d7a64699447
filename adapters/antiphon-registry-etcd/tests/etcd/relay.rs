//! A network that loses single connections without a word.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// What a watch begins with.
const WATCH: &[u8] = b"POST /v3/watch";

/// Passes everything on, and can lose what etcd says on connections on which a watch was asked for. It
/// ends with the runtime of its test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relay {
    /// Of each connection with a watch: whether it is lost.
    watches: Arc<Mutex<Vec<Arc<AtomicBool>>>>,
    /// How many pieces were lost.
    bites: Arc<AtomicUsize>,
}

impl Relay {
    /// A relay in front of `target`, and its URL.
    pub(crate) async fn to(target: SocketAddr) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let relay = Self::default();
        tokio::spawn({
            let relay = relay.clone();
            async move {
                while let Ok((near, _)) = listener.accept().await {
                    let far = TcpStream::connect(target).await.expect("etcd");
                    let ((from_near, to_near), (from_far, to_far)) =
                        (near.into_split(), far.into_split());
                    let lost = Arc::<AtomicBool>::default();
                    tokio::spawn(relay.clone().ask(from_near, to_far, Arc::clone(&lost)));
                    tokio::spawn(relay.clone().answer(from_far, to_near, lost));
                }
            }
        });
        (relay, url)
    }

    /// Loses every watch that there is.
    pub(crate) fn lose_watches(&self) {
        self.watches.lock().drain(..).for_each(|lost| lost.store(true, SeqCst));
    }

    pub(crate) fn bites(&self) -> usize {
        self.bites.load(SeqCst)
    }

    async fn ask(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, lost: Arc<AtomicBool>) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if buffer[..length].windows(WATCH.len()).any(|part| part == WATCH) {
                self.watches.lock().push(Arc::clone(&lost));
            }
            if to.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    }

    async fn answer(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, lost: Arc<AtomicBool>) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if lost.load(SeqCst) {
                self.bites.fetch_add(1, SeqCst);
            } else if to.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    }
}
