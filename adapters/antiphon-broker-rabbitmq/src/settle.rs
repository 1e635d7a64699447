//! What becomes of deliveries.
//!
//! Acknowledgements are put in line at once and not waited for: losing one means one more delivery.
//! Where nothing below a tag is open any more, one acknowledgement stands for all up to it.

use futures_util::FutureExt;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions};

use antiphon_messaging::{Settle, Settled, Settlement, Settling};

use crate::held::{Held, State, Taken, split};

impl Settle for Held {
    fn settle(&self, token: u64, settlement: Settlement) -> Settling {
        let answer = self.settle_batch(vec![(token, settlement)]).pop();
        answer.unwrap_or(Settling::Done(Settled::Stale))
    }

    fn settle_batch(&self, batch: Vec<(u64, Settlement)>) -> Vec<Settling> {
        let mut state = self.lock();
        let mut acked: Vec<(u64, Vec<u64>)> = Vec::new();
        let mut answers = Vec::with_capacity(batch.len());
        for (token, settlement) in batch {
            let (serial, tag) = split(token);
            let settled = match open_in(&mut state, serial, tag) {
                None => Settled::Stale,
                Some(taken) if settlement == Settlement::Ack => {
                    taken.open.remove(&tag);
                    match acked.iter_mut().find(|(known, _)| *known == serial) {
                        Some((_, tags)) => tags.push(tag),
                        None => acked.push((serial, vec![tag])),
                    }
                    Settled::Sent
                }
                Some(taken) => {
                    self.give_back(taken, tag);
                    match settlement {
                        Settlement::Release => Settled::Sent,
                        Settlement::Retry { after, .. } if after.is_zero() => Settled::Confirmed,
                        // Neither a wait nor a dead letter is kept here.
                        _ => Settled::Stale,
                    }
                }
            };
            answers.push(Settling::Done(settled));
        }
        for (serial, tags) in acked {
            if let Some(taken) = state.queues.iter_mut().find(|taken| taken.serial == serial) {
                acknowledge(taken, tags);
            }
        }
        self.notice(&mut state);
        answers
    }
}

/// The queue in which a delivery is open, and in the reader's hands.
fn open_in(state: &mut State, serial: u64, tag: u64) -> Option<&mut Taken> {
    if state.end.is_some() {
        return None;
    }
    let taken = state.queues.iter_mut().find(|taken| taken.serial == serial)?;
    let held = taken.open.contains_key(&tag) && !taken.again.contains(&tag);
    (held && taken.channel.status().connected()).then_some(taken)
}

impl Held {
    /// Ordered: to the front of what this member hands out next. Else to the server, for whomever.
    fn give_back(&self, taken: &mut Taken, tag: u64) {
        if self.ordered {
            taken.again.insert(tag);
        } else {
            taken.open.remove(&tag);
            requeue(&taken.channel, tag);
        }
    }

    /// Tells the task, or the reader, what they wait for.
    fn notice(&self, state: &mut State) {
        let given_up = |taken: &Taken| taken.revoked_until.is_some() && taken.held() == 0;
        if state.closing || state.queues.iter().any(given_up) {
            self.changed.notify_one();
        }
        if state.queues.iter().any(|taken| !taken.again.is_empty()) {
            state.wake();
        }
    }
}

/// Acknowledges tags that are not open any more.
fn acknowledge(taken: &Taken, mut tags: Vec<u64>) {
    tags.sort_unstable();
    // With two consumers a lower tag may still lie in the buffer of the other one.
    let in_order = taken.consumers.len() == 1;
    let lowest_open = taken.open.first_key_value().map_or(u64::MAX, |(tag, _)| *tag);
    for (tag, multiple) in plan(&tags, lowest_open, in_order) {
        send(&taken.channel, tag, multiple);
    }
}

/// Which acknowledgements say that these tags, in ascending order, are settled.
fn plan(tags: &[u64], lowest_open: u64, in_order: bool) -> Vec<(u64, bool)> {
    let below = if in_order { tags.partition_point(|tag| *tag < lowest_open) } else { 0 };
    let together = tags[..below].last().map(|tag| (*tag, below > 1));
    together.into_iter().chain(tags[below..].iter().map(|tag| (*tag, false))).collect()
}

fn send(channel: &Channel, tag: u64, multiple: bool) {
    // The first poll puts it in line; what comes of it is of no use.
    if let Some(Err(error)) = channel.basic_ack(tag, BasicAckOptions { multiple }).now_or_never() {
        tracing::debug!(tag, %error, "not acknowledged: the message comes again");
    }
}

/// Gives a delivery back to the server.
pub(crate) fn requeue(channel: &Channel, tag: u64) {
    let options = BasicNackOptions { multiple: false, requeue: true };
    if let Some(Err(error)) = channel.basic_nack(tag, options).now_or_never() {
        tracing::debug!(tag, %error, "not given back: the message comes again with the others");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_acknowledgement_stands_for_all_below_the_lowest_open_tag() {
        assert_eq!(plan(&[1, 2, 3], u64::MAX, true), [(3, true)]);
        assert_eq!(plan(&[1, 2, 5, 6], 4, true), [(2, true), (5, false), (6, false)]);
        assert_eq!(plan(&[5, 6], 4, true), [(5, false), (6, false)]);
        assert_eq!(plan(&[3], u64::MAX, true), [(3, false)]);
        assert_eq!(plan(&[1, 2], u64::MAX, false), [(1, false), (2, false)]);
        assert_eq!(plan(&[], 7, true), []);
    }
}
