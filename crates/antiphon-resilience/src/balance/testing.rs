//! Instances for tests.

use tokio::time::Instant;

use super::{Candidate, EwmaSettings, Load, Standing};

#[derive(Debug)]
pub(super) struct Instance {
    id: String,
    load: Load,
    pub(super) weight: u32,
    pub(super) zone: Option<&'static str>,
}

impl Instance {
    /// One that has become ready at `now`.
    pub(super) fn ready(id: impl Into<String>, now: Instant) -> Self {
        let load = Load::new(&EwmaSettings::default(), now);
        load.set_standing(Standing::Ready, now);
        Self { id: id.into(), load, weight: 1, zone: None }
    }
}

impl Candidate for Instance {
    fn load(&self) -> &Load {
        &self.load
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn weight(&self) -> u32 {
        self.weight
    }

    fn zone(&self) -> Option<&str> {
        self.zone
    }
}
