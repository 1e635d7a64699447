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
        Self { until: KeyMap::default(), sweep_at: SWEEP_AT }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use antiphon_core::{MessageId, Timestamp};

    use super::*;

    fn message(key: &str) -> Arc<Message> {
        Arc::new(Message {
            id: MessageId::new(Timestamp::EPOCH),
            topic: String::new(),
            kind: String::new(),
            source: String::new(),
            key: key.to_owned(),
            time: Timestamp::EPOCH,
            not_before: None,
            attributes: BTreeMap::new(),
            body: bytes::Bytes::new(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_held_until_its_time_has_come_and_no_other_is() {
        let mut away = AwayKeys::new();
        let now = Instant::now();
        away.note(&message("a"), now, Duration::from_secs(1));
        assert!(away.holds(&message("a"), now));
        assert!(!away.holds(&message("b"), now));
        assert!(!away.holds(&message(""), now));
        assert!(!away.holds(&message("a"), now + Duration::from_secs(1)));
        assert_eq!(away.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn keys_whose_time_has_come_do_not_pile_up() {
        let mut away = AwayKeys::new();
        let begun = Instant::now();
        for n in 0..10_000_u32 {
            let now = begun + Duration::from_millis(u64::from(n));
            away.note(&message(&n.to_string()), now, Duration::from_millis(50));
            assert!(away.len() <= SWEEP_AT + 1, "{}", away.len());
        }
    }
}
