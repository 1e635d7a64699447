//! Deliveries that are out, by token.
//!
//! A token names a slot and how often the slot was used, so a late one finds nothing.

use crate::lane::Entry;

#[derive(Debug, Default)]
struct Slot {
    uses: u32,
    flight: Option<(u32, Entry)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Flights {
    /// Sends a record of this lane out.
    pub(crate) fn depart(&mut self, lane: u32, entry: Entry) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[index as usize];
        slot.flight = Some((lane, entry));
        u64::from(slot.uses) << 32 | u64::from(index)
    }

    /// Takes a record back; `None` if it is not this token's any more.
    pub(crate) fn land(&mut self, token: u64) -> Option<(u32, Entry)> {
        let index = u32::try_from(token & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        let slot = self.slots.get_mut(index as usize)?;
        if u64::from(slot.uses) != token >> 32 {
            return None;
        }
        let flight = slot.flight.take()?;
        slot.uses = slot.uses.wrapping_add(1);
        self.free.push(index);
        Some(flight)
    }

    /// Forgets all of these lanes.
    pub(crate) fn forget(&mut self, gone: impl Fn(u32) -> bool) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.flight.as_ref().is_some_and(|(lane, _)| gone(*lane)) {
                slot.flight = None;
                slot.uses = slot.uses.wrapping_add(1);
                self.free.push(u32::try_from(index).unwrap_or(u32::MAX));
            }
        }
    }

    /// How many are out.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
