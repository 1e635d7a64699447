//! The settings of a server.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use antiphon_resilience::{CpuSettings, LimitSettings};
use http::HeaderName;

pub use super::deadline::Timeouts;
pub use super::rates::RateRule;
use super::rates::RateSharing;
use crate::rest::RestSettings;

/// Where a server listens, and its limits and timers. The defaults are safe.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerSettings {
    /// The address; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Threads that serve; 0 means one per core.
    pub workers: usize,
    /// Connections at once; more are closed at once.
    pub connections_max: usize,
    /// Connections at once from one IP address.
    pub connections_per_address_max: usize,
    /// Time to send the first bytes, by which the protocol is recognised.
    pub sniff_timeout: Duration,
    /// Time to send the head of a request, over HTTP/1.1.
    pub header_timeout: Duration,
    /// How long a connection without calls is kept.
    pub idle_timeout: Duration,
    /// How long a client may pause within a request body that is awaited.
    pub body_idle_timeout: Duration,
    /// How long a client may leave what is sent to it unread.
    pub write_timeout: Duration,
    /// The age at which a connection is asked to end, so that load spreads to new instances.
    pub connection_age_max: Duration,
    /// How long such a connection may take to finish its calls.
    pub connection_age_grace: Duration,
    /// How often an idle HTTP/2 client is asked whether it lives.
    pub keep_alive_interval: Duration,
    /// How long the answer to that may take.
    pub keep_alive_timeout: Duration,
    /// The headers of a request, in bytes.
    pub header_bytes_max: u32,
    /// A REST request body, in bytes.
    pub body_bytes_max: usize,
    /// A message of gRPC, gRPC-Web or Connect, in bytes, uncompressed.
    pub message_bytes_max: usize,
    /// Calls at once on one HTTP/2 connection.
    pub streams_max: u32,
    /// Bytes of one HTTP/2 stream that a client may send ahead.
    pub stream_window_bytes: u32,
    /// Bytes of one HTTP/2 connection that a client may send ahead.
    pub connection_window_bytes: u32,
    /// Bytes kept per HTTP/2 stream for a client that does not read.
    pub send_buffer_bytes: usize,
    /// Calls in progress at once, all methods together.
    /// Critical calls may exceed it by a fifth, and sheddable ones leave a part of it free.
    pub calls_max: u32,
    /// The adaptive limit of each unary method.
    pub concurrency: LimitSettings,
    /// When the processor counts as busy, so that unary methods get no more calls than keep it so;
    /// `None` never.
    pub cpu: Option<CpuSettings>,
    /// Whether no client gets more than its share of a method that is nearly full.
    pub fair_shares: bool,
    /// The header that says which client a call is of, for shares and for rate limits per client:
    /// one that callers cannot choose, such as a gateway sets. Without it, or where a call has none,
    /// the address of the peer says so.
    pub client_header: Option<HeaderName>,
    /// Whether callers are believed that their calls are critical (`x-priority`). A server that
    /// strangers reach should not, unless a gateway before it takes the header away. That a call is
    /// less than usual is always believed.
    pub trust_priority: bool,
    /// How often methods and services may be called, by `package.Service/Method` or
    /// `package.Service`.
    pub rate_limits: BTreeMap<String, RateRule>,
    /// Where instances share those of them that are shared.
    pub rate_sharing: Option<RateSharing>,
    /// How long calls may take.
    pub timeouts: Timeouts,
    /// Calls that take longer are logged even when they succeed.
    pub slow_call: Duration,
    /// How long to go on serving after health says "not ready", so that load balancers notice.
    pub lame_duck: Duration,
    /// Streams over REST.
    pub rest: RestSettings,
}

impl Default for ServerSettings {
    fn default() -> Self {
        const fn secs(secs: u64) -> Duration {
            Duration::from_secs(secs)
        }
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            workers: 0,
            connections_max: 50_000,
            connections_per_address_max: 4_096,
            sniff_timeout: secs(10),
            header_timeout: secs(10),
            idle_timeout: secs(300),
            body_idle_timeout: secs(30),
            write_timeout: secs(30),
            connection_age_max: secs(1_800),
            connection_age_grace: secs(30),
            keep_alive_interval: secs(60),
            keep_alive_timeout: secs(20),
            header_bytes_max: 16 * 1024,
            body_bytes_max: 1024 * 1024,
            message_bytes_max: 4 * 1024 * 1024,
            streams_max: 200,
            stream_window_bytes: 256 * 1024,
            connection_window_bytes: 1024 * 1024,
            send_buffer_bytes: 64 * 1024,
            calls_max: 10_000,
            concurrency: LimitSettings::default(),
            cpu: Some(CpuSettings::default()),
            fair_shares: true,
            client_header: None,
            trust_priority: true,
            rate_limits: BTreeMap::new(),
            rate_sharing: None,
            timeouts: Timeouts::default(),
            slow_call: secs(1),
            lame_duck: Duration::ZERO,
            rest: RestSettings::default(),
        }
    }
}
