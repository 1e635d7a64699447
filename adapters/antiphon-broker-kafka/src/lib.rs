//! The broker on Apache Kafka.
//!
//! Topics are topics, groups are groups, lanes are partitions. Kafka remembers one number per
//! partition and group; what it does not do — settling one by one, retries, holding back a key — is
//! done by the members, and written down with that number, so that it is as durable.
//!
//! * [`Settings`]: how the cluster is reached and used; `address`: its URL.
//! * `cluster`, `topology`, `offsets`, `names`: questions to the cluster, and what must exist in it.
//! * `publish`, `producer`, `record`: messages on their way in.
//! * `source`, `settle`: a member's end of a group; `poller`, `committer`, `rebalance`: its threads
//!   that talk to Kafka; `member`, `lane`, `flights`: what it holds.
//! * `frontier`, `progress`: how far a partition is handled, and how that is written down.
//! * `inbox`: answers. `operate`, `findings`: what operators ask.

mod address;
mod broker;
mod cluster;
mod committer;
mod context;
mod error;
mod findings;
mod flights;
mod frontier;
mod inbox;
mod lane;
mod member;
mod names;
mod offsets;
mod operate;
mod poller;
mod producer;
mod progress;
mod publish;
mod rebalance;
mod record;
mod settings;
mod settle;
mod source;
mod topology;

pub use broker::KafkaBroker;
pub use error::OpenError;
pub use settings::{Compression, Mechanism, Settings};
