//! Some of very many instances: whom a client connects to at all.
//!
//! With a thousand clients of a thousand instances, connections from all to all cost more than the
//! calls. Each client takes a subset, by rendezvous hashing (Thaler, Ravishankar, "Using name-based
//! mappings to increase hit rates", 1998; gRFC A68): the instances whose hash together with the
//! client's id is highest. Subsets of different clients are independent, so every instance has about
//! as many clients; and an instance that comes or goes changes each subset by one member or not at
//! all.

use super::hash::{mix, stable_hash};

/// Which `size` of `candidates`, by their ids, the client connects to, as indexes in rising order; all where there
/// are no more. `client` is what makes this client differ from the others, such as its instance id,
/// and stays the same while it runs. The order of the candidates does not count.
///
/// Members of few thousands of clients vary by the square root of clients per instance: at least
/// about 20 keeps the busiest instance near the average.
#[must_use]
pub fn subset<S: AsRef<str>>(candidates: &[S], client: &str, size: usize) -> Vec<usize> {
    if candidates.len() <= size {
        return (0..candidates.len()).collect();
    }
    let client = stable_hash(client.as_bytes());
    let mut ranked: Vec<_> = candidates
        .iter()
        .enumerate()
        .map(|(at, candidate)| (mix(client ^ stable_hash(candidate.as_ref().as_bytes())), at))
        .collect();
    if size > 0 {
        ranked.select_nth_unstable_by(size - 1, |a, b| b.0.cmp(&a.0));
    }
    let mut chosen: Vec<_> = ranked.into_iter().take(size).map(|(_, at)| at).collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn instances(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
        numbers.into_iter().map(|number| format!("i-{number}")).collect()
    }

    fn chosen(numbers: &BTreeSet<u32>, client: &str, size: usize) -> BTreeSet<String> {
        let instances = instances(numbers.iter().copied());
        let of = |at: usize| instances[at].clone();
        subset(&instances, client, size).into_iter().map(of).collect()
    }

    proptest! {
        #[test]
        fn an_instance_that_comes_or_goes_changes_at_most_one_member(
            numbers in prop::collection::btree_set(0_u32..500, 1..80),
            other in 500_u32..1_000,
            client in "[a-z]{1,8}",
            size in 0_usize..40,
        ) {
            let fewer = chosen(&numbers, &client, size);
            prop_assert_eq!(fewer.len(), size.min(numbers.len()));
            let mut grown = numbers;
            grown.insert(other);
            let more = chosen(&grown, &client, size);
            prop_assert!(fewer.difference(&more).count() <= 1);
            let newcomer = format!("i-{other}");
            let others_come = more.difference(&fewer).any(|id| *id != newcomer);
            prop_assert!(!others_come, "{:?} {:?}", fewer, more);
        }

        #[test]
        fn the_order_of_the_candidates_does_not_count(
            mut numbers in prop::collection::vec(0_u32..500, 1..80),
            size in 0_usize..40,
        ) {
            numbers.sort_unstable();
            numbers.dedup();
            let set: BTreeSet<_> = numbers.iter().copied().collect();
            numbers.reverse();
            let reversed = instances(numbers);
            let of = |at: usize| reversed[at].clone();
            let picked: BTreeSet<_> = subset(&reversed, "me", size).into_iter().map(of).collect();
            prop_assert_eq!(picked, chosen(&set, "me", size));
        }
    }

    #[test]
    fn every_instance_has_about_as_many_clients() {
        let instances = instances(0..100);
        let mut clients = vec![0_u32; instances.len()];
        for client in 0..1_000 {
            for at in subset(&instances, &format!("client-{client}"), 20) {
                clients[at] += 1;
            }
        }
        let (least, most) = (clients.iter().min(), clients.iter().max());
        println!("1,000 clients take 20 of 100 instances: {least:?} to {most:?} clients on each");
        // 200 each, and a standard deviation of 12.6.
        assert!(clients.iter().all(|&count| count.abs_diff(200) < 50), "{clients:?}");
    }
}
