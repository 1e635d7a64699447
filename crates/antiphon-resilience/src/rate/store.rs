//! The port: where instances share what their rate limits let in.

use std::time::Duration;

use antiphon_core::{BoxError, BoxFuture};

use super::RateSettings;

/// Where instances share what their rate limits let in. What every store promises:
///
/// 1. Whoever asks, and however many at once: of one key no more is granted than one
///    [`RateLimit`](super::RateLimit) would let in, by the store's own clock. The clocks of those who
///    ask do not matter.
/// 2. A batch is granted as far as it fits.
/// 3. Keys are apart, whatever bytes they are made of.
/// 4. What a key has used up is not changed by another rate: it counts by the new one from then on,
///    and no more of it than that one could have let in.
/// 5. Keys that are as good as new are forgotten.
///
/// A store that cannot be asked fails at once, and comes back by itself.
pub trait RateStore: Send + Sync + 'static {
    /// Takes up to `wanted` calls of what `key` may have.
    ///
    /// # Errors
    /// The store is away, or refuses. Nothing may have been taken, or all of it.
    ///
    /// # Cancel safety
    /// When the future is dropped, nothing may have been taken, or all of it.
    fn take<'a>(
        &'a self,
        key: &'a [u8],
        rate: RateSettings,
        wanted: u32,
    ) -> BoxFuture<'a, Result<Taken, BoxError>>;
}

/// What a store grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// So many calls, of those that were wanted.
    pub granted: u32,
    /// The time after which one more would be granted; zero where one would be now.
    pub wait: Duration,
}
