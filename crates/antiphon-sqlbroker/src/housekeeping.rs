//! What nobody waits for: delayed messages that are due move to the log, what every group has
//! handled is removed from its beginning, and so are answers that nobody has taken.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use antiphon_core::Timestamp;

use crate::answers;
use crate::change::{Change, Outcome};
use crate::core::Core;
use crate::log::Log;

/// How often there is a look, at most and, while delayed messages wait, at least.
const EVERY: Duration = Duration::from_millis(50);
/// How often logs are trimmed.
const TRIM_EVERY: u32 = 10;

/// Keeps house until the broker is gone.
pub(crate) async fn run<L: Log>(core: Weak<Core<L>>) {
    let mut next_due: Option<Timestamp> = None;
    let mut untrimmed = 0;
    loop {
        let Some(strong) = core.upgrade() else { return };
        let changed = strong.changed.swap(false, Ordering::AcqRel);
        if changed || next_due.is_some_and(|due| due <= strong.now()) {
            next_due = move_due(&strong).await;
        }
        untrimmed += u32::from(changed || untrimmed > 0);
        if untrimmed > TRIM_EVERY {
            untrimmed = 0;
            while trim(&strong).await {}
        }
        answers::forget(&strong).await;
        let waits = next_due.is_some() || untrimmed > 0;
        let housekeeping = Arc::downgrade(&strong);
        drop(strong);
        if !waits {
            wait(&housekeeping).await;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Waits until something has changed, or the broker is gone.
async fn wait<L: Log>(core: &Weak<Core<L>>) {
    const LOOK_EVERY: Duration = Duration::from_millis(500);
    while let Some(core) = core.upgrade() {
        if core.changed.load(Ordering::Acquire) || core.inboxes.laid.lock().is_some() {
            return;
        }
        drop(tokio::time::timeout(LOOK_EVERY, core.housekeeping.notified()).await);
    }
}

/// Moves what is due, and answers when the next one is.
async fn move_due<L: Log>(core: &Arc<Core<L>>) -> Option<Timestamp> {
    let first = match core.log.first_due().await {
        Ok(first) => first?,
        Err(failure) => {
            tracing::warn!(%failure, "delayed messages were not read; trying again");
            return Some(core.now() + Duration::from_millis(500));
        }
    };
    let now = core.now();
    if first > now {
        return Some(first);
    }
    let told = Arc::downgrade(core);
    let moved = core.write(Change::MoveDue { now }, move |outcome| {
        if let (Ok(Outcome::Published(topics)), Some(core)) = (outcome, told.upgrade()) {
            core.published(topics);
        }
    });
    if let Err(failure) = moved.get().await {
        tracing::warn!(%failure, "delayed messages were not moved; trying again");
    }
    // Whatever is left is found by the next look.
    Some(first)
}

/// Removes some of what every group has handled; answers whether there is more.
async fn trim<L: Log>(core: &Core<L>) -> bool {
    if !core.log.is_removable().await.unwrap_or(false) {
        return false;
    }
    match core.write(Change::Trim, |_| {}).get().await {
        Ok(Outcome::More(more)) => more,
        Ok(_) => false,
        Err(failure) => {
            tracing::warn!(%failure, "handled messages were not removed; trying again later");
            false
        }
    }
}
