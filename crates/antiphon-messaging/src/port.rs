//! The ports that a broker adapter implements, and their rules. `antiphon-testing` has one test per
//! rule; every adapter runs them all.

mod broker;
mod dead;
mod delivery;
mod inbox;
mod operate;
mod source;

pub use broker::{
    Broker, Capabilities, Durability, Group, PublishError, PublishErrorKind, Receipt, Sent, Start,
    SubscribeError, Subscription, Topology,
};
pub use dead::{Dead, DeadError, DeadFilter, DeadLetter, DeadLetters, DeadReason};
pub use delivery::{Delivery, Settle, Settled, Settlement, Settling, settle_all};
pub use inbox::Inbox;
pub use operate::{GroupState, Operate, OperateError, TopicState};
pub use source::{Fetched, Source};
