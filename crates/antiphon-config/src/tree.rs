//! Settings before anybody gave them a type: a tree whose every value knows where it was written.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Error;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Line and column count from one; columns count characters.
    File { path: Arc<PathBuf>, line: usize, column: usize },
    /// The name of the variable.
    Environment(Arc<str>),
    /// What the program calls it: `--listen`.
    Flag(Arc<str>),
    /// Nowhere: the section is not there.
    Absent,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => f.write_str(name),
            Self::Absent => f.write_str("settings"),
        }
    }
}

impl Origin {
    /// The folder that relative paths in the value are meant to start from.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } => path.parent(),
            Self::Environment(_) | Self::Flag(_) | Self::Absent => None,
        }
    }
}

/// A value with its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Text whose type is decided by who reads it: from the environment or a flag.
    Text(String),
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// A date or time; read as text.
    Datetime(String),
    Array(Vec<Node>),
    Table(BTreeMap<String, Entry>),
}

/// An entry of a table. The key has a place of its own, for errors about the key.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Origin,
    pub(crate) node: Node,
}

impl Node {
    pub(crate) fn empty() -> Self {
        Self { value: Value::Table(BTreeMap::new()), origin: Origin::Absent }
    }

    /// The value under a dotted path.
    pub(crate) fn find(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |node, key| match &node.value {
            Value::Table(entries) => entries.get(key).map(|entry| &entry.node),
            _ => None,
        })
    }

    /// Puts `upper` over this: tables are merged key by key, everything else is replaced.
    pub(crate) fn overlay(&mut self, upper: Self) {
        match (&mut self.value, upper.value) {
            (Value::Table(lower), Value::Table(upper)) => {
                for (key, entry) in upper {
                    match lower.get_mut(&key) {
                        Some(under) => under.node.overlay(entry.node),
                        None => {
                            lower.insert(key, entry);
                        }
                    }
                }
            }
            (_, value) => *self = Self { value, origin: upper.origin },
        }
    }

    /// Writes `text` under a dotted path of a layer that holds nothing but texts.
    pub(crate) fn put(
        &mut self,
        path: &[String],
        text: &str,
        origin: &Origin,
    ) -> Result<(), Error> {
        let clash = |other: &Origin, depth: usize| {
            let setting = path[..depth].join(".");
            Error::new(format!(
                "{origin} and {other} contradict each other: `{setting}` cannot be both a value and \
                 a section"
            ))
        };
        let mut node = self;
        for (depth, key) in path.iter().enumerate() {
            let Value::Table(entries) = &mut node.value else {
                return Err(clash(&node.origin, depth));
            };
            let entry = entries.entry(key.clone()).or_insert_with(|| Entry {
                key: origin.clone(),
                node: Self { value: Value::Table(BTreeMap::new()), origin: origin.clone() },
            });
            node = &mut entry.node;
        }
        match &node.value {
            Value::Table(entries) if !entries.is_empty() => Err(clash(&node.origin, path.len())),
            _ => {
                *node = Self { value: Value::Text(text.to_owned()), origin: origin.clone() };
                Ok(())
            }
        }
    }
}
