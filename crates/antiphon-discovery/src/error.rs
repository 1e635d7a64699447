//! Why a registry could not answer.

use antiphon_core::BoxError;

/// A registry did not answer, or did not do what was asked.
///
/// Whoever watches or registers goes on trying either way; what differs is who must do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// It cannot be reached, or is not able to answer now: waiting may help.
    #[error("{context}")]
    Away {
        /// What was wanted, and of whom.
        context: String,
        /// The cause.
        #[source]
        source: Option<BoxError>,
    },
    /// It refuses, or what it says makes no sense: somebody has to change something.
    #[error("{context}")]
    Refused {
        /// What was wanted, why it is refused, and what to change.
        context: String,
        /// The cause.
        #[source]
        source: Option<BoxError>,
    },
    /// What was registered is not there any more: its lease has run out, or the registry forgot it.
    /// It is registered again at once.
    #[error("{context}")]
    Lost {
        /// What was lost, and how that is known.
        context: String,
    },
}

impl RegistryError {
    /// It cannot be reached.
    pub fn away(context: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::Away { context: context.into(), source: Some(source.into()) }
    }

    /// It took longer than it may.
    pub fn silent(context: impl Into<String>) -> Self {
        Self::Away { context: context.into(), source: None }
    }

    /// It refuses.
    pub fn refused(context: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::Refused { context: context.into(), source: Some(source.into()) }
    }

    /// What it says makes no sense.
    pub fn invalid(context: impl Into<String>) -> Self {
        Self::Refused { context: context.into(), source: None }
    }

    /// A registration is gone.
    pub fn lost(context: impl Into<String>) -> Self {
        Self::Lost { context: context.into() }
    }

    /// Whether somebody has to change something before it can work.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// The error and its causes, in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let words = error.to_string();
            if !text.contains(&words) {
                text.push_str(": ");
                text.push_str(&words);
            }
            cause = error.source();
        }
        text
    }
}
