//! Why a call did not get an answer.

use std::fmt;
use std::time::Duration;

/// Why a call did not get an answer from any instance; the source of the status that the caller gets.
#[derive(Debug)]
pub struct CallError {
    /// The target as configured.
    pub target: String,
    /// What stopped it.
    pub problem: &'static str,
    /// The attempts in their order, or, where there was nobody to send it to, the instances and why
    /// each cannot be connected to.
    pub attempts: Vec<FailedAttempt>,
}

/// An attempt that failed.
#[derive(Debug)]
pub struct FailedAttempt {
    /// The address of the instance.
    pub instance: String,
    /// How long it took.
    pub took: Duration,
    /// What went wrong.
    pub cause: String,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.target, self.problem)?;
        for (at, attempt) in self.attempts.iter().enumerate() {
            let FailedAttempt { instance, took, cause } = attempt;
            f.write_str(if at == 0 { " (" } else { "; " })?;
            if took.is_zero() {
                write!(f, "{instance}: {cause}")?;
            } else {
                write!(f, "{instance} after {took:.1?}: {cause}")?;
            }
        }
        f.write_str(if self.attempts.is_empty() { "" } else { ")" })
    }
}

impl std::error::Error for CallError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_target_instances_and_causes() {
        let failed = |instance: &str, millis, cause: &str| FailedAttempt {
            instance: instance.into(),
            took: Duration::from_millis(millis),
            cause: cause.into(),
        };
        let mut error = CallError {
            target: "static:a:1,b:2".into(),
            problem: "3 attempts failed",
            attempts: vec![failed("a:1", 12, "connection reset"), failed("b:2", 0, "refused")],
        };
        assert_eq!(
            error.to_string(),
            "static:a:1,b:2: 3 attempts failed (a:1 after 12.0ms: connection reset; b:2: refused)"
        );
        error.attempts.clear();
        assert_eq!(error.to_string(), "static:a:1,b:2: 3 attempts failed");
    }
}
