//! What operators ask of a broker.

use antiphon_core::{BoxError, BoxFuture, Finding};

/// A topic as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicState {
    /// The name.
    pub name: String,
    /// How many messages the broker keeps of it; `None` where it cannot say.
    pub messages: Option<u64>,
}

/// A group as it is now. What the broker cannot say is `None`, never zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// The name.
    pub name: String,
    /// What it reads.
    pub topics: Vec<String>,
    /// How many consumers are in it.
    pub members: Option<u32>,
    /// How many messages it has not handled: not delivered yet, or delivered and not settled.
    pub lag: Option<u64>,
    /// How many of them wait for a retry at the broker.
    pub waiting: Option<u64>,
}

/// The broker could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("{action} failed")]
pub struct OperateError {
    /// What was attempted.
    pub action: &'static str,
    /// The cause.
    #[source]
    pub source: BoxError,
}

/// The operator's view of a broker.
///
/// 1. Nothing that is asked here changes anything.
/// 2. `topics` and `groups` are ordered by name, and know every topic and group that was declared,
///    whether or not a consumer is there; counts may be moments old.
/// 3. `findings` answers also when the broker cannot be reached: that is what it then says. It looks
///    at the version, at what the settings promise against what the server can do, and at what
///    decides whether a confirmed message survives.
pub trait Operate: Send + Sync + 'static {
    /// Every topic.
    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicState>, OperateError>>;

    /// Every group.
    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupState>, OperateError>>;

    /// What a person should know of the server and its settings.
    fn findings(&self) -> BoxFuture<'_, Vec<Finding>>;
}
