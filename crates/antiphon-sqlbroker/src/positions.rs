//! Positions of a log as bytes.

use std::collections::BTreeSet;

/// Positions as bytes: each is the distance to the one before, as a LEB128 number.
#[must_use]
pub fn pack(positions: &BTreeSet<i64>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(positions.len() * 2);
    let mut last = 0;
    for position in positions {
        let mut distance = position.wrapping_sub(last).cast_unsigned();
        last = *position;
        while distance >= 0x80 {
            bytes.push((distance & 0x7f) as u8 | 0x80);
            distance >>= 7;
        }
        bytes.push(distance as u8);
    }
    bytes
}

/// The positions in `bytes`; what is broken at their end is left out.
#[must_use]
pub fn unpack(bytes: &[u8]) -> BTreeSet<i64> {
    let mut positions = BTreeSet::new();
    let (mut last, mut distance, mut shift) = (0_i64, 0_u64, 0);
    for byte in bytes {
        distance |= u64::from(byte & 0x7f).unbounded_shl(shift);
        shift += 7;
        if *byte < 0x80 {
            last = last.wrapping_add(distance.cast_signed());
            positions.insert(last);
            (distance, shift) = (0, 0);
        }
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_round_trip() {
        let positions: BTreeSet<i64> = [1, 2, 3, 200, 40_000, i64::MAX].into();
        assert_eq!(unpack(&pack(&positions)), positions);
        assert_eq!(unpack(&pack(&BTreeSet::new())), BTreeSet::new());
        assert_eq!(unpack(&[0x80]), BTreeSet::new());
    }
}
