//! The fields of an event or a span, as text or JSON.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};

/// Fields that are never written, wherever they come from.
const SENSITIVE: [&str; 10] = [
    "password",
    "passwd",
    "secret",
    "token",
    "authorization",
    "cookie",
    "set-cookie",
    "api_key",
    "apikey",
    "private_key",
];

/// What stands in the place of a sensitive value.
const REDACTED: &str = "[redacted]";

/// Decides which fields are sensitive, by their names.
#[derive(Clone, Debug)]
pub(super) struct Redaction(Vec<String>);

impl Redaction {
    pub(super) fn new(more: &[String]) -> Self {
        let all = SENSITIVE.into_iter().chain(more.iter().map(String::as_str));
        Self(all.map(str::to_ascii_lowercase).collect())
    }

    /// Whether the last part of a dotted name is a sensitive one, or ends like one: `db.password`,
    /// `access_token`.
    fn hides(&self, name: &str) -> bool {
        let name = name.rsplit('.').next().unwrap_or(name).to_ascii_lowercase();
        self.0.iter().any(|sensitive| {
            name.strip_suffix(sensitive.as_str())
                .is_some_and(|front| front.is_empty() || front.ends_with(['_', '-']))
        })
    }
}

/// The fields of one span or event, in the order they were given.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields {
    pub(super) message: String,
    pub(super) rest: Vec<(&'static str, Value)>,
}

/// A value, as text that is JSON already or has to be quoted.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// A number or a truth.
    Plain(String),
    Text(String),
}

/// Collects fields.
pub(super) struct Collect<'a> {
    pub(super) fields: &'a mut Fields,
    pub(super) redaction: &'a Redaction,
}

impl Collect<'_> {
    fn put(&mut self, field: &Field, value: impl FnOnce() -> Value) {
        let name = field.name();
        if name == "message" {
            let (Value::Text(text) | Value::Plain(text)) = value();
            self.fields.message = text;
            return;
        }
        // Fields of the `log` bridge say what the line says already.
        if name.starts_with("log.") {
            return;
        }
        let hidden = self.redaction.hides(name);
        let value = if hidden { Value::Text(REDACTED.to_owned()) } else { value() };
        match self.fields.rest.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.fields.rest.push((name, value)),
        }
    }
}

impl Visit for Collect<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinity.
        self.put(field, || match value.is_finite() {
            true => Value::Plain(value.to_string()),
            false => Value::Text(value.to_string()),
        });
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, || Value::Plain(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, || Value::Plain(value.to_string()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, || Value::Plain(value.to_string()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, || Value::Text(value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        self.put(field, || Value::Text(with_sources(error)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, || Value::Text(format!("{value:?}")));
    }
}

/// An error and everything that caused it, in one line.
fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

/// Writes `text` as a JSON string.
pub(super) fn write_quoted(line: &mut String, text: &str) {
    line.push('"');
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if c.is_control() => {
                // Writing into a string does not fail.
                let _ = write!(line, "\\u{:04x}", u32::from(c));
            }
            c => line.push(c),
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sensitive_names_are_known_by_their_last_part() {
        let redaction = Redaction::new(&["card".to_owned()]);
        for name in ["password", "db.password", "Access_Token", "card", "http.request.set-cookie"] {
            assert!(redaction.hides(name), "{name}");
        }
        for name in ["tokens", "discard", "password_age", "order"] {
            assert!(!redaction.hides(name), "{name}");
        }
    }

    #[test]
    fn any_text_is_one_line_of_json() {
        let text = "a \"quote\", a \\, a\nline, a \u{1}, ünïcode \u{2028}";
        let mut line = String::new();
        write_quoted(&mut line, text);
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        assert!(!line.contains('\n'));
    }
}
