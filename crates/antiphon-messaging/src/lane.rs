//! Lanes: the fixed shares into which the keys of a topic are divided, and who of a group has which.

use std::collections::BTreeSet;

/// How many lanes there are. Fixed, since a key must stay in its lane for ever.
pub const LANES: u32 = 16;

/// The lane of a key: FNV-1a, 64 bits, folded. The same in every process and version.
#[must_use]
pub fn lane_of(key: &str) -> u32 {
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let folded = (hash >> 32) ^ (hash & 0xffff_ffff);
    u32::try_from(folded % u64::from(LANES)).unwrap_or(0)
}

/// What a member of an ordered group changes, so that the lanes are shared evenly and no lane moves
/// without need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shift {
    /// Lanes to give up: others have too few.
    pub give: Vec<u32>,
    /// Lanes to take: nobody has them, or nobody who is alive.
    pub take: Vec<u32>,
}

/// Decides for the member `me`. `members` are alive, `me` among them; `owner` says who has a lane.
///
/// Every member decides for itself and from what it knows; whoever is wrong is corrected by the
/// compare-and-set with which a lane is taken. The first members by name have one lane more where
/// the lanes cannot be divided evenly.
#[must_use]
pub fn shift<'a>(
    me: &str,
    members: &BTreeSet<&str>,
    owner: impl Fn(u32) -> Option<&'a str>,
) -> Shift {
    let count = u32::try_from(members.len().max(1)).unwrap_or(LANES);
    let rank = members.iter().position(|member| *member == me).unwrap_or(0);
    let rank = u32::try_from(rank).unwrap_or(LANES);
    let quota = LANES / count + u32::from(rank < LANES % count);
    let quota = usize::try_from(quota).unwrap_or(0);
    let mine: Vec<u32> = (0..LANES).filter(|lane| owner(*lane) == Some(me)).collect();
    if mine.len() > quota {
        return Shift { give: mine[quota..].to_vec(), take: Vec::new() };
    }
    let free = |lane: &u32| owner(*lane).is_none_or(|owner| !members.contains(owner));
    // Members begin at different lanes, so that they seldom want the same one.
    let first = rank.saturating_mul(LANES) / count;
    let take = (0..LANES).map(|n| (first + n) % LANES).filter(free).take(quota - mine.len());
    Shift { give: Vec::new(), take: take.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_never_change() {
        let lanes: Vec<_> = ["", "a", "order-1", "order-2"].into_iter().map(lane_of).collect();
        assert_eq!(lanes, [lane_of(""), lane_of("a"), lane_of("order-1"), lane_of("order-2")]);
        assert!(lanes.iter().all(|lane| *lane < LANES));
    }

    #[test]
    fn keys_spread_over_all_lanes() {
        let mut counts = [0_u32; LANES as usize];
        for n in 0..16_000 {
            counts[lane_of(&format!("order-{n}")) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (700..1_300).contains(count)), "{counts:?}");
    }

    /// Lets every member decide in turn until nobody changes anything.
    fn settle(owners: &mut [Option<&'static str>], members: &[&'static str]) -> usize {
        let alive: BTreeSet<&str> = members.iter().copied().collect();
        let mut moved = 0;
        for _ in 0..100 {
            let before = moved;
            for me in members {
                let Shift { give, take } = shift(me, &alive, |lane| owners[lane as usize]);
                moved += give.len() + take.len();
                give.iter().for_each(|lane| owners[*lane as usize] = None);
                take.iter().for_each(|lane| owners[*lane as usize] = Some(me));
            }
            if moved == before {
                return moved;
            }
        }
        unreachable!("{members:?} go on changing {owners:?}");
    }

    #[test]
    fn lanes_are_shared_evenly_whoever_comes_and_goes() {
        let mut owners = [None; LANES as usize];
        for members in [
            &["a"][..],
            &["a", "b"],
            &["a", "b", "c"],
            &["b", "c"],
            &["b"],
            &["b", "x", "y", "z", "k"],
        ] {
            settle(&mut owners, members);
            for member in members {
                let count = owners.iter().filter(|owner| **owner == Some(*member)).count();
                let even = LANES as usize / members.len();
                assert!((even..=even + 1).contains(&count), "{member}: {owners:?}");
            }
        }
    }

    #[test]
    fn no_lane_moves_without_need() {
        let mut owners = [None; LANES as usize];
        settle(&mut owners, &["a", "b", "c", "d"]);
        assert_eq!(settle(&mut owners, &["a", "b", "c", "d"]), 0);
        assert_eq!(settle(&mut owners, &["a", "b", "c"]), 4, "those of the one that is gone");
    }

    #[test]
    fn with_more_members_than_lanes_some_have_none() {
        let names: Vec<String> = (0..20).map(|n| format!("{n:02}")).collect();
        let alive: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let nobody = |_: u32| -> Option<&'static str> { None };
        let takes: Vec<usize> =
            names.iter().map(|me| shift(me, &alive, nobody).take.len()).collect();
        assert_eq!(takes.iter().sum::<usize>(), LANES as usize);
        assert_eq!(takes.iter().filter(|count| **count == 0).count(), 4);
    }
}
