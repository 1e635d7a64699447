//! The port: binding it, and deciding which connections come in.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;

use super::metrics::{ServerMetrics, Shed};

/// Connections that the system completes for us before we take them.
const BACKLOG: u32 = 1_024;
/// How long to wait when the system can give no more connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the port could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process has it.
    #[error("{0} is in use: stop what listens there, or set another address (server.listen)")]
    InUse(SocketAddr),
    /// The system does not let this process have it.
    #[error(
        "{0} may not be listened on by this process: choose a port of 1024 or higher, or run with the right to bind it"
    )]
    Denied(SocketAddr),
    /// The address is none of this machine's.
    #[error("{0} is no address of this machine (server.listen)")]
    NotLocal(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {address}")]
    Other {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Takes the port.
pub(super) fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    let listen = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // A restarted server shall not wait for the connections of the one before to be forgotten.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse(address),
        io::ErrorKind::PermissionDenied => BindError::Denied(address),
        io::ErrorKind::AddrNotAvailable => BindError::NotLocal(address),
        _ => BindError::Other { address, source },
    })
}

/// The limits on connections.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    per_address_max: usize,
    metrics: ServerMetrics,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection that was let in; it is counted until this is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    gate: Gate,
    address: IpAddr,
}

impl Gate {
    pub(super) fn new(max: usize, per_address_max: usize, metrics: &ServerMetrics) -> Self {
        Self(Arc::new(Inner {
            max,
            per_address_max,
            metrics: metrics.clone(),
            open: Mutex::default(),
        }))
    }

    /// Lets a connection in, or tells why not.
    fn admit(&self, address: IpAddr) -> Result<Admitted, Shed> {
        let mut open = self.0.open.lock();
        if open.all >= self.0.max {
            return Err(Shed::ConnectionsMax);
        }
        let of_address = open.by_address.entry(address).or_default();
        if *of_address >= self.0.per_address_max {
            return Err(Shed::ConnectionsPerAddress);
        }
        *of_address += 1;
        open.all += 1;
        self.0.metrics.connections.inc();
        Ok(Admitted { gate: self.clone(), address })
    }

    /// The next connection that may come in.
    ///
    /// # Cancel safety
    /// No connection is lost when the future is dropped.
    pub(super) async fn next(&self, listener: &TcpListener) -> (TcpStream, Admitted) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => match self.admit(peer.ip().to_canonical()) {
                    Ok(admitted) => return (stream, admitted),
                    Err(why) => {
                        self.0.metrics.shed(why);
                        tracing::debug!(%peer, ?why, "connection turned away");
                    }
                },
                // The client went away between knocking and coming in.
                Err(error) if is_the_clients(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Admitted {
    /// The client's address.
    pub(super) const fn address(&self) -> IpAddr {
        self.address
    }
}

fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let gate = &self.gate.0;
        gate.metrics.connections.dec();
        let mut open = gate.open.lock();
        open.all -= 1;
        if let Some(of_address) = open.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                open.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use antiphon_telemetry::Telemetry;
    use std::net::Ipv4Addr;

    #[test]
    fn connections_are_limited_in_all_and_per_address() {
        let gate = Gate::new(3, 2, &ServerMetrics::new(&Telemetry::new()));
        let (one, two) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::BROADCAST));
        let first = gate.admit(one).unwrap();
        let _second = gate.admit(one).unwrap();
        assert_eq!(gate.admit(one).unwrap_err(), Shed::ConnectionsPerAddress);
        let _third = gate.admit(two).unwrap();
        assert_eq!(gate.admit(two).unwrap_err(), Shed::ConnectionsMax);
        drop(first);
        assert!(gate.admit(one).is_ok());
        assert!(gate.0.open.lock().by_address.len() == 2);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let error = bind(address).unwrap_err();
        assert!(matches!(error, BindError::InUse(_)));
        assert!(error.to_string().contains(&address.to_string()));
    }
}
