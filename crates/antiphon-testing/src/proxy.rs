//! A network that fails on purpose: a TCP proxy between a client and a real server.
//!
//! ```
//! # async fn show(server: &antiphon_testing::services::Private) -> std::io::Result<()> {
//! use antiphon_testing::proxy::{Faults, Proxy, Way};
//!
//! let proxy = Proxy::in_front_of(&server.url()).await?;
//! // … let the client connect to `proxy.url()`, then lose every answer, as a broken router would:
//! proxy.set(Faults { to_client: Way { swallow: true, ..Way::default() }, ..Faults::default() });
//! // … and when the client has noticed, let it work again:
//! proxy.heal();
//! assert!(proxy.counts().swallowed > 0, "the fault bit");
//! # Ok(())
//! # }
//! ```
//!
//! A fault counts for connections that are open and for new ones, from the moment when it is set. What
//! passes is never reordered or changed: TCP would not do that either. A connection that lost bytes in
//! the middle is reset as soon as it would pass bytes again. [`Counts`] proves that a fault had
//! something to bite into.
//!
//! What becomes of bytes is decided in `line`, which is tested without a network; `driver` carries it
//! out.

mod driver;
mod line;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, lookup_host};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// What is wrong with the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// What happens to bytes from the client to the server.
    pub to_server: Way,
    /// What happens to bytes from the server to the client: answers, pushed messages.
    pub to_client: Way,
    /// New connections are reset at once.
    pub refuse: bool,
}

/// What happens to bytes in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Everything arrives later by this much.
    pub latency: Duration,
    /// No more than this many bytes pass per second.
    pub bytes_per_second: Option<u64>,
    /// Nothing passes, and nothing is lost: it arrives when this ends, as after a partition.
    pub hold: bool,
    /// Everything is lost, and nobody is told. What lost something is reset when this ends.
    pub swallow: bool,
    /// Each connection is reset after this many more bytes, in the middle of whatever they are.
    pub cut_after: Option<u64>,
}

impl Faults {
    /// Both directions fail in the same way.
    #[must_use]
    pub fn both(way: Way) -> Self {
        Self { to_server: way, to_client: way, refuse: false }
    }
}

/// What passed, and how often each fault had something to bite into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were accepted.
    pub connections: u64,
    /// Bytes that reached the server.
    pub bytes_to_server: u64,
    /// Bytes that reached the client.
    pub bytes_to_client: u64,
    /// Pieces that were delayed by latency or bandwidth.
    pub delayed: u64,
    /// Times that bytes waited behind `hold`.
    pub held: u64,
    /// Pieces that were lost.
    pub swallowed: u64,
    /// Connections that were reset in the middle of bytes, by `cut_after`.
    pub cut: u64,
    /// Connections that were reset otherwise: by [`Proxy::reset`], or because they had lost bytes.
    pub reset: u64,
    /// Connections that were refused.
    pub refused: u64,
    /// Connections that were reset because the server was not there.
    pub unreachable: u64,
}

impl Counts {
    /// How often faults of this proxy bit.
    #[must_use]
    pub fn bites(&self) -> u64 {
        self.delayed + self.held + self.swallowed + self.cut + self.reset + self.refused
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} connections, {} bytes up, {} bytes down; {} delayed, {} held, {} swallowed, {} cut, \
             {} reset, {} refused, {} unreachable",
            self.connections,
            self.bytes_to_server,
            self.bytes_to_client,
            self.delayed,
            self.held,
            self.swallowed,
            self.cut,
            self.reset,
            self.refused,
            self.unreachable
        )
    }
}

/// A proxy. It, and the connections through it, end when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    url: String,
    setting: watch::Sender<Setting>,
    tally: Arc<Tally>,
    accepting: AbortHandle,
}

/// What connections look at.
#[derive(Clone, Copy, Debug, Default)]
struct Setting {
    faults: Faults,
    /// Grows whenever faults are set.
    generation: u64,
    /// Grows whenever all connections are to be reset.
    resets: u64,
}

impl Proxy {
    /// Listens on a free port of this machine and forwards to the server of a URL.
    ///
    /// # Errors
    ///
    /// When the URL names no host and port, or no port is free.
    ///
    /// # Cancel safety
    ///
    /// Nothing stays.
    pub async fn in_front_of(url: &str) -> io::Result<Self> {
        let (start, end) = authority(url).ok_or_else(|| unusable(url))?;
        let target = lookup_host(&url[start..end]).await?.next().ok_or_else(|| unusable(url))?;
        let mut proxy = Self::to(target).await?;
        proxy.url = format!("{}{}{}", &url[..start], proxy.address, &url[end..]);
        Ok(proxy)
    }

    /// Listens on a free port of this machine and forwards to a server.
    ///
    /// # Errors
    ///
    /// When no port is free.
    ///
    /// # Cancel safety
    ///
    /// Nothing stays.
    pub async fn to(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (setting, watched) = watch::channel(Setting::default());
        let tally = Arc::new(Tally::default());
        let accept = driver::accept(listener, target, watched, Arc::clone(&tally));
        let accepting = tokio::spawn(accept).abort_handle();
        Ok(Self { address, url: address.to_string(), setting, tally, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL that it was made for, with the address of the proxy in it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sets what is wrong from now on, in place of what was wrong before.
    pub fn set(&self, faults: Faults) {
        self.setting.send_modify(|setting| {
            setting.faults = faults;
            setting.generation += 1;
        });
    }

    /// Makes everything work again. Connections that lost bytes are reset.
    pub fn heal(&self) {
        self.set(Faults::default());
    }

    /// Resets every open connection, once.
    pub fn reset(&self) {
        self.setting.send_modify(|setting| setting.resets += 1);
    }

    /// What passed so far, and how often faults bit.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.tally.counts()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// [`Counts`] while they are counted.
#[derive(Debug, Default)]
struct Tally {
    connections: AtomicU64,
    bytes_to_server: AtomicU64,
    bytes_to_client: AtomicU64,
    delayed: AtomicU64,
    held: AtomicU64,
    swallowed: AtomicU64,
    cut: AtomicU64,
    reset: AtomicU64,
    refused: AtomicU64,
    unreachable: AtomicU64,
}

impl Tally {
    fn counts(&self) -> Counts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            connections: get(&self.connections),
            bytes_to_server: get(&self.bytes_to_server),
            bytes_to_client: get(&self.bytes_to_client),
            delayed: get(&self.delayed),
            held: get(&self.held),
            swallowed: get(&self.swallowed),
            cut: get(&self.cut),
            reset: get(&self.reset),
            refused: get(&self.refused),
            unreachable: get(&self.unreachable),
        }
    }
}

fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed);
}

fn unusable(url: &str) -> io::Error {
    let words = format!("{url:?} names no host and port, such as nats://127.0.0.1:4222");
    io::Error::new(io::ErrorKind::InvalidInput, words)
}

/// Where host and port are in a URL.
fn authority(url: &str) -> Option<(usize, usize)> {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    let start = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
    let (host, port) = url[start..end].rsplit_once(':')?;
    (!host.is_empty() && port.parse::<u16>().is_ok()).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_found_in_urls() {
        for (url, expected) in [
            ("nats://127.0.0.1:4222", Some("127.0.0.1:4222")),
            ("mysql://root@127.0.0.1:3306/mysql?a=b:1", Some("127.0.0.1:3306")),
            ("amqp://a:b@localhost:5672", Some("localhost:5672")),
            ("127.0.0.1:1", Some("127.0.0.1:1")),
            ("postgres://localhost/db", None),
            ("amqp://a:b@localhost", None),
        ] {
            let found = authority(url).map(|(start, end)| &url[start..end]);
            assert_eq!(found, expected, "{url}");
        }
    }
}
