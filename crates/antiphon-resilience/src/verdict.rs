//! What the end of an attempt says about the target that was called.
//!
//! One answer for all policies that watch a target: the [throttle](crate::throttle), the
//! [ejection](crate::ejection) of instances and the failure penalty of balancing.

use antiphon_core::Code;

/// What the end of an attempt says about the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The target worked: it answered, if only to say that the caller is wrong.
    Accepted,
    /// The target is broken, or cannot be reached.
    Failed,
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
}

#[cfg(test)]
mod tests {
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
    fn what_the_target_never_saw_says_nothing_about_it() {
        for code in Code::ALL {
            for origin in [Origin::Caller, Origin::Policy] {
                assert_eq!(Verdict::of(Some(code), origin), Verdict::Neutral);
            }
        }
    }
}
