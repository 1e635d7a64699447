//! The layer of the settings file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::Error;
use crate::tree::{Entry, Node, Origin, Value};

/// Reads a file's text into a tree.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Node, Error> {
    let places = Places { path: Arc::new(path.to_owned()), text };
    let document = DeTable::parse(text).map_err(|error| {
        let origin = places.at(error.span().unwrap_or(text.len()..text.len()));
        Error::new(format!("not valid TOML: {}", error.message())).at(&origin, "")
    })?;
    let origin = places.at(0..0);
    Ok(Node { value: places.table(document.get_ref())?, origin })
}

/// Turns positions in the text into places that an editor understands.
struct Places<'a> {
    path: Arc<PathBuf>,
    text: &'a str,
}

impl Places<'_> {
    fn at(&self, span: Range<usize>) -> Origin {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Origin::File {
            path: Arc::clone(&self.path),
            line: before.bytes().filter(|byte| *byte == b'\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    fn table(&self, table: &DeTable<'_>) -> Result<Value, Error> {
        let mut entries = BTreeMap::new();
        for (key, value) in table {
            let entry = Entry { key: self.at(key.span()), node: self.node(value)? };
            entries.insert(key.get_ref().clone().into_owned(), entry);
        }
        Ok(Value::Table(entries))
    }

    fn node(&self, value: &Spanned<DeValue<'_>>) -> Result<Node, Error> {
        let origin = self.at(value.span());
        let value = match value.get_ref() {
            DeValue::String(text) => Value::String(text.clone().into_owned()),
            DeValue::Boolean(truth) => Value::Boolean(*truth),
            DeValue::Datetime(moment) => Value::Datetime(moment.to_string()),
            DeValue::Integer(number) => {
                let read = i64::from_str_radix(number.as_str(), number.radix());
                Value::Integer(read.map_err(|_| {
                    Error::new(format!("the number {number} is too large")).at(&origin, "")
                })?)
            }
            DeValue::Float(number) => Value::Float(number.as_str().parse().map_err(|_| {
                Error::new(format!("{} is not a number", number.as_str())).at(&origin, "")
            })?),
            DeValue::Array(items) => {
                Value::Array(items.iter().map(|item| self.node(item)).collect::<Result<_, _>>()?)
            }
            DeValue::Table(table) => self.table(table)?,
        };
        Ok(Node { value, origin })
    }
}
