//! What is written down with the frontier of a partition: what is done beyond it, and which records
//! wait for a retry.
//!
//! Kafka keeps a short text with each committed offset. With it the next owner of a partition, or the
//! same after a crash, skips what was done out of order, and knows how often a record was tried and
//! until when it waits. So a retry is as durable as the message.
//!
//! The text: `a1;` and the waits, `;` and the ranges that are done; numbers in base 36, offsets as
//! distances from the one before. `a1;5*2@lx3k9d2a,1*1@lx3k9d9z;1+3,a+f`. Waits come first: a range
//! that has no room is handled again, which the inbox notices; a wait that has none would forget its
//! attempts, so it is not promised.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;

/// What the brokers take unless told otherwise is 4096 (`offset.metadata.max.bytes`).
pub(crate) const TEXT_BYTES_MAX: usize = 4_000;
/// The format, and its version.
const MARK: &str = "a1;";

/// A record that waits for a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// How many attempts were made.
    pub(crate) attempts: u32,
    /// When it is due, in milliseconds since 1970.
    pub(crate) due_ms: i64,
}

/// What is written down of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// All below is done.
    pub(crate) low: i64,
    /// What waits, by offset.
    pub(crate) waits: BTreeMap<i64, Wait>,
    /// What is done beyond.
    pub(crate) done: Vec<Range<i64>>,
}

/// Writes the text for `low`; also how many of the waits, from the first, have found room.
pub(crate) fn write(
    low: i64,
    waits: &BTreeMap<i64, Wait>,
    done: impl Iterator<Item = Range<i64>>,
    bytes_max: usize,
) -> (String, usize) {
    let mut text = String::from(MARK);
    let mut written = 0;
    let mut last = low;
    let mut entry = String::new();
    for (offset, wait) in waits {
        entry.clear();
        entry.push_str(if written == 0 { "" } else { "," });
        number(&mut entry, offset - last);
        entry.push('*');
        number(&mut entry, wait.attempts.into());
        entry.push('@');
        number(&mut entry, wait.due_ms);
        if text.len() + entry.len() + 1 > bytes_max {
            break;
        }
        text.push_str(&entry);
        (last, written) = (*offset, written + 1);
    }
    text.push(';');
    let mut last = low;
    for (index, range) in done.enumerate() {
        entry.clear();
        entry.push_str(if index == 0 { "" } else { "," });
        number(&mut entry, range.start - last);
        entry.push('+');
        number(&mut entry, range.end - range.start);
        if text.len() + entry.len() > bytes_max {
            break;
        }
        text.push_str(&entry);
        last = range.end;
    }
    if text.len() == MARK.len() + 1 {
        // Nothing to say: most of the time.
        text.clear();
    }
    (text, written)
}

/// Reads what was written down for `low`. A text of somebody else says nothing.
pub(crate) fn read(low: i64, text: &str) -> Progress {
    let nothing = Progress { low, ..Progress::default() };
    let Some((waits, done)) = text.strip_prefix(MARK).and_then(|rest| rest.split_once(';')) else {
        return nothing;
    };
    let read = || {
        let mut progress = Progress { low, ..Progress::default() };
        let mut last = low;
        for entry in entries(waits) {
            let (distance, rest) = entry.split_once('*')?;
            let (attempts, due) = rest.split_once('@')?;
            last = last.checked_add(parsed(distance)?)?;
            let attempts = u32::try_from(parsed(attempts)?).ok()?;
            progress.waits.insert(last, Wait { attempts, due_ms: parsed(due)? });
        }
        let mut last = low;
        for entry in entries(done) {
            let (distance, length) = entry.split_once('+')?;
            let start = last.checked_add(parsed(distance)?)?;
            last = start.checked_add(parsed(length)?)?;
            progress.done.push(start..last);
        }
        Some(progress)
    };
    read().unwrap_or(nothing)
}

fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').filter(|entry| !entry.is_empty())
}

fn number(text: &mut String, value: i64) {
    let mut value = value.max(0).unsigned_abs();
    let mut digits = [0_u8; 13];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(value % 36) as usize];
        value /= 36;
        if value == 0 {
            break;
        }
    }
    let _ = write!(text, "{}", String::from_utf8_lossy(&digits[at..]));
}

fn parsed(digits: &str) -> Option<i64> {
    i64::from_str_radix(digits, 36).ok().filter(|value| *value >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(attempts: u32, due_ms: i64) -> Wait {
        Wait { attempts, due_ms }
    }

    fn both_ways(progress: &Progress) -> (Progress, usize) {
        let done = progress.done.iter().cloned();
        let (text, _) = write(progress.low, &progress.waits, done, TEXT_BYTES_MAX);
        assert!(text.len() <= TEXT_BYTES_MAX && text.is_ascii());
        (read(progress.low, &text), text.len())
    }

    #[test]
    fn what_is_written_is_read() {
        let empty = Progress { low: 7, ..Progress::default() };
        assert_eq!(both_ways(&empty), (empty.clone(), 0));
        let full = Progress {
            low: 1_000_000,
            waits: BTreeMap::from([
                (1_000_000, wait(0, 1_764_000_000_000)),
                (1_000_001, wait(u32::MAX, 0)),
                (1_900_000, wait(3, 1_764_000_000_001)),
            ]),
            done: vec![1_000_002..1_000_003, 1_000_010..1_500_000],
        };
        assert_eq!(both_ways(&full).0, full);
    }

    #[test]
    fn what_has_no_room_is_left_out_from_the_end_and_waits_come_first() {
        let waits: BTreeMap<i64, Wait> =
            (0..2_000).map(|n| (n * 2, wait(2, 1_764_000_000_000 + n))).collect();
        let done = || (0..2_000).map(|n| n * 2 + 1..n * 2 + 2);
        let (text, written) = write(0, &waits, done(), TEXT_BYTES_MAX);
        let progress = read(0, &text);
        assert!(text.len() <= TEXT_BYTES_MAX);
        assert!((200..2_000).contains(&written), "{written}");
        assert_eq!(progress.waits.len(), written);
        assert!(progress.waits.iter().all(|(offset, wait)| waits[offset] == *wait));
        let (text, written) = write(0, &BTreeMap::new(), done(), TEXT_BYTES_MAX);
        assert_eq!(written, 0);
        let progress = read(0, &text);
        assert!(progress.done.len() > 900, "{}", progress.done.len());
        assert!(
            progress.done.iter().eq(done().take(progress.done.len()).collect::<Vec<_>>().iter())
        );
    }

    #[test]
    fn the_text_of_somebody_else_says_nothing() {
        for text in
            ["", "a2;;", "hello", "a1;", "a1;x", "a1;1*;", "a1;;1-2", "a1;1*1@zzzzzzzzzzzzzzz;"]
        {
            let progress = read(9, text);
            assert_eq!(progress, Progress { low: 9, ..Progress::default() }, "{text}");
        }
    }
}
