//! What the end of an attempt says about the target that was called.
//!
//! One answer for all policies that watch a target: the [throttle](crate::throttle), the
//! [ejection](crate::ejection) of instances and the failure penalty of balancing.

use antiphon_core::{Code, Status};

/// The reason of a status by which a server says that it refused a call since it has too much to do.
/// Every server of ours says it, with whatever code.
pub const OVERLOADED: &str = "OVERLOADED";

/// What the end of an attempt says about the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The target worked: it answered, if only to say that the caller is wrong.
    Accepted,
    /// The target is broken, or cannot be reached.
    Failed,
    /// The target works and has too much to do: it refused this call to be able to answer others.
    ///
    /// The throttle hears of it as of a failure, for fewer calls are what helps. The ejection does
    /// not: whoever sets an overloaded instance aside overloads the others. The balancer leaves the
    /// instance alone for a moment, since nobody answers as fast as one that refuses.
    Shed,
    /// It says nothing about the target, or what it says is for the limiters to hear.
    Neutral,
}

/// Who ended the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The target: it answered, could not be reached, broke the connection, or let the deadline pass.
    Target,
    /// The caller, who went away.
    Caller,
    /// A policy of this process (throttle, bulkhead, budget), before anything was sent.
    Policy,
}

impl Verdict {
    /// What `code` (`None` when the call succeeded) says when it comes from `origin`.
    ///
    /// A target that refuses for a quota or a limit (RESOURCE_EXHAUSTED) works; to count that as a
    /// failure would make a limiter trip breakers. Codes of wrong input and wrong state are answers.
    #[must_use]
    pub const fn of(code: Option<Code>, origin: Origin) -> Self {
        if !matches!(origin, Origin::Target) {
            return Self::Neutral;
        }
        match code {
            Some(
                Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Internal
                | Code::Unknown
                | Code::DataLoss,
            ) => Self::Failed,
            Some(Code::Cancelled | Code::ResourceExhausted) => Self::Neutral,
            None
            | Some(
                Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::PermissionDenied
                | Code::FailedPrecondition
                | Code::Aborted
                | Code::OutOfRange
                | Code::Unimplemented
                | Code::Unauthenticated,
            ) => Self::Accepted,
        }
    }

    /// What an answer of the target says that is no success.
    ///
    /// [`Verdict::Shed`] is said by the reason [`OVERLOADED`]; and, by servers that know no such
    /// reason, by UNAVAILABLE with a time after which to come again (`grpc-retry-pushback-ms`, gRFC
    /// A6). A reason of its own, or the word never to come again, tells of something else: whoever
    /// made several attempts in vain says "never" to its own caller. RESOURCE_EXHAUSTED alone is
    /// about a quota of the caller.
    #[must_use]
    pub fn of_answer(status: &Status) -> Self {
        let refuses = matches!(status.code(), Code::Unavailable | Code::ResourceExhausted);
        let asks_for_time = status.code() == Code::Unavailable
            && status.reason().is_empty()
            && status.retry_after().is_some();
        if asks_for_time || (refuses && status.reason() == OVERLOADED) {
            return Self::Shed;
        }
        Self::of(Some(status.code()), Origin::Target)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use antiphon_core::Retry;

    use super::*;

    #[test]
    fn five_codes_are_failures_of_the_target_and_two_say_nothing() {
        let of = |verdict| {
            let codes = Code::ALL.into_iter();
            codes.filter(|code| Verdict::of(Some(*code), Origin::Target) == verdict).collect()
        };
        let failed: Vec<_> = of(Verdict::Failed);
        let expected = [
            Code::Unknown,
            Code::DeadlineExceeded,
            Code::Internal,
            Code::Unavailable,
            Code::DataLoss,
        ];
        assert_eq!(failed, expected);
        let neutral: Vec<_> = of(Verdict::Neutral);
        assert_eq!(neutral, [Code::Cancelled, Code::ResourceExhausted]);
        assert_eq!(Verdict::of(None, Origin::Target), Verdict::Accepted);
    }

    #[test]
    fn an_answer_sheds_when_it_says_so_or_asks_for_time() {
        use Code::{Internal, NotFound, ResourceExhausted, Unavailable};
        let later = Some(Retry::After(Duration::from_millis(80)));
        let never = Some(Retry::Never);
        let cases = [
            ("our server", Unavailable, OVERLOADED, later, Verdict::Shed),
            (
                "our server, to a call that can be done later",
                Unavailable,
                OVERLOADED,
                never,
                Verdict::Shed,
            ),
            ("told by whoever called it", Unavailable, OVERLOADED, None, Verdict::Shed),
            ("another code for it", ResourceExhausted, OVERLOADED, None, Verdict::Shed),
            ("another server", Unavailable, "", later, Verdict::Shed),
            ("it cannot work", Unavailable, "", None, Verdict::Failed),
            ("it tried again and again", Unavailable, "", never, Verdict::Failed),
            ("something else is away", Unavailable, "CARDS_DOWN", later, Verdict::Failed),
            ("a quota", ResourceExhausted, "", later, Verdict::Neutral),
            ("a limit of rates", ResourceExhausted, "RATE_LIMITED", later, Verdict::Neutral),
            ("no such code sheds", Internal, OVERLOADED, later, Verdict::Failed),
            ("an answer", NotFound, "", later, Verdict::Accepted),
        ];
        for (name, code, reason, retry, expected) in cases {
            let mut status = Status::new(code, "no");
            if !reason.is_empty() {
                status = status.with_reason(reason, "any");
            }
            if let Some(retry) = retry {
                status = status.with_retry(retry);
            }
            assert_eq!(Verdict::of_answer(&status), expected, "{name}");
        }
    }

    #[test]
    fn what_the_target_never_saw_says_nothing_about_it() {
        for code in Code::ALL {
            for origin in [Origin::Caller, Origin::Policy] {
                assert_eq!(Verdict::of(Some(code), origin), Verdict::Neutral);
            }
        }
    }
}
