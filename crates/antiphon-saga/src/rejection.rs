//! Why a participant or a local step did not do its work.

use std::fmt;

use antiphon_core::Status;
use antiphon_messaging::Fail;

/// The work was not done: refused for a reason of the business, or failed.
///
/// A refusal is an answer: it is final, travels to the saga, and turns it back. A failure is
/// technical: nobody hears of it, and the work is tried again. Every error and every [`Fail`]
/// converts into a failure, so `?` just works; a refusal is always explicit.
#[derive(Debug)]
pub struct Rejection(Why);

#[derive(Debug)]
enum Why {
    Refused { reason: String, message: String },
    Failed(Fail),
}

impl Rejection {
    /// No, with the reason and the message of `status`; its code's name where it has no reason.
    #[must_use]
    pub fn refuse(status: impl Into<Status>) -> Self {
        let status = status.into();
        let reason = match status.reason() {
            "" => status.code().name(),
            reason => reason,
        };
        Self::because(reason, status.message())
    }

    /// No, for a stable reason (`OUT_OF_STOCK`) and with a message for people.
    #[must_use]
    pub fn because(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self(Why::Refused { reason: reason.into(), message: message.into() })
    }

    /// The refusal, as reason and message.
    ///
    /// # Errors
    /// It is a failure.
    pub(crate) fn into_refusal(self) -> Result<(String, String), Fail> {
        match self.0 {
            Why::Refused { reason, message } => Ok((reason, message)),
            Why::Failed(fail) => Err(fail),
        }
    }
}

impl<E: Into<Fail>> From<E> for Rejection {
    fn from(error: E) -> Self {
        Self(Why::Failed(error.into()))
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Why::Refused { reason, message } => write!(f, "{reason}: {message}"),
            Why::Failed(fail) => fail.fmt(f),
        }
    }
}
