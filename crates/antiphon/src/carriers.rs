//! Opening the broker that the settings name, and what keeps for it what it cannot keep itself.

use antiphon_broker_memory::MemoryBroker;
use antiphon_config::Settings;
use antiphon_core::Clock;
use antiphon_messaging::AnyBroker;
use antiphon_store_sqlite::SqliteBroker;

use crate::error::{Error, Result};
use crate::settings::{BrokerSection, Carrier, DatabaseSettings, Sections};

/// The broker of a system.
#[derive(Clone, Debug)]
pub(crate) struct Carriers {
    pub(crate) broker: AnyBroker,
    /// What keeps dead letters and waiting messages for it, if it cannot.
    pub(crate) parking: Option<AnyBroker>,
}

/// Opens both.
///
/// # Errors
/// The settings do not make sense, or name what this program was built without; the broker cannot be
/// reached, or refuses.
pub(crate) async fn open(sections: &Sections, settings: &Settings) -> Result<Carriers> {
    let (section, databases) = (&sections.broker, &sections.database);
    let location = match &section.url {
        Some(url) => url.text().to_owned(),
        None => databases.dir.join("broker.db").to_string_lossy().into_owned(),
    };
    let broker = open_one(&location, section, databases).await;
    let broker = broker.map_err(|error| placed(error, "broker.url", &location, settings))?;
    if broker.capabilities().dead_letters {
        return Ok(Carriers { broker, parking: None });
    }
    let location = match &section.parking {
        Some(parking) => parking.text().to_owned(),
        None => databases.location("broker"),
    };
    let parking = open_one(&location, section, databases).await;
    let parking = parking.map_err(|error| placed(error, "broker.parking", &location, settings))?;
    if !parking.capabilities().dead_letters {
        return Err(Error::mistake(
            "broker.parking names a broker that keeps no dead letters itself; name a SQL database",
        ));
    }
    Ok(Carriers { broker, parking: Some(parking) })
}

/// A mistake in the settings of a broker, with its place. Each technology has a section of its name;
/// its URL stands elsewhere.
fn placed(error: Error, url: &str, location: &str, settings: &Settings) -> Error {
    let technology = Carrier::of(location).ok().and_then(Carrier::feature).unwrap_or_default();
    error.placed(settings, |setting| match setting {
        "url" => url.to_owned(),
        other => format!("broker.{technology}.{other}"),
    })
}

async fn open_one(
    location: &str,
    section: &BrokerSection,
    databases: &DatabaseSettings,
) -> Result<AnyBroker> {
    let carrier = Carrier::of(location).map_err(Error::mistake)?;
    match carrier {
        Carrier::Memory => Ok(AnyBroker::new(MemoryBroker::new(Clock::system()))),
        Carrier::Sqlite => {
            let opened = SqliteBroker::open(location, databases.sqlite()).await;
            opened.map(AnyBroker::new).map_err(Error::mistake)
        }
        other => open_server(other, location, section, databases).await,
    }
}

/// A broker that is a server of its own. Connecting takes much room, once: it is boxed.
async fn open_server(
    carrier: Carrier,
    location: &str,
    section: &BrokerSection,
    databases: &DatabaseSettings,
) -> Result<AnyBroker> {
    // Without any of the features nothing below needs them.
    let _ = (location, section, databases);
    match carrier {
        #[cfg(feature = "postgres")]
        Carrier::Postgres => {
            let settings = databases.postgres();
            opened(Box::pin(antiphon_store_postgres::PostgresBroker::open(location, settings)))
                .await
        }
        #[cfg(feature = "mysql")]
        Carrier::Mysql => {
            let settings = databases.mysql();
            opened(Box::pin(antiphon_store_mysql::MysqlBroker::open(location, settings))).await
        }
        #[cfg(feature = "nats")]
        Carrier::Nats => {
            let settings =
                antiphon_broker_nats::Settings { url: location.to_owned(), ..section.nats.clone() };
            opened(Box::pin(antiphon_broker_nats::NatsBroker::open(settings))).await
        }
        #[cfg(feature = "kafka")]
        Carrier::Kafka => {
            let settings = antiphon_broker_kafka::Settings {
                url: location.to_owned(),
                ..section.kafka.clone()
            };
            opened(Box::pin(antiphon_broker_kafka::KafkaBroker::open(settings))).await
        }
        #[cfg(feature = "rabbitmq")]
        Carrier::Rabbitmq => {
            let mut settings = section.rabbitmq.clone();
            location.clone_into(&mut settings.url);
            opened(Box::pin(antiphon_broker_rabbitmq::RabbitmqBroker::open(settings))).await
        }
        #[cfg(feature = "mqtt")]
        Carrier::Mqtt => {
            let mut settings = section.mqtt.clone();
            location.clone_into(&mut settings.url);
            opened(Box::pin(antiphon_broker_mqtt::MqttBroker::open(settings))).await
        }
        #[cfg(feature = "redis")]
        Carrier::Redis => {
            let mut settings = section.redis.clone();
            location.clone_into(&mut settings.url);
            opened(Box::pin(antiphon_broker_redis::RedisBroker::open(settings))).await
        }
        #[allow(unreachable_patterns, reason = "with every feature nothing is left out")]
        left_out => Err(Error::mistake(format!(
            "broker.url names {left_out:?}, and this program was built without it: build it with \
             the feature `{}` of the crate `antiphon`",
            left_out.feature().unwrap_or_default()
        ))),
    }
}

/// Any broker, once it is open.
#[cfg(any(
    feature = "postgres",
    feature = "mysql",
    feature = "nats",
    feature = "kafka",
    feature = "rabbitmq",
    feature = "mqtt",
    feature = "redis"
))]
async fn opened<B: antiphon_messaging::Broker, E: Into<antiphon_core::BoxError>>(
    opening: impl Future<Output = Result<B, E>>,
) -> Result<AnyBroker> {
    opening.await.map(AnyBroker::new).map_err(|error| Error::mistake(error.into()))
}
