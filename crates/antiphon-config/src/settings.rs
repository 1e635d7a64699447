//! Settings as the parts of a process read them.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::de::{Place, Reader};
use crate::describe::{self, Described};
use crate::tree::{Node, Value};
use crate::{Error, Sources, error};

/// All settings of a process, read once when it starts.
#[derive(Debug)]
pub struct Settings {
    tree: Node,
    read: Mutex<Read>,
}

/// What was asked for.
#[derive(Debug, Default)]
struct Read {
    sections: BTreeSet<String>,
    effective: Vec<Described>,
}

impl Settings {
    /// Reads and merges all layers.
    ///
    /// # Errors
    /// A file that is not there, not text or not TOML; variables that contradict each other.
    pub fn load(sources: &Sources) -> Result<Self, Error> {
        Ok(Self { tree: sources.read()?, read: Mutex::default() })
    }

    /// Reads one section, by its dotted path. A section that is not there is read as an empty one,
    /// so defaults belong into `T` (`#[serde(default)]`); unknown keys are refused if `T` says so
    /// (`#[serde(deny_unknown_fields)]`), which it always should.
    ///
    /// # Errors
    /// The first key or value that `T` does not take.
    pub fn section<T>(&self, path: &str) -> Result<T, Error>
    where
        T: DeserializeOwned + Serialize,
    {
        let absent = Node::empty();
        self.read_node(path, self.tree.find(path).unwrap_or(&absent))
    }

    /// Reads the entry `name` of the table `table`, laid over the section `base`: what the entry does
    /// not say is as the section says it. For settings of single things among many of a kind; the name
    /// may have dots.
    ///
    /// # Errors
    /// As [`Self::section`].
    pub fn section_over<T>(&self, base: &str, table: &str, name: &str) -> Result<T, Error>
    where
        T: DeserializeOwned + Serialize,
    {
        let mut node = self.tree.find(base).cloned().unwrap_or_else(Node::empty);
        if let Some(Value::Table(entries)) = self.tree.find(table).map(|node| &node.value)
            && let Some(entry) = entries.get(name)
        {
            node.overlay(entry.node.clone());
        }
        let value = self.read_node(&format!("{table}.{name}"), &node)?;
        let mut read = self.read.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        read.sections.insert(table.to_owned());
        Ok(value)
    }

    fn read_node<T>(&self, path: &str, node: &Node) -> Result<T, Error>
    where
        T: DeserializeOwned + Serialize,
    {
        let value = T::deserialize(Reader::new(node, Place::Key(&Place::Root, path)))?;
        let effective = describe::section(path, &value, node);
        let mut read = self.read.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if read.sections.insert(path.to_owned()) {
            read.effective.extend(effective);
        }
        Ok(value)
    }

    /// The error that says what is wrong with a setting that was read, by its dotted path: with the place
    /// where it is written, or, where it is not, that of what is around it. See [`Mistake`](crate::Mistake).
    #[must_use]
    pub fn mistaken(&self, path: &str, problem: &str) -> Error {
        let mut node = &self.tree;
        for key in path.split('.') {
            let Value::Table(entries) = &node.value else { break };
            let Some(entry) = entries.get(key) else { break };
            node = &entry.node;
        }
        Error::new(problem).at(&node.origin, path)
    }

    /// Whether anything is set under this path.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        self.tree.find(path).is_some()
    }

    /// The names of the entries under a path, sorted: for sections that are named by the user.
    #[must_use]
    pub fn names(&self, path: &str) -> Vec<String> {
        match self.tree.find(path).map(|node| &node.value) {
            Some(Value::Table(entries)) => entries.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// Refuses what no [`Self::section`] asked for: call it when every part has read its own.
    ///
    /// # Errors
    /// The first setting that nobody knows, and the nearest name that somebody does.
    pub fn finish(&self) -> Result<(), Error> {
        let read = self.read.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut prefix = Vec::new();
        unread(&self.tree, &mut prefix, &read.sections)
    }

    /// Every setting that was read, with its value and where that came from; secrets are redacted.
    #[must_use]
    pub fn describe(&self) -> Vec<Described> {
        let read = self.read.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        read.effective.clone()
    }
}

/// Looks for entries that are neither in a section that was read nor on the way to one.
fn unread<'a>(
    node: &'a Node,
    prefix: &mut Vec<&'a str>,
    sections: &BTreeSet<String>,
) -> Result<(), Error> {
    let Value::Table(entries) = &node.value else {
        return Ok(());
    };
    for (key, entry) in entries {
        prefix.push(key);
        let path = prefix.join(".");
        let below = format!("{path}.");
        if !sections.contains(&path) {
            let on_the_way = sections.iter().any(|section| section.starts_with(&below));
            if !on_the_way || !matches!(entry.node.value, Value::Table(_)) {
                let parent = prefix[..prefix.len() - 1].join(".");
                let known = siblings(sections, &parent);
                return Err(Error::new(error::unknown(key, &known)).at(&entry.key, path));
            }
            unread(&entry.node, prefix, sections)?;
        }
        prefix.pop();
    }
    Ok(())
}

/// The names under `parent` that lead to sections.
fn siblings<'a>(sections: &'a BTreeSet<String>, parent: &str) -> Vec<&'a str> {
    let names: BTreeSet<&str> = sections
        .iter()
        .filter_map(|section| match parent {
            "" => Some(section.as_str()),
            _ => section.strip_prefix(parent)?.strip_prefix('.'),
        })
        .filter_map(|rest| rest.split('.').next())
        .collect();
    names.into_iter().collect()
}
