//! What a server says about being tried again.

use std::time::Duration;

/// The server's word about another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// After exactly this much time.
    After(Duration),
    /// Not at all.
    Never,
}

impl Pushback {
    /// The longest time that a server's word keeps others from an instance, or from hedging: what it
    /// asks for beyond that is a mistake, or malice.
    pub const WAIT_MAX: Duration = Duration::from_secs(300);

    /// The value of `grpc-retry-pushback-ms` (gRFC A6). What is negative, or no whole number of
    /// milliseconds, means never: a server that tries to say something about retries wants fewer.
    #[must_use]
    pub fn from_grpc(value: &str) -> Self {
        whole(value).map_or(Self::Never, |millis| Self::After(Duration::from_millis(millis)))
    }

    /// The value of HTTP's `Retry-After`, in seconds. A date means never, as everything else does
    /// that is no whole number of seconds: clocks differ by more than a call may last.
    #[must_use]
    pub fn from_retry_after(value: &str) -> Self {
        whole(value).map_or(Self::Never, |seconds| Self::After(Duration::from_secs(seconds)))
    }
}

/// A number of digits alone; Rust's own parser takes a plus sign, too.
fn whole(value: &str) -> Option<u64> {
    let value = value.trim_ascii();
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_are_waits() {
        let after = |millis| Pushback::After(Duration::from_millis(millis));
        let cases = [
            ("0", after(0), after(0)),
            ("25", after(25), after(25_000)),
            (" 7 ", after(7), after(7_000)),
            ("-1", Pushback::Never, Pushback::Never),
            ("-0", Pushback::Never, Pushback::Never),
            ("+5", Pushback::Never, Pushback::Never),
            ("1.5", Pushback::Never, Pushback::Never),
            ("", Pushback::Never, Pushback::Never),
            ("soon", Pushback::Never, Pushback::Never),
            ("99999999999999999999", Pushback::Never, Pushback::Never),
            ("Wed, 21 Oct 2026 07:28:00 GMT", Pushback::Never, Pushback::Never),
        ];
        for (value, grpc, http) in cases {
            assert_eq!(Pushback::from_grpc(value), grpc, "{value:?}");
            assert_eq!(Pushback::from_retry_after(value), http, "{value:?}");
        }
        let longest = u64::MAX.to_string();
        assert_eq!(
            Pushback::from_retry_after(&longest),
            Pushback::After(Duration::from_secs(u64::MAX))
        );
    }
}
