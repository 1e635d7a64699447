//! Adds the fields that are zero to the JSON of an answer.
//!
//! Canonical JSON leaves out fields that hold their type's zero value, so `{"onHand":0}` would be
//! `{}`, and every client would have to know the contract to read the answer. Over REST they are
//! there. Fields that can be "not set" stay out when they are not set.

use bytes::{Bytes, BytesMut};

use super::scan::Scanner;
use super::schema::{Count, FieldShape, Leaf, Schema, Shape, ShapeId};

/// The JSON of a message with all its zeros, in the order of the contract. The same bytes when nothing
/// is missing.
pub(super) fn zeros(schema: &Schema, shape: ShapeId, json: Bytes) -> Bytes {
    let mut filler = Filler {
        schema,
        scanner: Scanner::new(&json),
        members: Vec::new(),
        missing: Vec::new(),
        missing_len: 0,
    };
    // Text that our encoder did not write is sent as it is.
    if filler.message(shape).is_none() || filler.missing.is_empty() {
        return json;
    }
    // Those of inner messages were found before those of the outer ones.
    filler.missing.sort_by_key(|missing| missing.at);
    let mut filled = BytesMut::with_capacity(json.len() + filler.missing_len);
    let mut from = 0;
    for missing in filler.missing {
        filled.extend_from_slice(&json[from..missing.at]);
        from = missing.at;
        let zero = missing.zero.as_bytes();
        if missing.leads {
            filled.extend_from_slice(&zero[1..]);
            filled.extend_from_slice(b",");
        } else {
            // In an empty object the first one has no comma in front.
            let alone = filled.last() == Some(&b'{');
            filled.extend_from_slice(&zero[usize::from(alone)..]);
        }
    }
    filled.extend_from_slice(&json[from..]);
    filled.freeze()
}

struct Filler<'a> {
    schema: &'a Schema,
    scanner: Scanner<'a>,
    /// The members of each message that is being walked over, as they come.
    members: Vec<Member>,
    missing: Vec<Missing<'a>>,
    missing_len: usize,
}

/// A member that is there.
#[derive(Clone, Copy)]
struct Member {
    /// The place of its field in the contract.
    field: usize,
    /// Where it begins in the text; the comma in front of it, where there is one.
    start: usize,
}

/// A zero that is not there.
struct Missing<'a> {
    at: usize,
    /// With a comma in front.
    zero: &'a str,
    /// Stands before the first member.
    leads: bool,
}

impl<'a> Filler<'a> {
    fn message(&mut self, id: ShapeId) -> Option<()> {
        let shape = self.schema.shape(id);
        let base = self.members.len();
        let mut ordered = true;
        let mut next = 0;
        self.scanner.expect(b'{')?;
        let mut start = self.scanner.at();
        let mut more = self.scanner.any(b'}')?;
        while more {
            let field = place(shape, self.scanner.name()?, next)?;
            ordered &= field >= next;
            next = field + 1;
            self.members.push(Member { field, start });
            let FieldShape { leaf, count, .. } = &shape.fields[field];
            match leaf {
                Leaf::Message(inner) => self.messages(*inner, *count)?,
                _ => {
                    self.scanner.value()?;
                }
            }
            start = self.scanner.at();
            more = self.scanner.more(b'}')?;
        }
        // In an empty object right after its brace, whatever space follows.
        let empty = self.members.len() == base;
        let end = if empty { start } else { self.scanner.at() - 1 };
        if !ordered {
            self.members[base..].sort_unstable_by_key(|member| member.field);
        }
        self.compare(shape, base, end, ordered);
        self.members.truncate(base);
        Some(())
    }

    /// Notes what a message lacks. Zeros stand before the next member of the contract's order, or at
    /// the end where the members are in another order.
    fn compare(&mut self, shape: &'a Shape, base: usize, end: usize, ordered: bool) {
        let mut members = self.members[base..].iter().peekable();
        let mut first = true;
        for (place, field) in shape.fields.iter().enumerate() {
            if members.next_if(|member| member.field == place).is_some() {
                first = false;
                continue;
            }
            let Some(zero) = &field.zero else { continue };
            let before = members.peek().filter(|_| ordered);
            self.missing.push(Missing {
                at: before.map_or(end, |member| member.start),
                zero,
                leads: first && before.is_some(),
            });
            self.missing_len += zero.len();
        }
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

#[cfg(test)]
mod tests {
    use antiphon_contract::Contract;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn thing() -> (Schema, ShapeId) {
        let set = super::super::tests::descriptor_set();
        let schema = Schema::new(&Contract::from_descriptor_set(set).unwrap());
        let part = schema.message("things.v1.Part").unwrap();
        (schema, part)
    }

    #[test]
    fn zeros_stand_where_the_contract_has_them() {
        let (schema, part) = thing();
        for (json, filled) in [
            ("{}", r#"{"id":"","n":0,"tags":[]}"#),
            (r#"{"id":"x"}"#, r#"{"id":"x","n":0,"tags":[]}"#),
            (r#"{"n":1}"#, r#"{"id":"","n":1,"tags":[]}"#),
            (r#"{"tags":["a"]}"#, r#"{"id":"","n":0,"tags":["a"]}"#),
            (r#"{"deep":{},"tags":[]}"#, r#"{"id":"","n":0,"deep":{"x":""},"tags":[]}"#),
            (r#"{"tags":[],"id":"x"}"#, r#"{"tags":[],"id":"x","n":0}"#),
            (
                r#"{ "id" : "x" , "deep" : { } }"#,
                r#"{ "id" : "x" ,"n":0, "deep" : {"x":"" } ,"tags":[]}"#,
            ),
            (r#"{"id":"","n":0,"tags":[]}"#, r#"{"id":"","n":0,"tags":[]}"#),
            (r#"{"other":1}"#, r#"{"other":1}"#),
            ("[1]", "[1]"),
            ("{", "{"),
        ] {
            let found = zeros(&schema, part, Bytes::from_static(json.as_bytes()));
            if serde_json::from_str::<Value>(json).is_ok() {
                assert!(serde_json::from_slice::<Value>(&found).is_ok(), "{json}: {found:?}");
            }
            let plain = |text: &[u8]| String::from_utf8_lossy(text).replace(' ', "");
            assert_eq!(plain(&found), plain(filled.as_bytes()), "{json}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[{}\\[\\]\",:\\\\ ]{0,12}|(\\{|\\}|\"id\":|\"deep\":|\"x\"|,|1){0,12}") {
            let (schema, part) = thing();
            let _ = zeros(&schema, part, Bytes::from(text));
        }
    }
}
