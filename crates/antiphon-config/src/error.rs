//! The one line an operator reads when a setting is wrong.

use std::fmt;

use serde::de::{Expected, Unexpected};

use crate::env;
use crate::suggest::{nearest, one_of};
use crate::tree::Origin;

/// A setting that cannot be used. Prints as one line: where it is written, which setting it is,
/// what is wrong, and what to write instead.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    origin: Option<Origin>,
    setting: Option<String>,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    Words(String),
    /// A setting without a default is not there.
    Missing(&'static str),
}

impl Error {
    pub(crate) fn new(problem: impl Into<String>) -> Self {
        Self::from_problem(Problem::Words(problem.into()))
    }

    fn from_problem(problem: Problem) -> Self {
        Self(Box::new(Inner { origin: None, setting: None, problem }))
    }

    /// Says where, unless somebody who knew better already did.
    pub(crate) fn at(mut self, origin: &Origin, setting: impl fmt::Display) -> Self {
        if self.0.origin.is_none() {
            self.0.origin = Some(origin.clone());
            let setting = setting.to_string();
            self.0.setting = (!setting.is_empty()).then_some(setting);
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.0.origin {
            write!(f, "{origin}: ")?;
        }
        if let Some(setting) = &self.0.setting {
            write!(f, "`{setting}`: ")?;
        }
        match (&self.0.problem, &self.0.origin, &self.0.setting) {
            (Problem::Words(words), ..) => one_line(words, f),
            // There is no place to point at, so say where it can be written.
            (Problem::Missing(field), Some(Origin::Absent), Some(section)) => {
                let variable = env::variable(&format!("{section}.{field}"));
                write!(
                    f,
                    "`{field}` is required and not set: write it under [{section}] in \
                     antiphon.toml, or set {variable}"
                )
            }
            (Problem::Missing(field), ..) => {
                write!(f, "`{field}` is required here and not set")
            }
        }
    }
}

/// Whatever a source of the message put into it, the operator gets one line.
fn one_line(words: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut lines = words.lines().map(str::trim).filter(|line| !line.is_empty());
    f.write_str(lines.next().unwrap_or_default())?;
    lines.try_for_each(|line| write!(f, ", {line}"))
}

impl std::error::Error for Error {}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(problem: T) -> Self {
        Self::new(problem.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {}, found {found}", in_words(&expected.to_string())))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {expected}, found {length} elements"))
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        let hint = nearest(found, known).map(|name| format!("did you mean \"{name}\"? "));
        Self::new(format!(
            "expected {}, found \"{found}\"; {}",
            one_of(known),
            hint.as_deref().unwrap_or("nothing is near it")
        ))
    }

    fn unknown_field(found: &str, known: &'static [&'static str]) -> Self {
        Self::new(unknown(found, known))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::from_problem(Problem::Missing(field))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(format!("`{field}` is set twice"))
    }
}

/// What to say about a key that nobody knows.
pub(crate) fn unknown(found: &str, known: &[&str]) -> String {
    match nearest(found, known) {
        Some(name) => format!("unknown setting; did you mean `{name}`?"),
        None if known.is_empty() => "unknown setting; none is known here".to_owned(),
        None => format!("unknown setting; known here are {}", one_of(known)),
    }
}

/// Rust's names of number types in words.
fn in_words(expected: &str) -> String {
    let whole = |min: &str, max: &str| format!("a whole number from {min} to {max}");
    match expected {
        "u8" => whole("0", "255"),
        "u16" => whole("0", "65535"),
        "u32" => whole("0", "4294967295"),
        "u64" | "u128" | "usize" => "a whole number, zero or more".to_owned(),
        "i8" => whole("-128", "127"),
        "i16" => whole("-32768", "32767"),
        "i32" => whole("-2147483648", "2147483647"),
        "i64" | "i128" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        other if other.starts_with("struct ") || other == "a map" => "a section".to_owned(),
        other => other.to_owned(),
    }
}
