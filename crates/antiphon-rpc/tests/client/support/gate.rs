//! The network before an instance: it can be cut, as when the machine behind it dies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// Passes bytes on to an instance, from an address that stays the same.
pub(crate) struct Gate {
    address: SocketAddr,
    /// Keeps the address while nobody listens there.
    _place: TcpSocket,
    behind: Arc<Mutex<SocketAddr>>,
    /// Connections that came, whether they got through or not.
    accepted: Arc<AtomicUsize>,
    accepting: Mutex<Option<AbortHandle>>,
    held: Arc<AtomicBool>,
    open: Arc<Mutex<JoinSet<()>>>,
}

impl Gate {
    pub(crate) fn open(behind: SocketAddr) -> Self {
        let place = TcpSocket::new_v4().unwrap();
        place.set_reuseport(true).unwrap();
        place.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let gate = Self {
            address: place.local_addr().unwrap(),
            _place: place,
            behind: Arc::new(Mutex::new(behind)),
            accepted: Arc::default(),
            accepting: Mutex::default(),
            held: Arc::default(),
            open: Arc::default(),
        };
        gate.revive();
        gate
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// New connections lead there.
    pub(crate) fn lead_to(&self, behind: SocketAddr) {
        *self.behind.lock() = behind;
    }

    /// Refuses new connections; those that are open stay.
    pub(crate) fn close(&self) {
        if let Some(task) = self.accepting.lock().take() {
            task.abort();
        }
    }

    /// Resets every connection and refuses new ones: what `kill -9` looks like from afar.
    pub(crate) fn kill(&self) {
        self.close();
        self.open.lock().abort_all();
    }

    /// Passes nothing on any more, and tells nobody: a cable that is pulled.
    pub(crate) fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
    }

    /// Lets connections through again.
    pub(crate) fn revive(&self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseport(true).unwrap();
        socket.bind(self.address).unwrap();
        self.pass(socket.listen(64).unwrap());
    }

    fn pass(&self, listener: TcpListener) {
        let (behind, accepted) = (Arc::clone(&self.behind), Arc::clone(&self.accepted));
        let (open, held) = (Arc::clone(&self.open), Arc::clone(&self.held));
        let accepting = tokio::spawn(async move {
            loop {
                let (from, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, Ordering::SeqCst);
                let behind = *behind.lock();
                let mut open = open.lock();
                open.spawn(carry(from, behind, Arc::clone(&held)));
                while open.try_join_next().is_some() {}
            }
        });
        *self.accepting.lock() = Some(accepting.abort_handle());
    }
}

/// Carries bytes both ways. Dropped before the end it resets the connection.
async fn carry(mut from: TcpStream, behind: SocketAddr, held: Arc<AtomicBool>) {
    from.set_zero_linger().unwrap();
    let Ok(mut to) = TcpStream::connect(behind).await else { return };
    to.set_nodelay(true).unwrap();
    from.set_nodelay(true).unwrap();
    let both = tokio::io::copy_bidirectional(&mut from, &mut to);
    tokio::pin!(both);
    std::future::poll_fn(|task| {
        if held.load(Ordering::SeqCst) {
            return std::task::Poll::Pending;
        }
        both.as_mut().poll(task).map(drop)
    })
    .await;
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.kill();
    }
}
