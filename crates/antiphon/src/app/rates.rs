//! Where the server's rate limits are shared.

use antiphon_rpc::server::RateSharing;

use crate::error::{Error, Result};
use crate::settings::{ServerSection, SharedRatesSection};

/// Begins to connect to the store that the settings name, if a limit is shared. A server that is away
/// keeps nobody from starting: the limits are kept by each instance until it is there.
///
/// # Errors
/// The settings make no sense, or name what this program was built without.
pub(super) fn sharing(section: &ServerSection) -> Result<Option<RateSharing>> {
    let shared = &section.shared_rates;
    match shared.url().map_err(Error::mistake)? {
        Some(url) if section.shares_rates() => open(url, shared).map(Some),
        _ => Ok(None),
    }
}

#[cfg(feature = "redis")]
fn open(url: &str, section: &SharedRatesSection) -> Result<RateSharing> {
    use std::sync::Arc;

    let settings = antiphon_rates_redis::Settings { url: url.to_owned(), ..section.redis.clone() };
    match antiphon_rates_redis::RedisRates::start(&settings) {
        Ok(store) => Ok(RateSharing::new(Arc::new(store), section.timeout.0.0)),
        Err(error) => Err(Error::mistake(format!("server.shared_rates: {}", Error::from(error)))),
    }
}

#[cfg(not(feature = "redis"))]
fn open(_: &str, _: &SharedRatesSection) -> Result<RateSharing> {
    Err(Error::mistake(
        "server.shared_rates.url names Redis, and this program was built without it: build it with the \
         feature `redis` of the crate `antiphon`",
    ))
}
