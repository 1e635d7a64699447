//! One question to name servers, and what the answer means.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;

use crate::RegistryError;

/// How long one question to one server may take, and how often each is asked.
const QUESTION_LIMIT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
/// For how long it is believed that a name does not exist, where the answer does not say.
const NEGATIVE_TTL: Duration = Duration::from_secs(5);
/// An address that is written as such never changes.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Records, and for how long they are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked<T> {
    pub(super) records: Vec<T>,
    pub(super) ttl: Duration,
}

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Srv {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    pub(super) host: String,
}

/// Which addresses.
#[derive(Clone, Copy, Debug)]
pub(super) enum Family {
    V4,
    V6,
}

/// Who is asked.
///
/// A resolver of its own for each name server: one resolver with several asks two at a time, and
/// takes that the first of them failed for the answer of all.
pub(super) struct Servers {
    each: Vec<TokioResolver>,
    /// Which of them answered last: it is asked first.
    first: AtomicUsize,
}

impl Servers {
    /// The servers at these addresses, or, without any, those of the system.
    pub(super) fn new(at: &[SocketAddr]) -> Result<Self, RegistryError> {
        let trouble = |error: NetError| {
            RegistryError::away("the system's name servers cannot be told", error)
        };
        let (config, mut options) = if at.is_empty() {
            read_system_conf().map_err(trouble)?
        } else {
            let servers = at.iter().map(|at| server(*at)).collect();
            (ResolverConfig::from_name_servers(servers), ResolverOpts::default())
        };
        options.timeout = QUESTION_LIMIT;
        options.attempts = 0;
        // What is asked for again is to be asked again: we keep the answers ourselves.
        options.cache_size = 0;
        let (domain, search, servers) = config.into_parts();
        let resolver = |server| {
            let config = ResolverConfig::from_parts(domain.clone(), search.clone(), vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
                .with_options(options.clone())
                .build()
        };
        let each = servers.into_iter().map(resolver).collect::<Result<_, _>>().map_err(trouble)?;
        Ok(Self { each, first: AtomicUsize::new(0) })
    }

    /// The addresses of a host in one family.
    pub(super) async fn addresses(
        &self,
        host: &str,
        family: Family,
    ) -> Result<Asked<IpAddr>, RegistryError> {
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = literal.parse::<IpAddr>() {
            let here = ip.is_ipv4() == matches!(family, Family::V4);
            return Ok(Asked { records: here.then_some(ip).into_iter().collect(), ttl: FOREVER });
        }
        let kind = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        self.ask(host, kind, |data| match data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        })
        .await
    }

    /// The SRV records of a name.
    pub(super) async fn srv(&self, name: &str) -> Result<Asked<Srv>, RegistryError> {
        self.ask(name, RecordType::SRV, |data| match data {
            // The root as a target says that there is decidedly no such service (RFC 2782).
            RData::SRV(srv) if !srv.target.is_root() && srv.port != 0 => Some(Srv {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                host: srv.target.to_ascii(),
            }),
            _ => None,
        })
        .await
    }

    async fn ask<T>(
        &self,
        name: &str,
        kind: RecordType,
        read: impl Fn(&RData) -> Option<T>,
    ) -> Result<Asked<T>, RegistryError> {
        match self.lookup(name, kind).await {
            Ok(lookup) => {
                let records = lookup.answers().iter().filter_map(|record| read(&record.data));
                Ok(Asked { records: records.collect(), ttl: ttl(&lookup) })
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let ttl = none.negative_ttl.map(|ttl| Duration::from_secs(ttl.into()));
                Ok(Asked { records: Vec::new(), ttl: ttl.unwrap_or(NEGATIVE_TTL) })
            }
            Err(error) => {
                Err(RegistryError::away(format!("DNS does not tell the {kind} of {name}"), error))
            }
        }
    }

    /// What the first server says that says anything, be it that there is nothing. The error is the
    /// last one's.
    async fn lookup(&self, name: &str, kind: RecordType) -> Result<Lookup, NetError> {
        let first = self.first.load(Relaxed);
        let mut trouble = NetError::NoConnections;
        for turn in 0..self.each.len() * ATTEMPTS {
            let index = (first + turn) % self.each.len();
            match self.each[index].lookup(name, kind).await {
                Err(error) if !matches!(error, NetError::Dns(DnsError::NoRecordsFound(_))) => {
                    trouble = error;
                }
                said => {
                    self.first.store(index, Relaxed);
                    return said;
                }
            }
        }
        Err(trouble)
    }
}

/// A server that is asked over UDP, and over TCP where the answer is too long for that.
fn server(at: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = at.port();
        connection
    });
    NameServerConfig::new(at.ip(), true, connections.into())
}

/// The shortest time to live in the chain of an answer.
fn ttl(lookup: &Lookup) -> Duration {
    let least = lookup.answers().iter().map(|record| record.ttl).min();
    least.map_or(NEGATIVE_TTL, |ttl| Duration::from_secs(ttl.into()))
}
