//! The SQL broker without the SQL: topics, groups and dead letters over a database that several
//! processes share.
//!
//! * A topic is a log; publishing adds rows at its end, several publishers' in one transaction
//!   (`publish`, and the database's writer).
//! * The keys of a topic are divided into lanes. The members of a group share out the lanes by
//!   leases (`keeper`); each reads the log by itself, keeps in memory what is in hand (`share`), and
//!   writes its progress down every few milliseconds. No row is changed to claim or settle it.
//! * What comes again later waits in a table of its own (`waiting`); so do delayed messages
//!   (`housekeeping`) and dead letters (`dead`).
//! * Answers to a process lie in a table until it has taken them (`answers`).
//!
//! A consumer that dies loses its leases after five seconds; its successor begins with what was not
//! settled in the last written progress, so messages whose settlement was not written come twice.
//!
//! A database implements [`Log`], the port of this crate, whose rules say what it promises. What
//! databases that are servers have in common besides is here too: the task that gathers changes
//! into transactions and connects again ([`server`]), and the one that looks for what other
//! processes have committed ([`SqlBroker::watch`]).

mod answers;
mod broker;
mod change;
mod core;
mod dead;
mod housekeeping;
mod keeper;
mod log;
mod member;
mod operate;
mod positions;
mod publish;
pub mod server;
mod settle;
mod share;
mod source;
mod waiting;
mod watch;

pub use self::broker::SqlBroker;
pub use self::change::{
    Beat, Change, Failure, Identity, Job, Outcome, Place, Progress, Row, Shared, Taken, Verdict,
    Written,
};
pub use self::core::{Ear, Heard};
pub use self::keeper::fair_share;
pub use self::log::{
    Broken, Found, Inheritance, Joinable, Log, Look, Ring, Sight, Topic, WaitingRow, Wanted,
};
pub use self::positions::{pack, unpack};
pub use self::publish::lane;
pub use self::share::{At, Ready, Scan};
