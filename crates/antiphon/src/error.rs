//! Why an application could not start or had to end.

use std::error::Error as StdError;
use std::fmt;
use std::process::ExitCode;

use antiphon_config::{Mistake, Settings};
use antiphon_core::BoxError;

/// Any error, with the exit code that belongs to it. Every other error converts into it.
pub struct Error {
    exit: u8,
    cause: BoxError,
}

/// The result of an application.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The exit code of a mistake that the operator must mend: settings, files, ports.
    pub(crate) const MISTAKE: u8 = 2;

    /// A mistake of whoever starts the process: exit code 2.
    pub fn mistake(cause: impl Into<BoxError>) -> Self {
        Self { exit: Self::MISTAKE, cause: cause.into() }
    }

    /// With the place of the setting that it is about, if it is about one. `path` is the whole path of
    /// a setting, by how who complains calls it.
    pub(crate) fn placed(self, settings: &Settings, path: impl Fn(&str) -> String) -> Self {
        let mut cause: Option<&(dyn StdError + 'static)> = Some(&*self.cause);
        while let Some(error) = cause {
            if let Some(mistake) = error.downcast_ref::<Mistake>() {
                let error = settings.mistaken(&path(mistake.setting()), mistake.problem());
                return Self::mistake(error);
            }
            cause = error.source();
        }
        self
    }

    /// The exit code: 2 for what must be changed before the next start, 1 for the rest.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit)
    }
}

impl<E: Into<BoxError>> From<E> for Error {
    fn from(cause: E) -> Self {
        let cause = cause.into();
        let exit = if cause.is::<antiphon_config::Error>() { Self::MISTAKE } else { 1 };
        Self { exit, cause }
    }
}

impl fmt::Display for Error {
    /// One line: the error and its sources, each said once.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.cause.to_string();
        let mut source = self.cause.source();
        while let Some(error) = source {
            let next = error.to_string();
            if !said.contains(&next) {
                said.push_str(": ");
                said.push_str(&next);
            }
            source = StdError::source(error);
        }
        f.write_str(&said.replace('\n', " "))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error(exit {}, {self})", self.exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_that_says_everything_once() {
        let inner = std::io::Error::other("disk\nfull");
        let error = Error::mistake(inner);
        assert_eq!(error.to_string(), "disk full");
        assert!(format!("{error:?}").contains("exit 2"));
        assert!(format!("{:?}", Error::from("lost")).contains("exit 1"));
    }
}
