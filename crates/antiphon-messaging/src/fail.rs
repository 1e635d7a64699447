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
    error: BoxError,
}

impl Fail {
    /// Try again, as the consumer's policy says.
    pub fn retry(error: impl Into<BoxError>) -> Self {
        Self {
            retry: Retry::Later,
            error: error.into(),
        }
    }

    /// Try again, but not before `wait` has passed.
    pub fn retry_after(wait: Duration, error: impl Into<BoxError>) -> Self {
        Self {
            retry: Retry::After(wait),
            error: error.into(),
        }
    }

    /// What is needed is away: try again, and do not count the attempt.
    pub fn defer(error: impl Into<BoxError>) -> Self {
        Self {
            retry: Retry::Outage,
            error: error.into(),
        }
    }

    /// It would fail again: straight to the dead letters.
    pub fn permanent(error: impl Into<BoxError>) -> Self {
        Self {
            retry: Retry::Never,
            error: error.into(),
        }
    }

    /// Whether to try again.
    #[must_use]
    pub fn hint(&self) -> Retry {
        self.retry
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
        let retry = error
            .downcast_ref::<Status>()
            .map_or(Retry::Later, Status::retry);
        Self { retry, error }
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
