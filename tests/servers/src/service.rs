//! The servers by name, and where tests find them.

use std::path::PathBuf;

use crate::instance::Ports;
use crate::place::{folder, variable};

/// A server that tests talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// PostgreSQL.
    Postgres,
    /// MariaDB.
    Mariadb,
    /// Redis.
    Redis,
    /// NATS with JetStream.
    Nats,
    /// RabbitMQ.
    Rabbitmq,
    /// Mosquitto.
    Mosquitto,
    /// Apache Kafka.
    Kafka,
    /// etcd.
    Etcd,
    /// Apache ZooKeeper.
    Zookeeper,
    /// Consul.
    Consul,
    /// Knot DNS; its zone is changed through [`Zone`](crate::Zone).
    Knot,
    /// The API server of Kubernetes.
    Kubernetes,
}

/// The user that may come in over TLS, and its password.
pub const USER: &str = "antiphon";
/// See [`USER`].
pub const PASSWORD: &str = "secret";

impl Service {
    /// Every server.
    pub const ALL: [Self; 12] = [
        Self::Postgres,
        Self::Mariadb,
        Self::Redis,
        Self::Nats,
        Self::Rabbitmq,
        Self::Mosquitto,
        Self::Kafka,
        Self::Etcd,
        Self::Zookeeper,
        Self::Consul,
        Self::Knot,
        Self::Kubernetes,
    ];

    /// The name that `cargo xtask services` knows it by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mariadb => "mariadb",
            Self::Redis => "redis",
            Self::Nats => "nats",
            Self::Rabbitmq => "rabbitmq",
            Self::Mosquitto => "mosquitto",
            Self::Kafka => "kafka",
            Self::Etcd => "etcd",
            Self::Zookeeper => "zookeeper",
            Self::Consul => "consul",
            Self::Knot => "knot",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// The server of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.name() == name)
    }

    /// The ports that `cargo xtask services up` uses. All are below the range from which the system
    /// takes ports for outgoing connections.
    #[must_use]
    pub const fn ports(self) -> Ports {
        match self {
            Self::Postgres => Ports::one(25432),
            Self::Mariadb => Ports::one(23306),
            Self::Redis => Ports { plain: 26379, tls: 26380, admin: 0, inner: [0; 3] },
            Self::Nats => Ports { plain: 24222, tls: 24222, admin: 28222, inner: [0; 3] },
            Self::Rabbitmq => {
                Ports { plain: 25673, tls: 25671, admin: 25674, inner: [25675, 25676, 24369] }
            }
            Self::Mosquitto => Ports { plain: 21883, tls: 28883, admin: 0, inner: [0; 3] },
            Self::Kafka => Ports { plain: 29092, tls: 29093, admin: 0, inner: [29094, 0, 0] },
            Self::Etcd => Ports { plain: 22379, tls: 22380, admin: 0, inner: [22381, 0, 0] },
            Self::Zookeeper => Ports::one(22181),
            Self::Consul => Ports { plain: 28500, tls: 28501, admin: 0, inner: [28502, 28503, 0] },
            Self::Knot => Ports::one(25353),
            Self::Kubernetes => {
                Ports { plain: 26443, tls: 26444, admin: 0, inner: [26445, 26446, 0] }
            }
        }
    }

    /// Where it is, without TLS and with full rights, as the URL that its adapter takes:
    /// `ANTIPHON_TEST_<NAME>`, or where `services up` puts it.
    #[must_use]
    pub fn url(self) -> String {
        variable(&self.variable()).unwrap_or_else(|| self.url_at(self.ports()))
    }

    /// Where it is over TLS, for [`USER`] with [`PASSWORD`]; its certificate is signed by
    /// [`certificate_authority`]. `ANTIPHON_TEST_<NAME>_TLS`, or where `services up` puts it.
    #[must_use]
    pub fn tls_url(self) -> String {
        variable(&format!("{}_TLS", self.variable()))
            .unwrap_or_else(|| self.tls_url_at(self.ports()))
    }

    /// Where people and monitoring look at it, of those that have such a port: NATS's monitoring,
    /// RabbitMQ's management. `ANTIPHON_TEST_<NAME>_ADMIN`, or where `services up` puts it.
    #[must_use]
    pub fn admin_url(self) -> Option<String> {
        variable(&format!("{}_ADMIN", self.variable())).or_else(|| self.admin_url_at(self.ports()))
    }

    /// The variable that tells tests where it is: `ANTIPHON_TEST_POSTGRES`.
    #[must_use]
    pub fn variable(self) -> String {
        format!("ANTIPHON_TEST_{}", self.name().to_uppercase())
    }

    /// [`Self::url`] of one that listens on other ports.
    #[must_use]
    pub fn url_at(self, ports: Ports) -> String {
        let port = ports.plain;
        match self {
            Self::Postgres => format!("postgres://postgres@127.0.0.1:{port}/postgres"),
            Self::Mariadb => format!("mysql://root@127.0.0.1:{port}/mysql"),
            Self::Redis => format!("redis://127.0.0.1:{port}"),
            Self::Nats => format!("nats://127.0.0.1:{port}"),
            Self::Rabbitmq => format!("amqp://guest:guest@127.0.0.1:{port}"),
            Self::Mosquitto => format!("mqtt://127.0.0.1:{port}"),
            Self::Kafka => format!("kafka://127.0.0.1:{port}"),
            Self::Etcd | Self::Consul | Self::Kubernetes => format!("http://127.0.0.1:{port}"),
            Self::Zookeeper => format!("zookeeper://127.0.0.1:{port}"),
            Self::Knot => format!("dns://127.0.0.1:{port}"),
        }
    }

    /// [`Self::tls_url`] of one that listens on other ports.
    #[must_use]
    pub fn tls_url_at(self, ports: Ports) -> String {
        let (scheme, path) = match self {
            Self::Postgres => ("postgres", "/postgres?sslmode=verify-full"),
            Self::Mariadb => ("mysql", "/mysql?ssl-mode=VERIFY_IDENTITY"),
            Self::Redis => ("rediss", ""),
            // One port for both: the server asks for TLS, and lets others in as well.
            Self::Nats => ("tls", ""),
            Self::Rabbitmq => ("amqps", ""),
            Self::Mosquitto => ("mqtts", ""),
            Self::Kafka => ("kafka+ssl", ""),
            // They ask nobody for a name.
            Self::Etcd | Self::Consul | Self::Kubernetes => ("https", ""),
            // Debian's package lacks what its TLS needs: this is the plain port.
            Self::Zookeeper => ("zookeeper", ""),
            // It speaks none: this is the plain port.
            Self::Knot => ("dns", ""),
        };
        format!("{scheme}://{USER}:{PASSWORD}@127.0.0.1:{}{path}", ports.tls)
    }

    /// [`Self::admin_url`] of one that listens on other ports.
    #[must_use]
    pub fn admin_url_at(self, ports: Ports) -> Option<String> {
        match self {
            Self::Nats => Some(format!("http://127.0.0.1:{}", ports.admin)),
            Self::Rabbitmq => Some(format!("http://guest:guest@127.0.0.1:{}", ports.admin)),
            _ => None,
        }
    }
}

/// The certificate of the authority that signed the servers' certificates, as a PEM file:
/// `ANTIPHON_TEST_CA`, or where `services up` puts it.
#[must_use]
pub fn certificate_authority() -> PathBuf {
    variable("ANTIPHON_TEST_CA").map_or_else(|| folder().join("tls/ca.pem"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_has_an_address_with_and_without_tls() {
        for service in Service::ALL {
            let ports = service.ports();
            assert!(service.url_at(ports).contains(&format!(":{}", ports.plain)), "{service:?}");
            assert!(service.tls_url_at(ports).contains("antiphon:secret@"), "{service:?}");
            assert_eq!(Service::named(service.name()), Some(service));
        }
        assert_eq!(Service::named("oracle"), None);
    }

    #[test]
    fn no_two_servers_share_a_port() {
        let mut seen = std::collections::BTreeSet::new();
        for service in Service::ALL {
            for port in service.ports().all() {
                assert!(seen.insert(port), "{service:?} {port}");
                assert!(
                    port < 32_768,
                    "{service:?} {port} may be taken for an outgoing connection"
                );
            }
        }
    }
}
