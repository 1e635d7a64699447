//! `[broker]`: what carries messages.

use serde::{Deserialize, Serialize};

use super::Location;
use super::location::scheme;

/// `[broker]`: what carries messages. A broker's own settings stand in a section of its name:
/// `[broker.kafka]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BrokerSection {
    /// Where it is: `nats://host`, `kafka://host`, `amqp://host`, `mqtt://host`, `redis://host`,
    /// `postgres://host/db`, `mysql://host/db`, `sqlite:file`, `memory:`. The file `broker.db` in the
    /// folder of the databases unless set.
    pub(crate) url: Option<Location>,
    /// What keeps dead letters and waiting messages for a broker that cannot: a SQL broker. Where
    /// the databases are, under the name `broker`, unless set.
    pub(crate) parking: Option<Location>,
    #[cfg(feature = "nats")]
    pub(crate) nats: antiphon_broker_nats::Settings,
    #[cfg(feature = "kafka")]
    pub(crate) kafka: antiphon_broker_kafka::Settings,
    #[cfg(feature = "rabbitmq")]
    pub(crate) rabbitmq: antiphon_broker_rabbitmq::Settings,
    #[cfg(feature = "mqtt")]
    pub(crate) mqtt: antiphon_broker_mqtt::Settings,
    #[cfg(feature = "redis")]
    pub(crate) redis: antiphon_broker_redis::Settings,
}

/// The technologies that carry messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Memory,
    Sqlite,
    Postgres,
    Mysql,
    Nats,
    Kafka,
    Rabbitmq,
    Mqtt,
    Redis,
}

impl Carrier {
    /// By the scheme of a location; what has none is the path of a SQLite file.
    pub(crate) fn of(location: &str) -> Result<Self, String> {
        Ok(match scheme(location) {
            None | Some("sqlite") => Self::Sqlite,
            Some("memory") => Self::Memory,
            Some("postgres" | "postgresql") => Self::Postgres,
            Some("mysql" | "mariadb") => Self::Mysql,
            Some("nats" | "tls") => Self::Nats,
            Some("kafka" | "kafka+ssl") => Self::Kafka,
            Some("amqp" | "amqps") => Self::Rabbitmq,
            Some("mqtt" | "mqtts") => Self::Mqtt,
            Some("redis" | "rediss") => Self::Redis,
            Some(other) => {
                return Err(format!(
                    "broker.url begins with `{other}:`; known are memory, sqlite, postgres, mysql, \
                     nats, tls, kafka, kafka+ssl, amqp, amqps, mqtt, mqtts, redis and rediss"
                ));
            }
        })
    }

    /// The feature of the crate `antiphon` that it needs; none for what is always there.
    pub(crate) const fn feature(self) -> Option<&'static str> {
        match self {
            Self::Memory | Self::Sqlite => None,
            Self::Postgres => Some("postgres"),
            Self::Mysql => Some("mysql"),
            Self::Nats => Some("nats"),
            Self::Kafka => Some("kafka"),
            Self::Rabbitmq => Some("rabbitmq"),
            Self::Mqtt => Some("mqtt"),
            Self::Redis => Some("redis"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_names_the_carrier() {
        for (location, carrier) in [
            ("shop-data/broker.db", Carrier::Sqlite),
            ("sqlite:broker.db", Carrier::Sqlite),
            ("memory:", Carrier::Memory),
            ("kafka+ssl://a,b", Carrier::Kafka),
            ("amqps://a", Carrier::Rabbitmq),
            ("tls://a", Carrier::Nats),
        ] {
            assert_eq!(Carrier::of(location), Ok(carrier), "{location}");
        }
        assert!(Carrier::of("zeromq://a").unwrap_err().contains("kafka"));
    }
}
