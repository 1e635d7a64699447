//! Values written into the text of a statement.
//!
//! What goes with COMMIT goes as text, for only so several statements make one round trip. Texts are
//! written as `E'…'`, which means the same whatever the session has set, and cannot be left but by
//! the quotes and backslashes that are doubled here. The zero byte ends a statement in the protocol
//! and is refused.

use std::fmt::Write as _;

use antiphon_outbox::StoreError;

/// A statement that grows.
#[derive(Debug, Default)]
pub(crate) struct Text(String);

impl Text {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn into_string(self) -> String {
        self.0
    }

    /// Adds SQL as it is.
    pub(crate) fn sql(&mut self, sql: &str) -> &mut Self {
        self.0.push_str(sql);
        self
    }

    /// Adds a number.
    pub(crate) fn number(&mut self, value: impl Into<i64>) -> &mut Self {
        let value: i64 = value.into();
        let _ = write!(self.0, "{value}");
        self
    }

    /// Adds a number, or NULL.
    pub(crate) fn optional(&mut self, value: Option<i64>) -> &mut Self {
        match value {
            Some(value) => self.number(value),
            None => self.sql("NULL"),
        }
    }

    /// Adds a text.
    ///
    /// # Errors
    /// It has a zero byte.
    pub(crate) fn text(&mut self, value: &str) -> Result<&mut Self, StoreError> {
        if value.contains('\0') {
            let source = "PostgreSQL keeps no text with a zero byte".into();
            return Err(StoreError::Failed { action: "writing a text", source });
        }
        self.0.push_str("E'");
        let mut rest = value;
        while let Some(at) = rest.find(['\'', '\\']) {
            let (plain, special) = rest.split_at(at);
            self.0.push_str(plain);
            self.0.push_str(&special[..1]);
            self.0.push_str(&special[..1]);
            rest = &special[1..];
        }
        self.0.push_str(rest);
        self.0.push('\'');
        Ok(self)
    }

    /// Adds bytes, for a column of type `bytea`.
    pub(crate) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.0.push_str("E'\\\\x");
        self.hex(value);
        self.0.push('\'');
        self
    }

    /// Adds an id, for a column of type `uuid`.
    pub(crate) fn id(&mut self, value: &[u8; 16]) -> &mut Self {
        self.0.push('\'');
        self.hex(value);
        self.0.push('\'');
        self
    }

    fn hex(&mut self, value: &[u8]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        self.0.reserve(value.len() * 2 + 1);
        for byte in value {
            self.0.push(char::from(DIGITS[usize::from(byte >> 4)]));
            self.0.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_gets_out_of_its_quotes() {
        for (value, written) in [
            ("", "E''"),
            ("plain", "E'plain'"),
            ("it's", "E'it''s'"),
            ("'; DROP TABLE x; --", "E'''; DROP TABLE x; --'"),
            ("\\'", "E'\\\\'''"),
            ("ä\n🔑", "E'ä\n🔑'"),
        ] {
            let mut text = Text::default();
            text.text(value).unwrap();
            assert_eq!(text.as_str(), written, "{value:?}");
        }
        assert!(Text::default().text("a\0b").is_err());
    }

    #[test]
    fn other_values_are_written_in_hex_and_decimal() {
        let mut text = Text::default();
        text.bytes(&[0, 0x1f, 0xff]).sql(",").id(&[0xab; 16]).sql(",").number(i64::MIN);
        text.sql(",").optional(None);
        assert_eq!(
            text.as_str(),
            "E'\\\\x001fff','abababababababababababababababab',-9223372036854775808,NULL"
        );
    }
}
