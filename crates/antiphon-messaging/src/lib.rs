//! Messages between services: the ports that a broker implements, the envelope, and the engine that
//! consumes.
//!
//! Layers, from the user inwards: typed handlers ([`Event`], [`Command`]) → middleware around a
//! [`Handler`] → the engine (credits, one handler at a time per key, the retry ladder, parking, dead
//! letters) → the ports ([`Broker`], [`Source`]) → an adapter crate.

mod any_broker;
mod consumer;
mod contract;
mod engine;
pub mod envelope;
mod fail;
mod handler;
mod lane;
pub mod lane_queue;
mod message;
mod metrics;
mod port;
mod redrive;
mod requests;
pub mod row;
mod worker;

pub use any_broker::AnyBroker;
pub use consumer::{Consumer, ConsumerError, Messaging};
pub use contract::{Command, Event, Payload};
pub use fail::Fail;
pub use handler::{Handle, Handler, Incoming, Middleware};
pub use lane::{LANES, Shift, lane_of, shift};
pub use message::Message;
pub use port::{
    Broker, Capabilities, Dead, DeadError, DeadFilter, DeadLetter, DeadLetters, DeadReason,
    Delivery, Durability, Fetched, Group, GroupState, Inbox, Operate, OperateError, PublishError,
    PublishErrorKind, Receipt, Sent, Settle, Settled, Settlement, Settling, Source, Start,
    SubscribeError, Subscription, TopicState, Topology, settle_all,
};
pub use redrive::{Redrive, Redriven};
pub use requests::{Answer, AnswerDesk, Requests};
pub use worker::Worker;
