//! Reads small protobuf messages field by field, where generating a type would cost more.

use buffa::encoding::{Tag, WireType, decode_varint, skip_field};
use bytes::Buf;

/// A field's value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// An integer, a boolean or an enum.
    Number(u64),
    /// A text, bytes or a message.
    Bytes(&'a [u8]),
    /// A fixed-width number, which nobody here reads.
    Other,
}

/// The fields of a message, by number; `None` as an item when the bytes are not a message.
#[derive(Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u32, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Option<(u32, Value<'a>)> {
        let tag = Tag::decode(&mut self.0).ok()?;
        let value = match tag.wire_type() {
            WireType::Varint => Value::Number(decode_varint(&mut self.0).ok()?),
            WireType::LengthDelimited => {
                let len = usize::try_from(decode_varint(&mut self.0).ok()?).ok()?;
                let bytes = self.0.get(..len)?;
                self.0.advance(len);
                Value::Bytes(bytes)
            }
            _ => {
                skip_field(tag, &mut self.0).ok()?;
                Value::Other
            }
        };
        Some((tag.field_number(), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_order() {
        let fields: Option<Vec<_>> = Fields(b"\x08\x96\x01\x12\x02hi\x1d\0\0\0\0").collect();
        let expected = vec![(1, Value::Number(150)), (2, Value::Bytes(b"hi")), (3, Value::Other)];
        assert_eq!(fields, Some(expected));
    }

    #[test]
    fn what_is_no_message_ends_with_none() {
        for bytes in [&b"\x08"[..], b"\x12\x05hi", b"\xff", b"\x1d\0"] {
            assert_eq!(Fields(bytes).last(), Some(None), "{bytes:?}");
        }
    }
}
