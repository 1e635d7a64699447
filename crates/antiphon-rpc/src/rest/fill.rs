//! Adds the fields that are zero to the JSON of an answer.
//!
//! Canonical JSON leaves out fields that hold their type's zero value, so `{"onHand":0}` would be
//! `{}`, and every client would have to know the contract to read the answer. Over REST they are
//! there. Fields that can be "not set" stay out when they are not set.

use bytes::{Bytes, BytesMut};

use super::scan::Scanner;
use super::schema::{Count, FieldShape, Leaf, Schema, Shape, ShapeId};

/// The JSON of a message with all its zeros. The same bytes when nothing is missing.
pub(super) fn zeros(schema: &Schema, shape: ShapeId, json: Bytes) -> Bytes {
    let mut filler = Filler {
        schema,
        scanner: Scanner::new(&json),
        seen: Vec::new(),
        missing: Vec::new(),
        missing_len: 0,
    };
    // Text that our encoder did not write is sent as it is.
    if filler.message(shape).is_none() || filler.missing.is_empty() {
        return json;
    }
    let mut filled = BytesMut::with_capacity(json.len() + filler.missing_len);
    let mut from = 0;
    for (at, text) in filler.missing {
        filled.extend_from_slice(&json[from..at]);
        from = at;
        // The first member of an object has no comma in front.
        let first = filled.last() == Some(&b'{');
        filled.extend_from_slice(&text[usize::from(first)..]);
    }
    filled.extend_from_slice(&json[from..]);
    filled.freeze()
}

struct Filler<'a> {
    schema: &'a Schema,
    scanner: Scanner<'a>,
    /// One bit per field, of each message that is being walked over.
    seen: Vec<u64>,
    /// Where something is missing, and what, with a comma in front.
    missing: Vec<(usize, &'a [u8])>,
    missing_len: usize,
}

impl Filler<'_> {
    fn message(&mut self, id: ShapeId) -> Option<()> {
        let shape = self.schema.shape(id);
        let base = self.seen.len();
        self.seen.resize(base + shape.fields.len().div_ceil(64), 0);
        self.scanner.expect(b'{')?;
        let mut more = self.scanner.any(b'}')?;
        let mut next = 0;
        while more {
            let name = self.scanner.name()?;
            let place = place(shape, name, next)?;
            next = place + 1;
            self.seen[base + place / 64] |= 1 << (place % 64);
            let field = &shape.fields[place];
            match field.leaf {
                Leaf::Message(inner) => self.messages(inner, field.count)?,
                _ => {
                    self.scanner.value()?;
                }
            }
            more = self.scanner.more(b'}')?;
        }
        let end = self.scanner.at() - 1;
        for (place, field) in shape.fields.iter().enumerate() {
            let seen = self.seen[base + place / 64] >> (place % 64) & 1 == 1;
            if let Some(zero) = &field.zero
                && !seen
            {
                self.missing.push((end, zero.as_bytes()));
                self.missing_len += zero.len();
            }
        }
        self.seen.truncate(base);
        Some(())
    }

    fn messages(&mut self, id: ShapeId, count: Count) -> Option<()> {
        match (count, self.scanner.peek()?) {
            (Count::One, b'{') => self.message(id),
            (Count::Many, b'[') => {
                self.scanner.expect(b'[')?;
                let mut more = self.scanner.any(b']')?;
                while more {
                    self.message(id)?;
                    more = self.scanner.more(b']')?;
                }
                Some(())
            }
            (Count::Map, b'{') => {
                self.scanner.expect(b'{')?;
                let mut more = self.scanner.any(b'}')?;
                while more {
                    self.scanner.name()?;
                    self.message(id)?;
                    more = self.scanner.more(b'}')?;
                }
                Some(())
            }
            _ => self.scanner.value().map(|_| ()),
        }
    }
}

/// The field of a name. The encoder writes fields in their order, so it is mostly the next one or a
/// later one.
fn place(shape: &Shape, name: &[u8], next: usize) -> Option<usize> {
    let (before, after) = shape.fields.split_at(next.min(shape.fields.len()));
    let named = |field: &FieldShape| field.json_name.as_bytes() == name;
    after
        .iter()
        .position(named)
        .map(|place| before.len() + place)
        .or_else(|| before.iter().position(named))
}
