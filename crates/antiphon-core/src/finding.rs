//! What a check has found: for the command that looks at a running system and says what to change.

use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// Good to know.
    Note,
    /// Works, and will hurt: messages may be lost when the power fails, a disk fills.
    Warning,
    /// Does not work.
    Problem,
}

impl Severity {
    /// The word for it in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at: `version`, `durability`, `stream orders`.
    pub subject: String,
    /// What was found.
    pub text: String,
    /// What to change, if anything.
    pub advice: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn fine(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { severity: Severity::Fine, subject: subject.into(), text: text.into(), advice: None }
    }

    /// Good to know.
    pub fn note(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { severity: Severity::Note, ..Self::fine(subject, text) }
    }

    /// Works, and will hurt; `advice` says what to change.
    pub fn warning(
        subject: impl Into<String>,
        text: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let advice = Some(advice.into());
        Self { severity: Severity::Warning, advice, ..Self::fine(subject, text) }
    }

    /// Does not work; `advice` says what to change.
    pub fn problem(
        subject: impl Into<String>,
        text: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Problem, ..Self::warning(subject, text, advice) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.severity.name(), self.subject, self.text)?;
        match &self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_what_to_do() {
        let finding = Finding::warning("durability", "fsync is off", "set `fsync = on`");
        assert_eq!(finding.to_string(), "warning: durability: fsync is off; set `fsync = on`");
        assert!(Severity::Problem > Severity::Warning);
    }
}
