//! A read-through cache in two levels: memory, and if wanted one that processes share.
//!
//! ```
//! use antiphon_cache::{Cache, CacheSettings};
//! use antiphon_core::Status;
//! use antiphon_telemetry::Telemetry;
//!
//! # #[derive(Debug, PartialEq)]
//! # struct Stock { on_hand: u32 }
//! # async fn read_stock(sku: String) -> Result<Option<Stock>, Status> {
//! #     Ok((sku == "book").then_some(Stock { on_hand: 3 }))
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cache: Cache<String, Stock> = Cache::builder("stock")
//!     .settings(CacheSettings::default()) // or the section `[cache.stock]`
//!     .build(&Telemetry::new())?;
//!
//! let sku = "book".to_owned();
//! let stock = cache.get("book", move || read_stock(sku)).await?;
//! assert_eq!(stock.as_deref(), Some(&Stock { on_hand: 3 }));
//!
//! cache.invalidate("book").await?; // in the handler of the event that says that it changed
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//!
//! * **One load per key at a time**, in each process. It goes on when who began it gives up. When it is
//!   lost — it panicked, its runtime ended — one of those who wait loads again; when that is lost, too,
//!   all of them get an error. An error reaches all who waited and is not kept.
//! * **No old value after an invalidation.** What began to load before it is not stored after it: not
//!   in memory, and not in the shared level by whatever process. Those who waited from before it may
//!   still get it.
//! * **An old value rather than none**, within bounds: it is served while a new one is loaded
//!   (`stale_while_revalidate`) and when that fails (`stale_if_error`). Never after an invalidation.
//! * **What does not exist costs little.** That there is no value is kept for `negative_ttl`; and a
//!   [`KeyFilter`] of the keys that exist stops most of the others before the source.
//! * **The cache is no reason to fail.** When the shared level is away or slow, memory and source go on
//!   after a bounded wait. Only [`Cache::invalidate`] says so, since there it matters.
//! * **Bounded**: entries, bytes, loads at a time, time of a load.
//!
//! # Two levels, several processes
//!
//! Behind memory there may be a level that the processes of a service share ([`SharedLevel`], by an
//! adapter). An invalidation by any of them reaches the memory of all of them through it, so it is
//! enough that one instance of a group handles the event. Without that level each process must hear of
//! each change itself, or `ttl` is how old a value may be.
//!
//! A process that lost its connection to the shared level forgets what it has in memory when the
//! connection is back. Until then values may be old, by no more than `ttl` and the windows after it,
//! and the filter lets every key pass: any may have come to exist.

mod cache;
mod codec;
mod filter;
mod flight;
mod freshness;
mod keeper;
mod metrics;
mod settings;
mod shared;

pub use cache::{Builder, Cache, LastWords};
pub use codec::{Codec, Json, Protobuf};
pub use filter::{KeyFilter, Rebuild};
pub use keeper::FilterKeeper;
pub use settings::CacheSettings;
pub use shared::{Age, Found, Lease, Listener, Record, SharedLevel};
