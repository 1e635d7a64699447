//! Gives settings a type, with `serde`, and adds to every error where its value was written.

use std::collections::btree_map;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use zeroize::Zeroize;

use crate::tree::{Entry, Node, Value};
use crate::{Error, secret};

/// The path of a value, as a list from the leaf to the root.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    Root,
    Key(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => f.write_str(key),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Reads one value.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    node: &'a Node,
    place: Place<'a>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(node: &'a Node, place: Place<'a>) -> Self {
        Self { node, place }
    }

    fn located<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| error.at(&self.node.origin, self.place))
    }

    fn found(&self) -> Unexpected<'_> {
        match &self.node.value {
            Value::Text(text) | Value::String(text) => Unexpected::Str(text),
            Value::Integer(number) => Unexpected::Signed(*number),
            Value::Float(number) => Unexpected::Float(*number),
            Value::Boolean(truth) => Unexpected::Bool(*truth),
            Value::Datetime(_) => Unexpected::Other("a date"),
            Value::Array(_) => Unexpected::Other("an array"),
            Value::Table(_) => Unexpected::Other("a section"),
        }
    }

    /// Text from the environment or a flag, where a `T` is asked for.
    fn text<T: std::str::FromStr>(&self) -> Option<T> {
        match &self.node.value {
            Value::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn struct_<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let result = match &self.node.value {
            Value::Table(entries) => visitor.visit_map(Table::new(entries, &self.place)),
            _ => Err(Error::invalid_type(self.found(), &visitor)),
        };
        self.located(result)
    }
}

macro_rules! numbers {
    ($($method:ident $parse:ty => $visit:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let result = match self.text::<$parse>() {
                Some(number) => visitor.$visit(number),
                None => return self.deserialize_any(visitor),
            };
            self.located(result)
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.located(match &self.node.value {
            Value::Text(text) | Value::String(text) | Value::Datetime(text) => {
                visitor.visit_str(text)
            }
            Value::Integer(number) => match u64::try_from(*number) {
                Ok(number) => visitor.visit_u64(number),
                Err(_) => visitor.visit_i64(*number),
            },
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(truth) => visitor.visit_bool(*truth),
            Value::Array(items) => visitor.visit_seq(Items::new(items, &self.place)),
            Value::Table(entries) => visitor.visit_map(Table::new(entries, &self.place)),
        })
    }

    numbers! {
        deserialize_bool bool => visit_bool;
        deserialize_i8 i64 => visit_i64;
        deserialize_i16 i64 => visit_i64;
        deserialize_i32 i64 => visit_i64;
        deserialize_i64 i64 => visit_i64;
        deserialize_u8 u64 => visit_u64;
        deserialize_u16 u64 => visit_u64;
        deserialize_u32 u64 => visit_u64;
        deserialize_u64 u64 => visit_u64;
        deserialize_f32 f64 => visit_f64;
        deserialize_f64 f64 => visit_f64;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if name == secret::MARK {
            let mut text = self.located(secret::resolve(self.node))?;
            let result = visitor.visit_str(&text);
            text.zeroize();
            return self.located(result);
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Value::Text(text) = &self.node.value else {
            return self.deserialize_any(visitor);
        };
        let item = |text: &str| Node {
            value: Value::Text(text.trim().to_owned()),
            origin: self.node.origin.clone(),
        };
        let items: Vec<Node> = match text.trim() {
            "" => Vec::new(),
            text => text.split(',').map(item).collect(),
        };
        self.located(visitor.visit_seq(Items::new(&items, &self.place)))
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.struct_(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.struct_(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.located(match &self.node.value {
            Value::Text(text) | Value::String(text) => {
                let variant: StrDeserializer<'_, Error> = text.as_str().into_deserializer();
                visitor.visit_enum(variant)
            }
            Value::Table(entries) if entries.len() == 1 => match entries.first_key_value() {
                Some((name, entry)) => visitor.visit_enum(Variant {
                    name,
                    reader: Reader::new(&entry.node, Place::Key(&self.place, name)),
                }),
                None => Err(Error::invalid_type(self.found(), &visitor)),
            },
            _ => Err(Error::invalid_type(self.found(), &visitor)),
        })
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct identifier ignored_any
    }
}

/// The entries of a section, one after the other.
struct Table<'a> {
    entries: btree_map::Iter<'a, String, Entry>,
    current: Option<(&'a str, &'a Entry)>,
    place: &'a Place<'a>,
}

impl<'a> Table<'a> {
    fn new(entries: &'a std::collections::BTreeMap<String, Entry>, place: &'a Place<'a>) -> Self {
        Self { entries: entries.iter(), current: None, place }
    }
}

impl<'de> MapAccess<'de> for Table<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some((key, entry)) = self.entries.next() else {
            return Ok(None);
        };
        self.current = Some((key, entry));
        let name: StrDeserializer<'_, Error> = key.as_str().into_deserializer();
        seed.deserialize(name)
            .map(Some)
            .map_err(|error| error.at(&entry.key, Place::Key(self.place, key)))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((key, entry)) = self.current.take() else {
            return Err(Error::new("a value was asked for before its key"));
        };
        // Also what a type finds wrong once it has read the value (`#[serde(try_from)]`) is there.
        seed.deserialize(Reader::new(&entry.node, Place::Key(self.place, key)))
            .map_err(|error| error.at(&entry.node.origin, Place::Key(self.place, key)))
    }
}

/// The elements of an array, one after the other.
struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    place: &'a Place<'a>,
}

impl<'a> Items<'a> {
    fn new(items: &'a [Node], place: &'a Place<'a>) -> Self {
        Self { items: items.iter().enumerate(), place }
    }
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some((index, node)) = self.items.next() else {
            return Ok(None);
        };
        let place = Place::Index(self.place, index);
        // As in tables: what a type finds wrong once it has read the value is there, too.
        seed.deserialize(Reader::new(node, place))
            .map(Some)
            .map_err(|error| error.at(&node.origin, place))
    }
}

/// A section with one entry, read as a variant with content.
struct Variant<'a> {
    name: &'a str,
    reader: Reader<'a>,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Reader<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Reader<'a>), Error> {
        let name: StrDeserializer<'_, Error> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self.reader))
    }
}

impl<'de> VariantAccess<'de> for Reader<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        self.located(Err(Error::new("this choice takes no settings of its own")))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.struct_(visitor)
    }
}
