//! What is in flight, by tokens that are never given twice.
//!
//! A token is the number of a slot and how often the slot was used before, so that a late token does
//! not hit what took the slot since. There are as many slots as were ever in flight at a time.

use crate::group::{Entry, MemberId};

/// A message in a member's hands.
pub(crate) struct Flight {
    pub(crate) member: MemberId,
    pub(crate) entry: Entry,
}

#[derive(Default)]
struct Slot {
    uses: u32,
    flight: Option<Flight>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Flights {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

fn token(slot: u32, uses: u32) -> u64 {
    u64::from(uses) << 32 | u64::from(slot)
}

impl Flights {
    /// Adds one; yields its token.
    pub(crate) fn insert(&mut self, flight: Flight) -> u64 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[number as usize];
        slot.uses = slot.uses.wrapping_add(1);
        slot.flight = Some(flight);
        token(number, slot.uses)
    }

    /// Takes out the one with this token, if it is there.
    pub(crate) fn remove(&mut self, token: u64) -> Option<Flight> {
        let number = u32::try_from(token & u64::from(u32::MAX)).ok()?;
        let slot = self.slots.get_mut(number as usize)?;
        if u64::from(slot.uses) != token >> 32 {
            return None;
        }
        let flight = slot.flight.take()?;
        self.free.push(number);
        Some(flight)
    }

    /// The tokens of those that `which` names.
    pub(crate) fn tokens(&self, which: impl Fn(&Flight) -> bool) -> Vec<u64> {
        (0_u32..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.flight.as_ref().is_some_and(&which))
            .map(|(number, slot)| token(number, slot.uses))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use antiphon_core::{MessageId, Timestamp};
    use antiphon_messaging::Message;

    use super::*;

    fn flight(sequence: u64) -> Flight {
        let message = Arc::new(Message {
            id: MessageId::new(Timestamp::EPOCH),
            topic: String::new(),
            kind: String::new(),
            source: String::new(),
            key: String::new(),
            time: Timestamp::EPOCH,
            not_before: None,
            attributes: BTreeMap::new(),
            body: bytes::Bytes::new(),
        });
        Flight { member: 1, entry: Entry { sequence, message, attempts: 0, lane: 0 } }
    }

    #[test]
    fn a_token_is_good_once_and_never_for_another() {
        let mut flights = Flights::default();
        let first = flights.insert(flight(1));
        assert_eq!(flights.remove(first).map(|flight| flight.entry.sequence), Some(1));
        let second = flights.insert(flight(2));
        assert!(flights.remove(first).is_none());
        assert_eq!(flights.tokens(|_| true), [second]);
        assert_eq!(flights.remove(second).map(|flight| flight.entry.sequence), Some(2));
        assert!(flights.remove(second).is_none());
        assert!(flights.remove(77).is_none());
    }
}
