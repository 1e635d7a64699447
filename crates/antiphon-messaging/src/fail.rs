//! How a handler says that it could not handle a message.

use std::fmt;
use std::time::Duration;

use antiphon_core::{BoxError, Retry, Status};

/// Why a message was not handled, and whether to try again.
///
/// Every error converts into one that is tried again, so `?` just works; a [`Status`] says by its
/// code. Stopping for good takes [`Fail::permanent`].
pub struct Fail {
    retry: Retry,
    code: Option<&'static str>,
    error: BoxError,
}

impl Fail {
    fn new(retry: Retry, error: impl Into<BoxError>) -> Self {
        Self { retry, code: None, error: error.into() }
    }

    /// Try again, as the consumer's policy says.
    pub fn retry(error: impl Into<BoxError>) -> Self {
        Self::new(Retry::Later, error)
    }

    /// Try again, but not before `wait` has passed.
    pub fn retry_after(wait: Duration, error: impl Into<BoxError>) -> Self {
        Self::new(Retry::After(wait), error)
    }

    /// What is needed is away: try again, and do not count the attempt.
    pub fn defer(error: impl Into<BoxError>) -> Self {
        Self::new(Retry::Outage, error)
    }

    /// It would fail again: straight to the dead letters.
    pub fn permanent(error: impl Into<BoxError>) -> Self {
        Self::new(Retry::Never, error)
    }

    /// With the stable word that the dead letter gets if this failure ends it (`decode`,
    /// `dedup-horizon`), in place of `permanent` or `attempts`.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// Whether to try again.
    #[must_use]
    pub fn hint(&self) -> Retry {
        self.retry
    }

    /// The stable word for the dead letter, if one was given.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        self.code
    }

    /// The cause, with its chain of sources in one line.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = self.error.to_string();
        let mut source = self.error.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Fail {
    fn from(error: E) -> Self {
        let error: BoxError = Box::new(error);
        let retry = error.downcast_ref::<Status>().map_or(Retry::Later, Status::retry);
        Self { retry, code: None, error }
    }
}

/// For a call that does what a handler does: the caller is told nothing, the log everything.
impl From<Fail> for Status {
    fn from(fail: Fail) -> Self {
        Self::internal(fail.error)
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl fmt::Debug for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fail({:?}, {})", self.retry, self.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use antiphon_core::Code;

    #[test]
    fn an_error_says_itself_whether_to_try_again() {
        let plain: Fail = std::io::Error::other("disk").into();
        assert_eq!(plain.hint(), Retry::Later);
        let status: Fail = Status::invalid_argument("no such card").into();
        assert_eq!(status.hint(), Retry::Never);
        let status: Fail = Status::new(Code::Internal, "x").with_retry(Retry::Outage).into();
        assert_eq!(status.hint(), Retry::Outage);
    }

    #[test]
    fn the_description_names_the_whole_chain() {
        let fail = Fail::permanent(
            Status::internal(std::io::Error::other("disk full"))
                .with_source(std::io::Error::other("disk full")),
        );
        assert!(fail.describe().contains("disk full"), "{}", fail.describe());
    }
}
