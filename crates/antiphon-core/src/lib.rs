//! The words every Antiphon crate shares.
//!
//! Nothing here knows HTTP, protobuf, a broker or a database. What is here is small, changes rarely,
//! and is named as in the glossary: [`Context`] travels with the work, [`Status`] is how work fails,
//! [`Retry`] says whether trying again makes sense, [`Priority`] which calls go first,
//! [`Clock`] and [`Shutdown`] make time and the end
//! of the process parameters instead of globals, [`Component`] is what an application starts and
//! drains, [`Health`] is what it answers when asked how it is.

pub mod clock;
pub mod component;
pub mod context;
pub mod finding;
pub mod health;
pub mod id;
pub mod priority;
pub mod retry;
pub mod shutdown;
pub mod status;

pub use clock::{Clock, Timestamp};
pub use component::{Component, Stage};
pub use context::{Carrier, CarrierMut, Context, Deadline, SpanId, TraceContext, TraceId};
pub use finding::{Finding, Severity};
pub use health::Health;
pub use id::MessageId;
pub use priority::Priority;
pub use retry::{Retry, RetryPolicy};
pub use shutdown::{Shutdown, ShutdownHandle};
pub use status::{Code, FieldViolation, Status};

/// Any error, when only its text and its chain of sources matter.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A boxed future, for the places where several kinds of work stand in one list.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
