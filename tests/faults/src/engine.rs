//! The servers that the shop stands on in one run, with the proxies in front of them.

mod disk;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;

use antiphon_testing::proxy::{Counts, Proxy};
use antiphon_testing::services::{Private, Service};
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::plan::{Kind, ROLES, Side};
use crate::{Result, shop};
pub use disk::Disk;

/// What keeps rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// Files; nothing between.
    Sqlite,
    /// PostgreSQL.
    Postgres,
    /// MariaDB.
    Mariadb,
}

/// What carries messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerKind {
    /// Tables of the database server.
    Sql,
    /// NATS JetStream.
    Nats,
    /// Apache Kafka.
    Kafka,
    /// RabbitMQ.
    Rabbitmq,
    /// Mosquitto.
    Mqtt,
    /// Redis Streams.
    Redis,
}

impl StoreKind {
    const ALL: [(&str, Self); 3] =
        [("sqlite", Self::Sqlite), ("postgres", Self::Postgres), ("mariadb", Self::Mariadb)];

    fn service(self) -> Option<Service> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some(Service::Postgres),
            Self::Mariadb => Some(Service::Mariadb),
        }
    }

    /// Its name on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

impl BrokerKind {
    const ALL: [(&str, Self); 6] = [
        ("sql", Self::Sql),
        ("nats", Self::Nats),
        ("kafka", Self::Kafka),
        ("rabbitmq", Self::Rabbitmq),
        ("mqtt", Self::Mqtt),
        ("redis", Self::Redis),
    ];

    fn service(self) -> Option<Service> {
        match self {
            Self::Sql => None,
            Self::Nats => Some(Service::Nats),
            Self::Kafka => Some(Service::Kafka),
            Self::Rabbitmq => Some(Service::Rabbitmq),
            Self::Mqtt => Some(Service::Mosquitto),
            Self::Redis => Some(Service::Redis),
        }
    }

    /// Its name on command lines and in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

impl FromStr for StoreKind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        named(text, &Self::ALL)
    }
}

impl FromStr for BrokerKind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        named(text, &Self::ALL)
    }
}

fn named<T: Copy>(text: &str, all: &[(&str, T)]) -> std::result::Result<T, String> {
    let names = || all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let found = all.iter().find(|(name, _)| *name == text).map(|(_, kind)| *kind);
    found.ok_or_else(|| format!("`{text}` is none of {}", names()))
}

/// A server of this run, and the proxies in front of it: one per service, or one for all.
#[derive(Debug)]
pub struct Server {
    /// Which server.
    pub service: Service,
    /// The server itself.
    pub private: Private,
    /// A disk that can be filled, where one can be had.
    pub disk: Option<Disk>,
    /// Held while something is done to it: it may take longer to come back than was planned.
    pub(crate) turn: Mutex<()>,
    proxies: Vec<Proxy>,
}

impl Server {
    async fn start(service: Service, disk: Option<Disk>) -> Result<Self> {
        let home = disk.as_ref().map(|disk| disk.home(service));
        let (private, proxies) = if service == Service::Kafka {
            // It sends its clients to one address.
            let (private, proxy) = Private::behind_proxy_in(service, home.as_deref()).await?;
            (private, vec![proxy])
        } else {
            let private = Private::start_in(service, home.as_deref()).await?;
            let mut proxies = Vec::new();
            for _ in ROLES {
                proxies.push(Proxy::in_front_of(&private.url()).await?);
            }
            (private, proxies)
        };
        Ok(Self { service, private, disk, turn: Mutex::default(), proxies })
    }

    /// Starts it if it has ended. One that is ending, of a full disk, still looks as if it ran: it is
    /// started when it has ended.
    pub(crate) async fn revive(&self) -> Result<()> {
        if self.private.start_again().await.is_err() {
            self.private.stop().await?;
            self.private.start_again().await?;
        }
        Ok(())
    }

    /// What is between a service and this server.
    #[must_use]
    pub fn link(&self, role: usize) -> &Proxy {
        &self.proxies[role % self.proxies.len()]
    }

    /// Everything works again.
    pub fn heal(&self) {
        self.proxies.iter().for_each(Proxy::heal);
    }

    /// Ends all connections; tells how many the server itself says it ended.
    ///
    /// # Errors
    ///
    /// When a database server does not do it.
    ///
    /// # Cancel safety
    ///
    /// Some may be left.
    pub async fn disconnect(&self) -> Result<u64> {
        match self.service {
            Service::Postgres => {
                let killed = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                              where pid <> pg_backend_pid() and backend_type = 'client backend'";
                Ok(self.sql(killed).await?.trim().parse()?)
            }
            Service::Mariadb => {
                let list = "select id from information_schema.processlist where id <> \
                            connection_id() and command <> 'Daemon' and user <> 'system user'";
                let ids = self.sql(list).await?;
                let kills: String = ids.lines().map(|id| format!("kill {id};")).collect();
                // One that has gone by itself stops the rest, who are ended next time.
                let _ = self.sql(&kills).await;
                Ok(ids.lines().count() as u64)
            }
            _ => {
                self.proxies.iter().for_each(Proxy::reset);
                Ok(0)
            }
        }
    }

    /// Runs statements with the server's own command, past the proxies.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    ///
    /// # Cancel safety
    ///
    /// They may have been run.
    pub async fn sql(&self, statements: &str) -> Result<String> {
        let mut command = if self.service == Service::Postgres {
            let mut psql = Command::new("psql");
            psql.args([&self.private.url(), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
            psql.args(["-c", statements]);
            psql
        } else {
            let mut mariadb = Command::new("mariadb");
            mariadb.args(["--no-defaults", "--host=127.0.0.1", "--user=root", "--skip-ssl"]);
            mariadb.arg(format!("--port={}", self.private.port()));
            mariadb.args(["--batch", "--skip-column-names", "--execute", statements]);
            mariadb
        };
        let output = command.kill_on_drop(true).stdin(Stdio::null()).output().await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
    }

    fn counts(&self) -> impl Iterator<Item = Counts> {
        self.proxies.iter().map(Proxy::counts)
    }
}

/// What one run stands on.
#[derive(Debug)]
pub struct Engine {
    store: Option<Server>,
    broker: Option<Server>,
    data: PathBuf,
}

impl Engine {
    /// Starts the servers, with an empty database for each service.
    ///
    /// # Errors
    ///
    /// When a server cannot be had.
    ///
    /// # Cancel safety
    ///
    /// What has been started is removed again.
    pub async fn start(folder: &Path, store: StoreKind, broker: BrokerKind) -> Result<Self> {
        let start = |service: Option<Service>| async move {
            match service {
                None => Ok(None),
                Some(service) => Server::start(service, Disk::mount().await).await.map(Some),
            }
        };
        let (store_server, broker_server) =
            tokio::try_join!(start(store.service()), start(broker.service()))?;
        if let Some(server) = &store_server {
            for name in ROLES.iter().chain(&["broker"]) {
                server.sql(&format!("create database shop_{name}")).await?;
            }
        }
        Ok(Self { store: store_server, broker: broker_server, data: folder.join("data") })
    }

    /// The server on one side, if there is one.
    #[must_use]
    pub fn server(&self, side: Side) -> Option<&Server> {
        match side {
            Side::Store => self.store.as_ref(),
            Side::Broker => self.broker.as_ref(),
        }
    }

    /// What can go wrong here.
    #[must_use]
    pub fn kinds(&self) -> Vec<Kind> {
        let mut kinds = vec![Kind::Kill, Kind::Pause, Kind::Storm];
        // Processes that share files share a machine and its clock.
        if self.store.is_some() && shop::fake_clock().is_some() {
            kinds.push(Kind::Clock);
        }
        for side in [Side::Store, Side::Broker] {
            let Some(server) = self.server(side) else { continue };
            kinds.extend([Kind::Restart(side), Kind::Freeze(side), Kind::Disconnect(side)]);
            kinds.extend([Kind::Slow(side), Kind::Loss(side), Kind::Break(side)]);
            // Mosquitto writes to the disk once a second: what it confirmed last dies with it, and no
            // client can do anything about that.
            if server.service != Service::Mosquitto {
                kinds.push(Kind::Crash(side));
            }
            if server.disk.is_some() {
                kinds.push(Kind::Fill(side));
            }
        }
        kinds
    }

    /// The settings of one service, behind its own proxies.
    #[must_use]
    pub fn settings(&self, role: usize, targets: &[(&str, &str)]) -> String {
        let through = |server: &Server| server.link(role).url().to_owned();
        let mut text = self.sections(&through);
        for (name, target) in targets {
            // Writing into a string does not fail.
            let _ = writeln!(text, "\n[clients.\"{name}\"]\ntarget = \"static:{target}\"");
        }
        text
    }

    /// The settings for who looks at all databases, past the proxies.
    #[must_use]
    pub fn settings_for_audit(&self) -> String {
        self.sections(&|server| server.private.url())
    }

    fn sections(&self, url: &dyn Fn(&Server) -> String) -> String {
        let mut text = String::from("[database]\n");
        let _ = match &self.store {
            Some(server) => {
                let url = database(&url(server));
                let names = ROLES.map(|name| format!("\"{name}\"")).join(", ");
                writeln!(text, "url = \"{url}\"\nservices = [{names}]")
            }
            None => {
                writeln!(text, "dir = \"{}\"\nsynchronous = \"full\"", self.data.display())
            }
        };
        let _ = match (&self.broker, &self.store) {
            (Some(server), _) => writeln!(text, "\n[broker]\nurl = \"{}\"", url(server)),
            // The database carries the messages, too.
            (None, Some(server)) => {
                let url = database(&url(server)).replace("{service}", "broker");
                writeln!(text, "\n[broker]\nurl = \"{url}\"")
            }
            (None, None) => writeln!(text, "\n[broker]\nsynchronous = \"full\""),
        };
        text
    }

    /// Everything works again; servers that died of what was done to them are started.
    ///
    /// # Errors
    ///
    /// When one does not start.
    ///
    /// # Cancel safety
    ///
    /// Some may not have been started.
    pub async fn heal(&self) -> Result<()> {
        for server in self.store.iter().chain(&self.broker) {
            server.heal();
            if let Some(disk) = &server.disk {
                disk.empty().await?;
            }
            server.private.resume().await?;
            server.revive().await?;
        }
        Ok(())
    }

    /// What the proxies on one side counted, added up.
    #[must_use]
    pub fn counts(&self, side: Side) -> Option<Counts> {
        self.server(side).map(|server| server.counts().fold(Counts::default(), add))
    }
}

fn add(mut all: Counts, one: Counts) -> Counts {
    all.connections += one.connections;
    all.bytes_to_server += one.bytes_to_server;
    all.bytes_to_client += one.bytes_to_client;
    all.delayed += one.delayed;
    all.held += one.held;
    all.swallowed += one.swallowed;
    all.cut += one.cut;
    all.reset += one.reset;
    all.refused += one.refused;
    all.unreachable += one.unreachable;
    all
}

/// The URL of the services' databases, from that of the server's own.
fn database(url: &str) -> String {
    let end = url.rfind('/').unwrap_or(url.len());
    format!("{}/shop_{{service}}", &url[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_takes_the_place_of_the_servers_own() {
        let url = "postgres://postgres@127.0.0.1:5/postgres";
        assert_eq!(database(url), "postgres://postgres@127.0.0.1:5/shop_{service}");
    }

    #[test]
    fn engines_are_known_by_their_names() {
        assert_eq!("mqtt".parse(), Ok(BrokerKind::Mqtt));
        assert_eq!("mariadb".parse(), Ok(StoreKind::Mariadb));
        let error = "oracle".parse::<StoreKind>().unwrap_err();
        assert_eq!(error, "`oracle` is none of sqlite, postgres, mariadb");
        for (name, kind) in BrokerKind::ALL {
            assert_eq!(kind.name(), name);
        }
    }
}
