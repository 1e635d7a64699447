//! Calling services, over the network or in the same process.
//!
//! A [`Channel`] leads to one target and is shared by every generated client of it. The stack of a
//! call, outside in: span and metrics → deadline (the caller's, or the method's) → attempts, within a
//! budget → throttle → pick an instance → span of the attempt, context into the headers → connection.
//! A call to a service of the same process skips everything from the attempts on, and encodes nothing.

mod attempt;
mod attempts;
mod calling;
mod channel;
mod compression;
mod error;
mod exchange;
mod instance;
mod local;
mod log;
mod metrics;
mod policy;
mod pool;
mod remote;
mod report;
mod transport;

pub use antiphon_discovery::{Discovery, InvalidTarget, Target};
pub use channel::{Channel, Wire};
pub use error::{CallError, FailedAttempt};
pub use local::local;
pub use policy::{MethodSettings, MethodTable, PolicyValue};
pub use report::{InstanceReport, MethodReport, TargetReport, targets};

use std::time::Duration;

use antiphon_resilience::balance::BalanceSettings;
use antiphon_resilience::{
    BudgetSettings, BulkheadSettings, EjectionSettings, HedgeSettings, RetryPolicy,
    ThrottleSettings,
};

use crate::service::{Service, ServiceInfo};

/// A generated client.
pub trait Client: Sized {
    /// The full name of the service that it calls.
    const SERVICE: &'static str;
    /// The service that it calls, as the contract declares it.
    fn info() -> &'static ServiceInfo;
    /// A client that calls over `channel`.
    fn over(channel: Channel) -> Self;
}

/// A generated server, which can also be called from inside the process.
pub trait Hosted: Service {
    /// A channel to its handlers that encodes nothing.
    fn channel(&self) -> Channel;
}

/// How calls over a [`Channel`] are made.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientSettings {
    /// How long a connection may take to be made, all addresses of the instance together. They are
    /// tried in the order of the resolver, a quarter of a second apart; the first to answer is taken.
    pub connect_timeout: Duration,
    /// The most connections to one instance; another one is made when the open ones carry four fifths
    /// of the calls that the server allows on each.
    pub connections_max: usize,
    /// When nobody called the target for this long its connections are closed, those of all instances
    /// together: as long as it is called each is there, also one that has had no call for long.
    pub idle_timeout: Duration,
    /// How often an idle connection with open calls is asked whether it still lives. To a server that
    /// ends a connection because of that (`ENHANCE_YOUR_CALM`; by default grpc-go and grpcio allow one
    /// such question in five minutes) the next connections ask half as often.
    pub keep_alive_interval: Duration,
    /// How long the answer to that may take.
    pub keep_alive_timeout: Duration,
    /// The time a call may take when neither the caller nor the contract says.
    pub timeout: Duration,
    /// Whether calls wait until an instance can be connected to, instead of failing at once where
    /// none can.
    pub wait_for_ready: bool,
    /// The largest answer, in bytes.
    pub message_bytes_max: usize,
    /// How many instances this client connects to at most; where there are more, each client has
    /// some of them. `None` for all.
    pub subset_size: Option<usize>,
    /// Which instance takes a call.
    pub balance: BalanceSettings,
    /// When an instance that fails is set aside.
    pub ejection: EjectionSettings,
    /// When a call is tried again.
    pub retry: RetryPolicy,
    /// How many calls may be tried again.
    pub budget: BudgetSettings,
    /// When a second attempt begins beside the first, for methods that allow it.
    pub hedge: HedgeSettings,
    /// How many calls may be in progress and wait.
    pub bulkhead: BulkheadSettings,
    /// When calls are held back because most of the last ones failed.
    pub throttle: ThrottleSettings,
    /// What differs for single methods.
    pub methods: MethodTable,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            connections_max: 4,
            idle_timeout: Duration::from_secs(300),
            keep_alive_interval: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(10),
            wait_for_ready: false,
            message_bytes_max: 4 * 1024 * 1024,
            subset_size: None,
            balance: BalanceSettings::default(),
            ejection: EjectionSettings::default(),
            retry: RetryPolicy::default(),
            budget: BudgetSettings::RETRY,
            hedge: HedgeSettings::default(),
            bulkhead: BulkheadSettings::default(),
            throttle: ThrottleSettings::default(),
            methods: MethodTable::new(),
        }
    }
}
