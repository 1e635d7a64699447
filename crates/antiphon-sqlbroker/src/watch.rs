//! Looks for what other processes have committed, for databases that do not say.
//!
//! A look costs a round trip, so the pause between two looks doubles while there is nothing to see.
//! A bell makes it look at once, and soon again if what it rang for is not to be seen yet.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use antiphon_core::Timestamp;
use tokio::sync::Notify;

use crate::core::Core;
use crate::log::{Look, Sight};

const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// After a bell that rang for nothing.
const PAUSE_RUNG: Duration = Duration::from_millis(1);

/// How long to wait after a look.
fn pause(last: Duration, rung: bool, found: bool) -> Duration {
    match (rung, found) {
        (_, true) => PAUSE_MIN,
        (true, false) => PAUSE_RUNG,
        (false, false) => (last * 2).min(PAUSE_MAX),
    }
}

/// Looks until the broker is gone.
pub(crate) async fn run<L: Look>(core: Weak<Core<L>>, bell: Arc<Notify>) {
    let mut last = Last::default();
    let mut wait = PAUSE_MIN;
    loop {
        let rung = tokio::time::timeout(wait, bell.notified()).await.is_ok();
        let Some(core) = core.upgrade() else { return };
        let found = match core.log.look().await {
            Ok(sight) => last.act_on(&core, sight),
            Err(failure) => {
                tracing::debug!(%failure, "nothing was seen of other processes");
                false
            }
        };
        wait = pause(wait, rung, found);
    }
}

/// What was seen by the look before.
#[derive(Default)]
struct Last {
    stirred: HashMap<i64, i64>,
    due: Option<Timestamp>,
}

impl Last {
    /// Wakes those whom it concerns; answers whether there was anything new.
    fn act_on<L: Look>(&mut self, core: &Core<L>, sight: Sight) -> bool {
        let grown = core.unseen(sight.heads);
        if !grown.is_empty() {
            core.grown(&grown);
        }
        let mut regrouped = false;
        for (group, stirred) in sight.stirred {
            if self.stirred.insert(group, stirred).is_some_and(|before| before != stirred) {
                regrouped = true;
                core.regrouped_elsewhere(group, "");
            }
        }
        if !grown.is_empty() || regrouped || sight.due != self.due {
            self.due = sight.due;
            core.keep_house();
        }
        !grown.is_empty() || regrouped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_until_something_is_found_or_the_bell_rings() {
        let mut pauses = Vec::new();
        let mut last = PAUSE_MIN;
        for (rung, found) in [
            (false, false),
            (false, false),
            (false, true),
            (true, false),
            (false, false),
            (false, false),
            (false, false),
            (true, true),
        ] {
            last = pause(last, rung, found);
            pauses.push(last.as_millis());
        }
        assert_eq!(pauses, [10, 20, 5, 1, 2, 4, 8, 5]);
        assert_eq!(pause(PAUSE_MAX, false, false), PAUSE_MAX);
    }
}
