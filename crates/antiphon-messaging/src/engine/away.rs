//! Keys that the broker holds, because one of their messages waits there for its retry.
//!
//! The broker delivers nothing of such a key before the retry is due. What it had handed out before
//! it knew must not run ahead: it goes back. Once the wait is over the key is forgotten here, since
//! its messages may come to any consumer of the group.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::executor::{Key, KeyMap};
use crate::message::Message;

/// How many keys are kept before those whose time has come are looked for.
const SWEEP_AT: usize = 256;

/// See the module.
#[derive(Debug)]
pub(crate) struct AwayKeys {
    until: KeyMap<Instant>,
    sweep_at: usize,
}

impl AwayKeys {
    pub(crate) fn new() -> Self {
        Self {
            until: KeyMap::default(),
            sweep_at: SWEEP_AT,
        }
    }

    /// Notes that the key of this message is held until `after` from `now`.
    pub(crate) fn note(&mut self, message: &Arc<Message>, now: Instant, after: Duration) {
        let Some(key) = Key::of(message) else { return };
        if self.until.len() >= self.sweep_at {
            self.until.retain(|_, until| *until > now);
            self.sweep_at = (self.until.len() * 2).max(SWEEP_AT);
        }
        self.until.insert(key, now + after);
    }

    /// Whether this message must go back, since an earlier one of its key waits at the broker.
    pub(crate) fn holds(&mut self, message: &Arc<Message>, now: Instant) -> bool {
        if self.until.is_empty() {
            return false;
        }
        let Some(key) = Key::of(message) else {
            return false;
        };
        match self.until.get(&key) {
            Some(until) if *until > now => true,
            Some(_) => {
                self.until.remove(&key);
                false
            }
            None => false,
        }
    }

    /// How many keys are held, including some whose time has come.
    pub(crate) fn len(&self) -> usize {
        self.until.len()
    }
}
