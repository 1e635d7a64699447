//! Lists of values as JSON text, which SQLite's `json_each` turns into rows.
//!
//! So one prepared statement serves any number of values. Numbers and names only; no floats.

use std::fmt::Write as _;

/// The array of `values`.
pub(super) fn array<T: Json>(values: impl IntoIterator<Item = T>) -> String {
    let mut text = String::from("[");
    for value in values {
        if text.len() > 1 {
            text.push(',');
        }
        value.write(&mut text);
    }
    text.push(']');
    text
}

/// What can stand in an array.
pub(super) trait Json {
    fn write(&self, text: &mut String);
}

macro_rules! integers {
    ($($integer:ty),+) => {$(
        impl Json for $integer {
            fn write(&self, text: &mut String) {
                let _ = write!(text, "{self}");
            }
        }
    )+};
}
integers!(u32, i64);

impl Json for &str {
    fn write(&self, text: &mut String) {
        text.push('"');
        for c in self.chars() {
            match c {
                '"' | '\\' => text.extend(['\\', c]),
                c if c.is_control() && c.is_ascii() => {
                    let _ = write!(text, "\\u{:04x}", u32::from(c));
                }
                c => text.push(c),
            }
        }
        text.push('"');
    }
}

impl<A: Json, B: Json> Json for (A, B) {
    fn write(&self, text: &mut String) {
        text.push('[');
        self.0.write(text);
        text.push(',');
        self.1.write(text);
        text.push(']');
    }
}

impl<A: Json, B: Json, C: Json> Json for (A, B, C) {
    fn write(&self, text: &mut String) {
        text.push('[');
        self.0.write(text);
        text.push(',');
        self.1.write(text);
        text.push(',');
        self.2.write(text);
        text.push(']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_json() {
        assert_eq!(array([1_i64, -2]), "[1,-2]");
        assert_eq!(array(Vec::<i64>::new()), "[]");
        assert_eq!(array([("a\"\\\n", 1_u32, 2_i64)]), r#"[["a\"\\\u000a",1,2]]"#);
    }
}
