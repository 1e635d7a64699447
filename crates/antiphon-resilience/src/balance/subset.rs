//! Some of very many instances: whom a client connects to at all.
//!
//! With a thousand clients of a thousand instances, connections from all to all cost more than the
//! calls. Each client takes a subset, by rendezvous hashing (Thaler, Ravishankar, "Using name-based
//! mappings to increase hit rates", 1998; gRFC A68): the instances whose hash together with the
//! client's id is highest. Subsets of different clients are independent, so every instance has about
//! as many clients; and an instance that comes or goes changes each subset by one member or not at
//! all.

use super::Candidate;
use super::hash::{mix, stable_hash};

/// Which `size` of `candidates` the client connects to, as indexes in rising order; all where there
/// are no more. `client` is what makes this client differ from the others, such as its instance id,
/// and stays the same while it runs. The order of the candidates does not count.
///
/// Members of few thousands of clients vary by the square root of clients per instance: at least
/// about 20 keeps the busiest instance near the average.
#[must_use]
pub fn subset<C: Candidate>(candidates: &[C], client: &str, size: usize) -> Vec<usize> {
    if candidates.len() <= size {
        return (0..candidates.len()).collect();
    }
    let client = stable_hash(client.as_bytes());
    let mut ranked: Vec<_> = candidates
        .iter()
        .enumerate()
        .map(|(at, candidate)| (mix(client ^ stable_hash(candidate.id().as_bytes())), at))
        .collect();
    if size > 0 {
        ranked.select_nth_unstable_by(size - 1, |a, b| b.0.cmp(&a.0));
    }
    let mut chosen: Vec<_> = ranked.into_iter().take(size).map(|(_, at)| at).collect();
    chosen.sort_unstable();
    chosen
}
