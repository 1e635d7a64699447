//! Which member has which lanes.
//!
//! Every member decides for itself, from the same notes, and comes to the same result: everybody has
//! as many lanes as the others, or one more, and keeps what it has as far as that goes. A lane
//! changes hands only through its note, so members that see the notes at different moments cannot
//! both have it for long: the broker lets one connection have a session.

use std::collections::{BTreeMap, BTreeSet};

/// The member that each lane should have. `members` are those that take lanes; `owners` are those
/// that have them now, as far as they live.
pub(crate) fn shares<'a>(
    members: &BTreeSet<&'a str>,
    owners: &[Option<&'a str>],
) -> Vec<Option<&'a str>> {
    let lanes = owners.len();
    let Some(each) = lanes.checked_div(members.len()) else {
        return vec![None; lanes];
    };
    let mut has: BTreeMap<&str, usize> = members.iter().map(|member| (*member, 0)).collect();
    for owner in owners.iter().flatten() {
        has.entry(owner).and_modify(|count| *count += 1);
    }
    // What does not divide evenly goes to those that have the most, so that the least moves.
    let mut by_count: Vec<&str> = members.iter().copied().collect();
    by_count.sort_by_key(|member| std::cmp::Reverse(has[member]));
    let more: BTreeSet<&str> = by_count.into_iter().take(lanes % members.len()).collect();
    let mut room: BTreeMap<&str, usize> =
        members.iter().map(|member| (*member, each + usize::from(more.contains(member)))).collect();
    let mut shares: Vec<Option<&str>> = vec![None; lanes];
    for (share, owner) in shares.iter_mut().zip(owners) {
        if let Some(owner) = owner
            && let Some(left) = room.get_mut(owner).filter(|left| **left > 0)
        {
            *left -= 1;
            *share = Some(owner);
        }
    }
    let mut takers = room.into_iter().flat_map(|(member, left)| std::iter::repeat_n(member, left));
    for share in shares.iter_mut().filter(|share| share.is_none()) {
        *share = takers.next();
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts<'a>(shares: &[Option<&'a str>]) -> BTreeMap<&'a str, usize> {
        let mut counts = BTreeMap::new();
        for share in shares.iter().flatten() {
            *counts.entry(*share).or_default() += 1;
        }
        counts
    }

    fn moved(before: &[Option<&str>], after: &[Option<&str>]) -> usize {
        before.iter().zip(after).filter(|(one, other)| one.is_some() && one != other).count()
    }

    #[test]
    fn shares_are_even_and_move_little() {
        let mut owners: Vec<Option<&str>> = vec![None; 16];
        // (members, counts, how many lanes change hands)
        let steps: [(&[&str], &[usize], usize); 6] = [
            (&["a"], &[16], 0),
            (&["a", "b"], &[8, 8], 8),
            (&["a", "b", "c"], &[6, 5, 5], 5),
            (&["b", "c"], &[8, 8], 6),
            (&["b", "c", "d", "e"], &[4, 4, 4, 4], 8),
            (&["e"], &[16], 12),
        ];
        for (members, expected, moves) in steps {
            let after = shares(&members.iter().copied().collect(), &owners);
            assert_eq!(counts(&after).into_values().collect::<Vec<_>>(), expected, "{members:?}");
            assert_eq!(moved(&owners, &after), moves, "{members:?}");
            // Whoever looks again, when all has been done, sees nothing to do.
            assert_eq!(shares(&members.iter().copied().collect(), &after), after);
            owners = after;
        }
    }

    #[test]
    fn every_order_of_hand_overs_ends_at_the_same_shares() {
        let members: BTreeSet<&str> = ["a", "b", "c"].into();
        let all_of_one = vec![Some("a"); 16];
        let goal = shares(&members, &all_of_one);
        for seed in 0..50_usize {
            let mut owners = all_of_one.clone();
            let mut lanes: Vec<usize> = (0..16).collect();
            lanes.sort_by_key(|lane| (lane * 7 + seed * 13) % 16);
            for lane in lanes {
                let now = shares(&members, &owners);
                if now[lane] != owners[lane] {
                    owners[lane] = None;
                    owners[lane] = shares(&members, &owners)[lane];
                }
            }
            assert_eq!(counts(&owners), counts(&goal), "{owners:?}");
        }
    }

    #[test]
    fn more_members_than_lanes_and_no_members_at_all() {
        let many: BTreeSet<&str> = ["a", "b", "c"].into();
        assert_eq!(shares(&many, &[None, None]), [Some("a"), Some("b")]);
        assert_eq!(shares(&BTreeSet::new(), &[Some("a"), None]), [None, None]);
        // One that leaves has lanes and takes none.
        assert_eq!(shares(&["b"].into(), &[Some("a"), None]), [Some("b"), Some("b")]);
    }
}
