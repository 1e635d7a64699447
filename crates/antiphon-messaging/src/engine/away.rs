//! Keys that the broker holds, because one of their messages waits there for its retry.
//!
//! The broker delivers nothing of such a key before the retry is due. What it had handed out before
//! it knew must not run ahead: it goes back, for as long. Once the wait is over the key is forgotten
//! here, since its messages may come to any consumer of the group; and also when the very message
//! that was sent back comes again, since then the broker never heard that it should wait.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::MessageId;
use tokio::time::Instant;

use super::executor::{Key, KeyMap};
use crate::message::Message;

/// How many keys are kept before those whose time has come are looked for.
const SWEEP_AT: usize = 256;

/// See the module.
#[derive(Debug)]
pub(crate) struct AwayKeys {
    /// The message that waits, and until when.
    until: KeyMap<(MessageId, Instant)>,
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
            self.until.retain(|_, (_, until)| *until > now);
            self.sweep_at = (self.until.len() * 2).max(SWEEP_AT);
        }
        self.until.insert(key, (message.id, now + after));
    }

    /// For how long this message must go back, since an earlier one of its key waits at the broker.
    pub(crate) fn holds(&mut self, message: &Arc<Message>, now: Instant) -> Option<Duration> {
        if self.until.is_empty() {
            return None;
        }
        let key = Key::of(message)?;
        let (waiting, until) = *self.until.get(&key)?;
        if until <= now || waiting == message.id {
            self.until.remove(&key);
            return None;
        }
        Some(until - now)
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
        assert_eq!(away.holds(&message("a"), now), Some(Duration::from_secs(1)));
        assert_eq!(away.holds(&message("b"), now), None);
        assert_eq!(away.holds(&message(""), now), None);
        assert_eq!(away.holds(&message("a"), now + Duration::from_secs(1)), None);
        assert_eq!(away.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_comes_again_early_is_not_waiting() {
        let mut away = AwayKeys::new();
        let now = Instant::now();
        let first = message("a");
        away.note(&first, now, Duration::from_secs(1));
        assert_eq!(away.holds(&first, now), None);
        assert_eq!(away.holds(&message("a"), now), None, "and no longer holds up its key");
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
