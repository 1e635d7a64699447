//! The ring of consistent hashing: which instance a key belongs to, and which one comes next.
//!
//! Karger et al., "Consistent hashing and random trees" (1997), with the sizes of gRFC A42. Each
//! instance has entries at places that follow from its id alone; a key belongs to the first entry
//! that is not before it. An instance that leaves takes its entries along, and only its keys move.
//!
//! That holds as long as the others keep as many entries as they have. So the number of entries for
//! a weight of 1 is a power of four and changes as rarely as the bounds permit: where the number of
//! instances of equal weight passes 16, 64, 256, 1,024. gRFC A42 fits it anew to every number of
//! instances, which moves other keys each time.

use super::Candidate;
use super::hash::{mix, stable_hash};

const ENTRIES_MAX: f64 = 4_096.0;
/// More do not make it more even than the bounded load does.
const ENTRIES_PER_WEIGHT_MAX: f64 = 256.0;

/// A ring over the candidates of a roster.
#[derive(Debug)]
pub(super) struct Ring {
    /// Sorted. Apart from the owners, so that a search reads half as much.
    places: Vec<u64>,
    owners: Vec<u32>,
}

impl Ring {
    pub(super) fn new<C: Candidate>(candidates: &[C]) -> Self {
        let weights = candidates.iter().map(|candidate| f64::from(candidate.weight().max(1)));
        let scale = scale(weights.sum());
        let mut entries = Vec::with_capacity(ENTRIES_MAX as usize);
        for (owner, candidate) in (0_u32..).zip(candidates) {
            let seed = stable_hash(candidate.id().as_bytes());
            let count = (f64::from(candidate.weight().max(1)) * scale).round().max(1.0) as u64;
            // Twice mixed: entries of one instance are neighbours before.
            entries.extend((0..count).map(|entry| (mix(seed ^ mix(entry + 1)), owner)));
        }
        entries.sort_unstable();
        let (places, owners) = entries.into_iter().unzip();
        Self { places, owners }
    }

    /// The candidates in the order in which they serve `key`, each as often as it has entries.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        let first = self.places.partition_point(|&place| place < key);
        let (before, after) = self.owners.split_at(first);
        after.iter().chain(before).map(|&owner| owner as usize)
    }
}

/// Entries for a weight of 1.
fn scale(weights: f64) -> f64 {
    let exponent = (ENTRIES_MAX / weights.max(1.0)).log(4.0).floor();
    4_f64.powf(exponent).min(ENTRIES_PER_WEIGHT_MAX)
}
