//! Opening the broker that the settings name, and what keeps for it what it cannot keep itself.

use antiphon_broker_memory::MemoryBroker;
use antiphon_core::Clock;
use antiphon_messaging::AnyBroker;
use antiphon_store_sqlite::SqliteBroker;

use crate::error::{Error, Result};
use crate::settings::{BrokerSection, Carrier, DatabaseSettings};

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
pub(crate) async fn open(
    section: &BrokerSection,
    databases: &DatabaseSettings,
) -> Result<Carriers> {
    let location = match &section.url {
        Some(url) => url.text().to_owned(),
        None => databases.dir.join("broker.db").to_string_lossy().into_owned(),
    };
    let broker = open_one(&location, section, databases).await?;
    if broker.capabilities().dead_letters {
        return Ok(Carriers { broker, parking: None });
    }
    let location = match &section.parking {
        Some(parking) => parking.text().to_owned(),
        None => databases.location("broker"),
    };
    let parking = open_one(&location, section, databases).await?;
    if !parking.capabilities().dead_letters {
        return Err(Error::mistake(
            "broker.parking names a broker that keeps no dead letters itself; name a SQL database",
        ));
    }
    Ok(Carriers { broker, parking: Some(parking) })
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

async fn open_server(
    carrier: Carrier,
    _location: &str,
    _section: &BrokerSection,
    _databases: &DatabaseSettings,
) -> Result<AnyBroker> {
    match carrier {
        other => {
            let feature = other.feature().unwrap_or_default();
            Err(Error::mistake(format!(
                "broker.url names {other:?}, and this program was built without it: build it with \
                 the feature `{feature}` of the crate `antiphon`"
            )))
        }
    }
}
