//! Dead letters of a group, and the operator's view of them.

use antiphon_core::{BoxFuture, MessageId, Timestamp};
use antiphon_messaging::{
    Dead, DeadError, DeadFilter, DeadLetter, DeadLetters, DeadReason, Message,
};
use std::sync::Arc;

use crate::broker::MemoryBroker;
use crate::group::Group;

/// A dead letter, or the history of one that was redriven and is not handled yet.
pub(crate) struct Letter {
    message: Arc<Message>,
    deaths: Vec<Dead>,
    redriven: bool,
}

impl Group {
    pub(crate) fn bury(&mut self, message: &Arc<Message>, reason: DeadReason, at: Timestamp) {
        let letter = self.letters.entry(message.id).or_insert_with(|| Letter {
            message: Arc::clone(message),
            deaths: Vec::new(),
            redriven: false,
        });
        letter.redriven = false;
        letter.deaths.push(Dead {
            code: reason.code.to_owned(),
            error: reason.error,
            attempts: reason.attempts,
            at,
        });
    }

    /// The message is handled: its history is over.
    pub(crate) fn forget_redriven(&mut self, id: MessageId) {
        if !self.letters.is_empty() && self.letters.get(&id).is_some_and(|letter| letter.redriven) {
            self.letters.remove(&id);
        }
    }

    fn letter(&self, id: MessageId) -> Option<DeadLetter> {
        let letter = self.letters.get(&id).filter(|letter| !letter.redriven)?;
        Some(DeadLetter {
            group: self.name.clone(),
            message: (*letter.message).clone(),
            deaths: letter.deaths.clone(),
        })
    }
}

impl MemoryBroker {
    fn list_now(
        &self,
        filter: &DeadFilter,
        after: Option<(&str, MessageId)>,
        count_max: usize,
    ) -> Vec<DeadLetter> {
        let state = self.0.state.lock();
        state
            .groups()
            .flat_map(|group| group.letters.keys().filter_map(|id| group.letter(*id)))
            .filter(|letter| {
                let at = (letter.group.as_str(), letter.message.id);
                after.is_none_or(|after| at > after) && filter.matches(letter)
            })
            .take(count_max)
            .collect()
    }

    fn redrive_now(&self, group: &str, ids: &[MessageId]) -> usize {
        let mut state = self.0.state.lock();
        let mut count = 0;
        for id in ids {
            let sequence = state.next_sequence();
            let Some(group) = state.group_named(group) else {
                return count;
            };
            let Some(letter) = group.letters.get_mut(id) else {
                continue;
            };
            if letter.redriven {
                continue;
            }
            letter.redriven = true;
            let message = Arc::clone(&letter.message);
            group.add(sequence, message);
            count += 1;
        }
        if let Some(group) = state.group_named(group) {
            group.wake();
        }
        count
    }

    fn discard_now(&self, group: &str, ids: &[MessageId]) -> usize {
        let mut state = self.0.state.lock();
        let Some(group) = state.group_named(group) else {
            return 0;
        };
        let before = group.letters.len();
        for id in ids {
            if group.letters.get(id).is_some_and(|letter| !letter.redriven) {
                group.letters.remove(id);
            }
        }
        before - group.letters.len()
    }
}

/// Everything is at hand, so nothing fails and nothing waits.
fn ready<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, Result<T, DeadError>> {
    Box::pin(std::future::ready(Ok(value)))
}

impl DeadLetters for MemoryBroker {
    fn list<'a>(
        &'a self,
        filter: &'a DeadFilter,
        after: Option<(&'a str, MessageId)>,
        count_max: usize,
    ) -> BoxFuture<'a, Result<Vec<DeadLetter>, DeadError>> {
        ready(self.list_now(filter, after, count_max))
    }

    fn bury<'a>(
        &'a self,
        group: &'a str,
        message: &'a Message,
        reason: &'a DeadReason,
    ) -> BoxFuture<'a, Result<(), DeadError>> {
        let at = self.0.clock.now();
        let mut state = self.0.state.lock();
        let buried = match state.group_named(group) {
            Some(group) => {
                group.bury(&Arc::new(message.clone()), reason.clone(), at);
                Ok(())
            }
            None => Err(DeadError {
                action: "burying",
                source: format!("group {group} is not declared").into(),
            }),
        };
        Box::pin(std::future::ready(buried))
    }

    fn get<'a>(
        &'a self,
        group: &'a str,
        id: MessageId,
    ) -> BoxFuture<'a, Result<Option<DeadLetter>, DeadError>> {
        let mut state = self.0.state.lock();
        ready(state.group_named(group).and_then(|group| group.letter(id)))
    }

    fn redrive<'a>(
        &'a self,
        group: &'a str,
        ids: &'a [MessageId],
    ) -> BoxFuture<'a, Result<usize, DeadError>> {
        ready(self.redrive_now(group, ids))
    }

    fn discard<'a>(
        &'a self,
        group: &'a str,
        ids: &'a [MessageId],
    ) -> BoxFuture<'a, Result<usize, DeadError>> {
        ready(self.discard_now(group, ids))
    }
}
