//! Lanes: the fixed shares into which the keys of a topic are divided.

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
}
