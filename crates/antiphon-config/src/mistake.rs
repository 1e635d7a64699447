//! What is wrong with settings that could be read.

use std::fmt;
use std::time::Duration;

use crate::HumanDuration;

/// A setting of a section that could be read and makes no sense.
///
/// Whoever checks a section knows the setting and what is wrong with it, and not where the section is
/// written; [`Settings::mistaken`](crate::Settings::mistaken) knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    setting: String,
    problem: String,
}

impl Mistake {
    /// The setting, by its path below the section, and what is wrong with it.
    pub fn new(setting: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { setting: setting.into(), problem: problem.into() }
    }

    /// The setting, by its path below the section.
    #[must_use]
    pub fn setting(&self) -> &str {
        &self.setting
    }

    /// What is wrong with it.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.problem)
    }
}

impl std::error::Error for Mistake {}

impl HumanDuration {
    /// Refuses less than `least` for the setting of this name.
    ///
    /// # Errors
    /// It is less.
    pub fn at_least(self, setting: &str, least: Duration) -> Result<(), Mistake> {
        if self.0 < least {
            return Err(Mistake::new(setting, format!("{self} is less than {}", Self(least))));
        }
        Ok(())
    }
}
