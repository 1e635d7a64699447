//! Where the server's rate limits are shared.

use antiphon_config::Settings;
use antiphon_rpc::server::RateSharing;

use crate::error::{Error, Result};
use crate::settings::{ServerSection, SharedRatesSection};

/// Begins to connect to the store that the settings name, if a limit is shared. A server that is away
/// keeps nobody from starting: the limits are kept by each instance until it is there.
///
/// # Errors
/// The settings make no sense, or name what this program was built without.
pub(super) fn sharing(section: &ServerSection, settings: &Settings) -> Result<Option<RateSharing>> {
    let shared = &section.shared_rates;
    let Some(url) = shared.url.as_ref().filter(|_| section.shares_rates()) else {
        return Ok(None);
    };
    let sharing = open(url.text(), shared).map_err(|error| {
        error.placed(settings, |setting| match setting {
            "url" => "server.shared_rates.url".to_owned(),
            other => format!("server.shared_rates.redis.{other}"),
        })
    });
    sharing.map(Some)
}

#[cfg(feature = "redis")]
fn open(url: &str, section: &SharedRatesSection) -> Result<RateSharing> {
    use std::sync::Arc;

    let settings = antiphon_rates_redis::Settings { url: url.to_owned(), ..section.redis.clone() };
    match antiphon_rates_redis::RedisRates::start(&settings) {
        Ok(store) => Ok(RateSharing::new(Arc::new(store), section.timeout.0.0)),
        Err(error) => Err(Error::mistake(error)),
    }
}

#[cfg(not(feature = "redis"))]
fn open(_: &str, _: &SharedRatesSection) -> Result<RateSharing> {
    Err(Error::mistake(
        "server.shared_rates.url names Redis, and this program was built without it: build it with the \
         feature `redis` of the crate `antiphon`",
    ))
}
