//! The instances of a service: one, and all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Authority;

/// Whether an instance wants calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It takes calls.
    #[default]
    Serving,
    /// It finishes what it has and takes nothing new: it will be gone soon.
    Draining,
}

/// One running process of a service.
///
/// Its address is its identity: an instance that goes and comes back is the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Where it answers.
    pub address: Authority,
    /// Its share of the calls, relative to the others; at least 1.
    pub weight: u32,
    /// Instances with a higher number get calls only when those with lower ones cannot take them.
    pub priority: u16,
    /// Where it is, for callers who prefer what is near.
    pub zone: Option<String>,
    /// What else is to be known of it. Registries are no place for secrets or for much: a few short
    /// values.
    pub metadata: BTreeMap<String, String>,
    /// Whether it wants calls.
    pub state: State,
}

impl Instance {
    /// An instance at this address, with weight 1 and without anything else.
    #[must_use]
    pub const fn new(address: Authority) -> Self {
        Self {
            address,
            weight: 1,
            priority: 0,
            zone: None,
            metadata: BTreeMap::new(),
            state: State::Serving,
        }
    }
}

/// All instances of a service that callers may use, as of one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Grows by one with every change; 0 before the first answer.
    pub version: u64,
    /// Ordered by address, each address once.
    pub instances: Arc<[Instance]>,
}

impl Snapshot {
    /// Nothing is known yet.
    pub(crate) fn unknown() -> Self {
        Self { version: 0, instances: Arc::new([]) }
    }

    /// Whether there was an answer; without one an empty set says nothing.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.version > 0
    }
}
