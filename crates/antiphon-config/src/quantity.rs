//! Durations and sizes as people write them.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration written as `250ms`, `10s` or `1m 30s`.
///
/// Units: `ns`, `us` (`µs`), `ms`, `s`, `m`, `h`, `d`. Several parts are added up. `0` needs no unit;
/// any other number without one is refused, because nobody can know which was meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(pub Duration);

/// A number of bytes written as `512`, `64KiB`, `4MiB` or `1GiB`.
///
/// Decimal units (`kB`, `MB`, `GB`) are taken too and mean powers of a thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub usize);

/// The text is not a quantity; says which parts would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct InvalidQuantity(&'static str);

const DURATION: InvalidQuantity =
    InvalidQuantity("a duration such as \"250ms\", \"10s\" or \"1m 30s\"");
const SIZE: InvalidQuantity = InvalidQuantity("a size such as 4096, \"64KiB\" or \"4MiB\"");

/// Units of time and their length in nanoseconds; the longest that fits is written first.
const TIME_UNITS: [(&str, u64); 8] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("µs", 1_000),
    ("ns", 1),
];

/// Units of size and their length in bytes; the largest that divides the number is written.
const SIZE_UNITS: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
];

impl HumanDuration {
    /// This many seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// This many milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }
}

impl ByteSize {
    /// This many times 1024 bytes.
    #[must_use]
    pub const fn kib(count: usize) -> Self {
        Self(count << 10)
    }

    /// This many times 1024 KiB.
    #[must_use]
    pub const fn mib(count: usize) -> Self {
        Self(count << 20)
    }
}

impl FromStr for HumanDuration {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        if text.trim() == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let mut rest = text.trim();
        let mut nanos: u64 = 0;
        while !rest.is_empty() {
            let (number, unit, tail) = part(rest).ok_or(DURATION)?;
            let (_, length) = TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or(DURATION)?;
            nanos =
                number.checked_mul(*length).and_then(|n| nanos.checked_add(n)).ok_or(DURATION)?;
            rest = tail.trim_start();
        }
        if text.trim().is_empty() {
            return Err(DURATION);
        }
        Ok(Self(Duration::from_nanos(nanos)))
    }
}

impl FromStr for ByteSize {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let (number, unit, tail) = part(text.trim()).ok_or(SIZE)?;
        let length = match unit {
            "" => 1,
            _ => SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or(SIZE)?.1,
        };
        let bytes = number.checked_mul(length).and_then(|bytes| usize::try_from(bytes).ok());
        match bytes {
            Some(bytes) if tail.is_empty() => Ok(Self(bytes)),
            _ => Err(SIZE),
        }
    }
}

/// The first number, its unit, and what follows.
fn part(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..digits].parse().ok()?;
    let rest = text[digits..].trim_start();
    let letters = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
    Some((number, &rest[..letters], &rest[letters..]))
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nanos = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        if nanos == 0 {
            return f.write_str("0s");
        }
        let mut first = true;
        for (unit, length) in TIME_UNITS {
            let count = nanos / length;
            if count > 0 {
                let space = if first { "" } else { " " };
                write!(f, "{space}{count}{unit}")?;
                (nanos, first) = (nanos % length, false);
            }
        }
        Ok(())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as u64;
        let unit =
            SIZE_UNITS.iter().find(|(_, length)| bytes >= *length && bytes.is_multiple_of(*length));
        match unit {
            Some((unit, length)) if *length > 1 => write!(f, "{}{unit}", bytes / length),
            _ => write!(f, "{bytes}B"),
        }
    }
}

impl Deref for HumanDuration {
    type Target = Duration;
    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl Deref for ByteSize {
    type Target = usize;
    fn deref(&self) -> &usize {
        &self.0
    }
}

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl From<usize> for ByteSize {
    fn from(bytes: usize) -> Self {
        Self(bytes)
    }
}

impl From<ByteSize> for usize {
    fn from(size: ByteSize) -> Self {
        size.0
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads text, and numbers where `number` takes them.
struct Quantity<T> {
    expected: InvalidQuantity,
    number: fn(u64) -> Option<T>,
}

impl<T: FromStr> Visitor<'_> for Quantity<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        (self.number)(number).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = |number| (number == 0).then_some(Self(Duration::ZERO));
        deserializer.deserialize_any(Quantity { expected: DURATION, number })
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = |number| usize::try_from(number).ok().map(Self);
        deserializer.deserialize_any(Quantity { expected: SIZE, number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_people_write_them() {
        for (text, nanos, written) in [
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("250ms", 250_000_000, "250ms"),
            ("10 s", 10_000_000_000, "10s"),
            ("1m 30s", 90_000_000_000, "1m 30s"),
            ("1m30s", 90_000_000_000, "1m 30s"),
            ("90s", 90_000_000_000, "1m 30s"),
            ("5us", 5_000, "5us"),
            ("5µs", 5_000, "5us"),
            ("2d", 172_800_000_000_000, "2d"),
        ] {
            let read: HumanDuration = text.parse().unwrap();
            assert_eq!(read.as_nanos(), nanos, "{text}");
            assert_eq!(read.to_string(), written);
        }
    }

    #[test]
    fn what_could_mean_anything_is_refused() {
        for text in ["", " ", "10", "s", "-5s", "1.5s", "10 parsecs", "5s-", "99999999999999d"] {
            assert_eq!(text.parse::<HumanDuration>(), Err(DURATION), "{text:?}");
        }
        for text in ["", "KiB", "-1", "4 bananas", "1.5MiB", "4MiB 1", "99999999999999GiB"] {
            assert_eq!(text.parse::<ByteSize>(), Err(SIZE), "{text:?}");
        }
    }

    #[test]
    fn sizes_are_read_and_written_as_people_write_them() {
        for (text, bytes, written) in [
            ("0", 0, "0B"),
            ("512", 512, "512B"),
            ("64KiB", 65_536, "64KiB"),
            ("4 MiB", 4_194_304, "4MiB"),
            ("1GiB", 1 << 30, "1GiB"),
            ("3kB", 3_000, "3000B"),
        ] {
            let read: ByteSize = text.parse().unwrap();
            assert_eq!(*read, bytes, "{text}");
            assert_eq!(read.to_string(), written);
        }
    }
}
