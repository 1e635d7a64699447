//! Where the real servers of the tests are.
//!
//! `cargo xtask services up` starts them, and `cargo xtask test` tells the tests where they are by
//! variables. Without a variable a server is looked for where `services up` puts it, so that
//! `cargo test -p …` works at a desk. A test whose server is not there fails and says how to start it.

use std::path::PathBuf;

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
}

/// The user that may come in over TLS, and its password.
pub const USER: &str = "antiphon";
/// See [`USER`].
pub const PASSWORD: &str = "secret";

impl Service {
    /// Every server.
    pub const ALL: [Self; 7] = [
        Self::Postgres,
        Self::Mariadb,
        Self::Redis,
        Self::Nats,
        Self::Rabbitmq,
        Self::Mosquitto,
        Self::Kafka,
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
        }
    }

    /// Where it is, without TLS and with full rights, as the URL that its adapter takes:
    /// `ANTIPHON_TEST_<NAME>`, or where `services up` puts it.
    #[must_use]
    pub fn url(self) -> String {
        variable(&format!("ANTIPHON_TEST_{}", self.name().to_uppercase())).unwrap_or_else(|| {
            match self {
                Self::Postgres => "postgres://postgres@127.0.0.1:25432/postgres",
                Self::Mariadb => "mysql://root@127.0.0.1:23306/mysql",
                Self::Redis => "redis://127.0.0.1:26379",
                Self::Nats => "nats://127.0.0.1:24222",
                Self::Rabbitmq => "amqp://guest:guest@127.0.0.1:25673",
                Self::Mosquitto => "mqtt://127.0.0.1:21883",
                Self::Kafka => "kafka://127.0.0.1:29092",
            }
            .to_owned()
        })
    }

    /// Where it is over TLS, for [`USER`] with [`PASSWORD`]; its certificate is signed by
    /// [`certificate_authority`]. `ANTIPHON_TEST_<NAME>_TLS`, or where `services up` puts it.
    #[must_use]
    pub fn tls_url(self) -> String {
        let name = format!("ANTIPHON_TEST_{}_TLS", self.name().to_uppercase());
        variable(&name).unwrap_or_else(|| {
            match self {
                Self::Postgres => {
                    "postgres://antiphon:secret@127.0.0.1:25432/postgres?sslmode=verify-full"
                }
                Self::Mariadb => {
                    "mysql://antiphon:secret@127.0.0.1:23306/mysql?ssl-mode=VERIFY_IDENTITY"
                }
                Self::Redis => "rediss://antiphon:secret@127.0.0.1:26380",
                // One port for both: the server asks for TLS, and lets others in as well.
                Self::Nats => "tls://antiphon:secret@127.0.0.1:24222",
                Self::Rabbitmq => "amqps://antiphon:secret@127.0.0.1:25671",
                Self::Mosquitto => "mqtts://antiphon:secret@127.0.0.1:28883",
                Self::Kafka => "kafka+ssl://antiphon:secret@127.0.0.1:29093",
            }
            .to_owned()
        })
    }
}

/// The certificate of the authority that signed the servers' certificates, as a PEM file:
/// `ANTIPHON_TEST_CA`, or where `services up` puts it.
#[must_use]
pub fn certificate_authority() -> PathBuf {
    variable("ANTIPHON_TEST_CA").map_or_else(|| folder().join("tls/ca.pem"), PathBuf::from)
}

/// The folder of the servers that `services up` starts: `antiphon/services` in the user's cache.
#[must_use]
pub fn folder() -> PathBuf {
    let cache = variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("antiphon/services")
}

#[expect(clippy::disallowed_methods, reason = "tests are told by variables where servers are")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_has_an_address_with_and_without_tls() {
        for service in Service::ALL {
            assert!(service.url().contains("://"), "{service:?}");
            assert!(service.tls_url().contains(USER), "{service:?}");
        }
    }
}
