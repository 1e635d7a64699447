//! What a command prints: the same rows as a table for people or as JSON for programs.

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Map, Value};

use crate::output::say;

/// How rows are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
}

/// Rows under columns. What is not known is `Value::Null`.
#[derive(Debug)]
pub(crate) struct Listing {
    columns: &'static [&'static str],
    rows: Vec<Vec<Value>>,
    /// What the table says when there are no rows.
    nothing: &'static str,
}

impl Listing {
    pub(crate) fn new(columns: &'static [&'static str], nothing: &'static str) -> Self {
        Self { columns, rows: Vec::new(), nothing }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [Value; N]) {
        debug_assert_eq!(N, self.columns.len(), "a cell for each column");
        self.rows.push(cells.into());
    }

    /// Prints all of it.
    pub(crate) fn print(&self, format: Format) {
        match format {
            Format::Json => say!("{:#}", self.to_json()),
            Format::Table if self.rows.is_empty() => say!("{}", self.nothing),
            Format::Table => say!("{}", self.to_table()),
        }
    }

    fn to_json(&self) -> Value {
        let object = |row: &Vec<Value>| {
            let names = self.columns.iter().map(|name| (*name).to_owned());
            Value::Object(names.zip(row.iter().cloned()).collect::<Map<_, _>>())
        };
        Value::Array(self.rows.iter().map(object).collect())
    }

    fn to_table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(self.columns.iter().map(|name| name.to_uppercase().replace('_', " ")));
        for row in &self.rows {
            table.add_row(row.iter().map(cell));
        }
        table.trim_fmt()
    }
}

/// A value as people read it.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_rows_are_a_table_and_json() {
        let mut listing = Listing::new(&["name", "lag"], "none");
        listing.row([json!("points.orders"), json!(3)]);
        listing.row([json!("a"), Value::Null]);
        let table = listing.to_table();
        assert!(table.contains("NAME") && table.contains("points.orders"), "{table}");
        assert!(table.lines().nth(2).is_some_and(|line| line.contains('-')), "{table}");
        assert_eq!(
            listing.to_json(),
            json!([{"name": "points.orders", "lag": 3}, {"name": "a", "lag": null}])
        );
    }
}
