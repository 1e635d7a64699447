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

#[cfg(test)]
mod tests {
    use super::super::testing::Instance;
    use super::*;
    use tokio::time::Instant;

    const KEYS: u64 = 20_000;

    fn instances(count: usize) -> Vec<Instance> {
        (0..count).map(|at| Instance::ready(format!("10.0.0.{at}:8080"), Instant::now())).collect()
    }

    /// Which id each key belongs to.
    fn owners(instances: &[Instance]) -> Vec<&str> {
        let ring = Ring::new(instances);
        let owner = |key| ring.from(mix(key)).next().expect("there is one");
        (0..KEYS).map(|key| instances[owner(key)].id()).collect()
    }

    #[test]
    fn only_the_keys_of_an_instance_that_leaves_move() {
        for count in [2, 5, 10, 16, 40, 100] {
            let before = instances(count);
            let mut after = instances(count);
            let gone = after.remove(count / 2);
            let (owned, owns) = (owners(&before), owners(&after));
            let mut moved = 0;
            for (was, is) in owned.iter().zip(&owns) {
                assert!(was == is || *was == gone.id(), "{count}: {was} lost a key to {is}");
                moved += u64::from(was != is);
            }
            let share = moved as f64 / KEYS as f64;
            println!("{count} instances, one leaves: {:.1} % of the keys move", 100.0 * share);
            // Entries are at random places: what one instance owns varies around its share.
            let deviation = 1.0 / (count as f64 * (scale(count as f64)).sqrt());
            assert!(share > 0.0 && share < 1.0 / count as f64 + 4.0 * deviation, "{share}");
        }
    }

    #[test]
    fn keys_belong_by_weight() {
        let mut weighted = instances(4);
        weighted[1].weight = 3;
        let owned = owners(&weighted);
        let of = |at: usize| owned.iter().filter(|id| **id == weighted[at].id()).count() as f64;
        let (heavy, others) = (of(1), of(0) + of(2) + of(3));
        assert!((heavy / others - 1.0).abs() < 0.25, "{heavy} {others}");
    }

    #[test]
    fn rings_have_as_many_entries_as_they_should() {
        let cases =
            [(4, 1_024), (5, 1_280), (16, 4_096), (17, 1_088), (100, 1_600), (1_000, 4_000)];
        for (count, entries) in cases {
            assert_eq!(Ring::new(&instances(count)).places.len(), entries, "{count} instances");
        }
        assert_eq!(Ring::new(&instances(0)).from(7).count(), 0);
    }
}
