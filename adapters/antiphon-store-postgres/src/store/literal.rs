//! Values written into the text of a statement.
//!
//! What goes with COMMIT goes as text, for only so several statements make one round trip. Texts are
//! written as `E'…'`, which means the same whatever the session has set, and cannot be left but by
//! the quotes and backslashes that are doubled here. The zero byte ends a statement in the protocol
//! and is refused.

use std::io::Write as _;

use antiphon_outbox::StoreError;

/// A statement that grows. Only whole texts and ASCII are added, so it is UTF-8; it is kept as bytes
/// because pairs of digits are added faster that way.
#[derive(Debug, Default)]
pub(crate) struct Text(Vec<u8>);

impl Text {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(crate) fn into_string(self) -> String {
        match String::from_utf8(self.0) {
            Ok(text) => text,
            Err(_) => unreachable!("only whole texts and ASCII are added"),
        }
    }

    /// Adds what another text has.
    pub(crate) fn append(&mut self, other: &Self) -> &mut Self {
        self.0.extend_from_slice(&other.0);
        self
    }

    /// Adds SQL as it is.
    pub(crate) fn sql(&mut self, sql: &str) -> &mut Self {
        self.0.extend_from_slice(sql.as_bytes());
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
        self.sql("E'");
        // Both are ASCII, which is no part of any other character.
        for part in value.as_bytes().split_inclusive(|byte| matches!(byte, b'\'' | b'\\')) {
            self.0.extend_from_slice(part);
            if let Some(special @ (b'\'' | b'\\')) = part.last() {
                self.0.push(*special);
            }
        }
        Ok(self.sql("'"))
    }

    /// Adds bytes, for a column of type `bytea`.
    pub(crate) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.sql("E'\\\\x");
        self.hex(value);
        self.sql("'")
    }

    /// Adds an id, for a column of type `uuid`.
    pub(crate) fn id(&mut self, value: &[u8; 16]) -> &mut Self {
        self.sql("'");
        self.hex(value);
        self.sql("'")
    }

    fn hex(&mut self, value: &[u8]) {
        self.0.reserve(value.len() * 2);
        self.0.extend(value.iter().flat_map(|byte| DIGITS[usize::from(*byte)]));
    }
}

/// The two digits of each byte.
const DIGITS: [[u8; 2]; 256] = {
    let digit = b"0123456789abcdef";
    let mut digits = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        digits[byte] = [digit[byte >> 4], digit[byte & 15]];
        byte += 1;
    }
    digits
};

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
            assert_eq!(text.into_string(), written, "{value:?}");
        }
        assert!(Text::default().text("a\0b").is_err());
    }

    #[test]
    fn other_values_are_written_in_hex_and_decimal() {
        let mut text = Text::default();
        text.bytes(&[0, 0x1f, 0xff]).sql(",").id(&[0xab; 16]).sql(",").number(i64::MIN);
        text.sql(",").optional(None);
        assert_eq!(
            text.into_string(),
            "E'\\\\x001fff','abababababababababababababababab',-9223372036854775808,NULL"
        );
    }
}
