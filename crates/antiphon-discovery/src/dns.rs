//! Instances that DNS knows: the addresses of a name, or its SRV records (RFC 2782).
//!
//! Names are asked for again when their time to live has passed, which is held between one and thirty
//! seconds, and when callers cannot connect. A name server that does not answer, or answers that it
//! failed, changes nothing: what it last said of a name stays. That a name does not exist, or has no
//! such records, is an answer.

mod ask;
mod memory;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use antiphon_core::BoxFuture;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout};

use self::ask::{Asked, Family, Servers};
use self::memory::Memory;
use crate::{Answers, Authority, Instance, RegistryError, State};

/// How seldom and how often a name may be asked for.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// When to ask again for hosts that could not be told, of SRV records of which others were told.
const UNTOLD_TTL: Duration = Duration::from_secs(5);
/// How long all questions of one try may take together.
const LIMIT: Duration = Duration::from_secs(15);

/// What to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The addresses of a host, each with the same port.
    Addresses(Authority),
    /// The SRV records of a name; their hosts are asked for as well.
    Srv(String),
}

/// The answers of DNS to one question.
pub struct Lookup {
    /// Who is asked; the system's name servers when it is empty.
    at: Vec<SocketAddr>,
    question: Question,
    /// Made anew after each failure: the system's settings may have changed.
    servers: Option<Servers>,
    memory: Memory,
    /// When to ask; at once without it.
    due: Option<Instant>,
}

impl Lookup {
    /// Asks the name servers at these addresses, or, without any, the system's. When one does not
    /// answer, or answers that it failed, the next one is asked.
    #[must_use]
    pub fn new(at: Vec<SocketAddr>, question: Question) -> Self {
        Self { at, question, servers: None, memory: Memory::default(), due: None }
    }

    async fn answer(&mut self) -> Result<Vec<Instance>, RegistryError> {
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        let answer = match timeout(LIMIT, self.ask()).await {
            Ok(answer) => answer,
            Err(_) => Err(RegistryError::silent(format!("DNS did not answer within {LIMIT:?}"))),
        };
        match answer {
            Ok((instances, ttl)) => {
                self.due = Some(Instant::now() + ttl.clamp(TTL.0, TTL.1));
                Ok(instances)
            }
            Err(error) => {
                self.due = None;
                self.servers = None;
                Err(error)
            }
        }
    }

    async fn ask(&mut self) -> Result<(Vec<Instance>, Duration), RegistryError> {
        let servers = match &self.servers {
            Some(servers) => servers,
            None => self.servers.insert(Servers::new(&self.at)?),
        };
        match &self.question {
            Question::Addresses(name) => {
                let (addresses, ttl) = addresses(servers, &mut self.memory, &name.host).await?;
                let at = |ip| Instance::new(SocketAddr::new(ip, name.port).into());
                Ok((addresses.into_iter().map(at).collect(), ttl))
            }
            Question::Srv(name) => services(servers, &mut self.memory, name).await,
        }
    }
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup").field("question", &self.question).finish_non_exhaustive()
    }
}

impl Answers for Lookup {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, RegistryError>> {
        Box::pin(self.answer())
    }

    fn look_again(&mut self) {
        self.due = None;
    }
}

/// The addresses of a host in both families, and for how long.
async fn addresses(
    servers: &Servers,
    memory: &mut Memory,
    host: &str,
) -> Result<(Vec<IpAddr>, Duration), RegistryError> {
    let (v4, v6) =
        tokio::join!(servers.addresses(host, Family::V4), servers.addresses(host, Family::V6));
    memory.addresses(host, v4, v6)
}

/// The instances that SRV records name. Of a host that cannot be told anything about, what was last
/// known of it counts.
async fn services(
    servers: &Servers,
    memory: &mut Memory,
    name: &str,
) -> Result<(Vec<Instance>, Duration), RegistryError> {
    let Asked { records, mut ttl } = servers.srv(name).await?;
    let mut hosts: Vec<&str> = records.iter().map(|record| record.host.as_str()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let found = join_all(hosts.iter().map(async |host| {
        tokio::join!(servers.addresses(host, Family::V4), servers.addresses(host, Family::V6))
    }));
    let mut instances = Vec::new();
    let mut trouble = None;
    let mut told = false;
    for (host, (v4, v6)) in hosts.iter().zip(found.await) {
        let (addresses, host_ttl) = match memory.addresses(host, v4, v6) {
            Ok(answer) => {
                told = true;
                answer
            }
            Err(error) => {
                trouble = Some(error);
                (memory.last(host), UNTOLD_TTL)
            }
        };
        ttl = ttl.min(host_ttl);
        for record in records.iter().filter(|record| record.host == *host) {
            instances.extend(addresses.iter().map(|ip| Instance {
                // 0 means a very small share, and weights are at least 1.
                weight: u32::from(record.weight).max(1),
                priority: record.priority,
                state: State::Serving,
                ..Instance::new(SocketAddr::new(*ip, record.port).into())
            }));
        }
    }
    memory.keep(&hosts);
    match trouble {
        // Nothing is certain about any host.
        Some(error) if !told || instances.is_empty() => Err(error),
        Some(error) => {
            tracing::warn!(
                name,
                error = error.chain(),
                "one of the hosts of SRV records is unknown"
            );
            Ok((instances, ttl))
        }
        None => Ok((instances, ttl)),
    }
}

#[cfg(test)]
mod tests;
