//! The hash by which two requests are recognised as the same.
//!
//! Protobuf does not fix the order in which the entries of a map are written, so equal requests may
//! have different bytes. The hash is therefore taken over the fields of the wire format, and
//! neighbouring entries of what may be a map count in any order.

use buffa::Message as Protobuf;

/// How deep messages are looked into; what lies deeper counts as bytes.
const DEPTH_MAX: u32 = 32;

/// Tells requests apart: equal requests have equal hashes.
///
/// 64 bits are enough: it compares only requests of one method with one idempotency key, and who
/// finds two requests with one hash has deceived nobody but himself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestHash(pub(super) u64);

impl RequestHash {
    /// The hash of a request.
    #[must_use]
    pub fn of(request: &impl Protobuf) -> Self {
        let bytes = request.encode_to_vec();
        Self(hash_fields(&bytes, 0).unwrap_or_else(|| hash_bytes(&bytes)))
    }
}

/// FNV-1a, 64 bits.
fn hash_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| step(hash, u64::from(*byte)))
}

fn step(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
}

struct Field<'a> {
    tag: u64,
    value: u64,
    /// Of a length-delimited field.
    bytes: Option<&'a [u8]>,
}

/// The hash of a message; `None` if the bytes are not one.
fn hash_fields(bytes: &[u8], depth: u32) -> Option<u64> {
    let fields = parse(bytes, depth)?;
    let mut hash = hash_bytes(b"message");
    let mut rest = fields.as_slice();
    while let Some(first) = rest.first() {
        let count = rest.iter().take_while(|field| field.tag == first.tag).count();
        let (run, after) = rest.split_at(count);
        rest = after;
        hash = step(hash, first.tag);
        if run.iter().all(|field| field.bytes.is_some_and(may_be_map_entry)) {
            hash = step(hash, run.iter().fold(0, |sum, field| field.value.wrapping_add(sum)));
        } else {
            hash = run.iter().fold(hash, |hash, field| step(hash, field.value));
        }
    }
    Some(hash)
}

fn parse(mut bytes: &[u8], depth: u32) -> Option<Vec<Field<'_>>> {
    if depth > DEPTH_MAX {
        return None;
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        if tag >> 3 == 0 {
            return None;
        }
        let field = match tag & 7 {
            0 => Field { tag, value: varint(&mut bytes)?, bytes: None },
            1 => Field { tag, value: hash_bytes(take(&mut bytes, 8)?), bytes: None },
            5 => Field { tag, value: hash_bytes(take(&mut bytes, 4)?), bytes: None },
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let inner = take(&mut bytes, length)?;
                let value = hash_fields(inner, depth + 1).unwrap_or_else(|| hash_bytes(inner));
                Field { tag, value, bytes: Some(inner) }
            }
            _ => return None,
        };
        fields.push(field);
    }
    Some(fields)
}

/// Whether it has at most the fields 1 and 2, once each, in this order.
fn may_be_map_entry(bytes: &[u8]) -> bool {
    let Some(fields) = parse(bytes, DEPTH_MAX) else {
        return false;
    };
    match fields.as_slice() {
        [] => true,
        [only] => only.tag >> 3 <= 2,
        [key, value] => key.tag >> 3 == 1 && value.tag >> 3 == 2,
        _ => false,
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> u64 {
        hash_fields(bytes, 0).unwrap_or_else(|| hash_bytes(bytes))
    }

    /// A length-delimited field.
    fn field(number: u8, inner: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(inner.len()).unwrap()];
        bytes.extend_from_slice(inner);
        bytes
    }

    fn entry(key: &str, value: &str) -> Vec<u8> {
        [field(1, key.as_bytes()), field(2, value.as_bytes())].concat()
    }

    #[test]
    fn the_entries_of_a_map_count_in_any_order_at_any_depth() {
        let (a, b) = (field(3, &entry("a", "1")), field(3, &entry("b", "2")));
        let (one, other) = ([a.clone(), b.clone()].concat(), [b, a].concat());
        assert_ne!(one, other);
        assert_eq!(of(&one), of(&other));
        assert_eq!(of(&field(9, &one)), of(&field(9, &other)));
    }

    #[test]
    fn everything_else_tells_requests_apart() {
        let requests = [
            vec![],
            vec![0x08, 0x01],
            vec![0x08, 0x02],
            vec![0x10, 0x01],
            field(1, b"order-12"),
            field(1, b"order-21"),
            field(2, b"order-12"),
            [field(4, b"order-1"), field(4, b"order-2")].concat(),
            [field(4, b"order-2"), field(4, b"order-1")].concat(),
            field(3, &entry("a", "1")),
            field(3, &entry("a", "2")),
            field(3, &entry("1", "a")),
            [field(3, &entry("a", "1")), field(3, &entry("b", "2"))].concat(),
            [field(3, &entry("a", "2")), field(3, &entry("b", "1"))].concat(),
            vec![0xff; 12],
        ];
        for (i, one) in requests.iter().enumerate() {
            for other in &requests[i + 1..] {
                assert_ne!(of(one), of(other), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn endless_nesting_ends() {
        let mut bytes = vec![0x08, 0x01];
        for _ in 0..60 {
            bytes = field(1, &bytes);
        }
        assert_eq!(of(&bytes), of(&bytes.clone()));
    }
}
