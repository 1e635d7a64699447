//! Values that are used and never shown.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroize;

use crate::Error;
use crate::tree::{Node, Origin, Value};

/// The name under which a secret asks for its value; only our own reader knows it, because only it
/// knows where the reference is written.
pub(crate) const MARK: &str = "$antiphon-config::Secret";

/// What is shown in place of a secret.
pub(crate) const REDACTED: &str = "[redacted]";

/// A value given by reference: `{ file = "/run/secrets/db" }` or `{ env = "DB_PASSWORD" }`.
///
/// A relative file is looked for beside the settings file that names it; one newline at the end is
/// left out. Never printed, and overwritten in memory when it is dropped.
#[derive(Clone)]
pub struct Secret<T: Zeroize = String>(T);

impl<T: Zeroize> Secret<T> {
    /// Hides a value.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value. Do not keep copies of it.
    #[must_use]
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<T: Zeroize> Serialize for Secret<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

impl<'de, T: Zeroize + FromStr> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(MARK, Resolved(PhantomData))
    }
}

struct Resolved<T>(PhantomData<T>);

impl<T: Zeroize + FromStr> Visitor<'_> for Resolved<T> {
    type Value = Secret<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Secret<T>, E> {
        // The parser's own error may quote the text.
        text.parse().map(Secret).map_err(|_| E::custom("the secret does not have the right form"))
    }
}

const EXPECTED: &str = "a secret by reference: { file = \"…\" } or { env = \"…\" }";

/// Follows the reference in `node`.
pub(crate) fn resolve(node: &Node) -> Result<String, Error> {
    let entries = match (&node.value, &node.origin) {
        // The environment is a place for secrets; files and command lines are not.
        (Value::Text(text), Origin::Environment(_)) => return Ok(text.clone()),
        (Value::Table(entries), _) if entries.len() == 1 => entries,
        _ => {
            return Err(Error::new(format!(
                "expected {EXPECTED}; a secret itself must not stand here"
            )));
        }
    };
    let Some((kind, entry)) = entries.first_key_value() else {
        return Err(Error::new(format!("expected {EXPECTED}")));
    };
    let (Value::String(target) | Value::Text(target)) = &entry.node.value else {
        return Err(Error::new(format!("expected {EXPECTED}")));
    };
    match kind.as_str() {
        "file" => read_file(target, &entry.node.origin),
        "env" => read_variable(target),
        other => Err(Error::new(format!("expected {EXPECTED}, found `{other}`"))),
    }
}

fn read_file(target: &str, origin: &Origin) -> Result<String, Error> {
    let path = origin.folder().unwrap_or_else(|| "".as_ref()).join(target);
    let mut text = std::fs::read_to_string(&path).map_err(|error| {
        Error::new(format!("cannot read the secret file {}: {error}", path.display()))
    })?;
    let end = text.strip_suffix('\n').unwrap_or(&text);
    let end = end.strip_suffix('\r').unwrap_or(end).len();
    text.truncate(end);
    Ok(text)
}

#[expect(clippy::disallowed_methods, reason = "this is the crate through which others read it")]
fn read_variable(name: &str) -> Result<String, Error> {
    std::env::var(name).map_err(|error| {
        let problem = match error {
            std::env::VarError::NotPresent => "is not set",
            std::env::VarError::NotUnicode(_) => "is not text",
        };
        Error::new(format!("the secret's environment variable {name} {problem}"))
    })
}
