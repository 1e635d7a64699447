//! What the transcoder knows of the messages of a contract, prepared so that a call needs no look-up
//! by type name.

use std::collections::HashMap;
use std::sync::Arc;

use antiphon_contract::{Cardinality, Contract, Enum, Field, Kind, Message, Scalar};

/// The messages that requests and answers are made of.
#[derive(Debug, Default)]
pub(super) struct Schema {
    shapes: Vec<Shape>,
    by_name: HashMap<String, ShapeId>,
}

/// The place of a message in a [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShapeId(usize);

/// A message.
#[derive(Debug)]
pub(super) struct Shape {
    /// The full name.
    pub(super) name: String,
    /// In the order of the contract.
    pub(super) fields: Vec<FieldShape>,
    by_name: HashMap<String, usize>,
}

/// A field of a message.
#[derive(Debug)]
pub(super) struct FieldShape {
    /// As the contract names it.
    pub(super) name: String,
    /// As JSON names it.
    pub(super) json_name: String,
    /// What one value is.
    pub(super) leaf: Leaf,
    /// How many values there are.
    pub(super) count: Count,
    /// `,"jsonName":0`, where "not set" and "zero" are the same and are to be seen in answers.
    pub(super) zero: Option<String>,
}

/// A field on the way to another, by both of its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// As JSON names it.
    pub(super) json: String,
    /// As the contract names it.
    pub(super) name: String,
}

/// How many values a field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    /// One at most.
    One,
    /// Any number.
    Many,
    /// One under each key.
    Map,
}

/// What a value is, as far as its form in JSON goes.
#[derive(Clone, Debug)]
pub(super) enum Leaf {
    /// A number, a text, bytes or a truth; also inside a wrapper of `google.protobuf`.
    Scalar(Scalar),
    /// One of these values.
    Enum(Arc<EnumShape>),
    /// A message written as one text: `Timestamp` and `Duration`.
    Text,
    /// A `FieldMask`.
    Mask,
    /// A message with fields.
    Message(ShapeId),
    /// A message of `google.protobuf` that may hold anything.
    Any,
}

/// An enum.
#[derive(Debug)]
pub(super) struct EnumShape {
    /// The full name.
    pub(super) name: String,
    /// Names and numbers.
    pub(super) values: Vec<(String, i32)>,
    /// Whether only the listed numbers are values.
    pub(super) closed: bool,
}

impl Schema {
    /// Every message of the contract.
    pub(super) fn new(contract: &Contract) -> Self {
        let by_name: HashMap<String, ShapeId> =
            contract.messages.keys().cloned().zip((0..).map(ShapeId)).collect();
        let enums: HashMap<&str, Arc<EnumShape>> = contract
            .enums
            .iter()
            .map(|(name, declared)| (name.as_str(), Arc::new(EnumShape::new(declared))))
            .collect();
        let mut schema = Self { shapes: Vec::new(), by_name };
        for message in contract.messages.values() {
            let fields = message.fields.iter().map(|field| schema.field(field, &enums));
            let shape = Shape::new(message, fields.collect());
            schema.shapes.push(shape);
        }
        schema
    }

    fn field(&self, field: &Field, enums: &HashMap<&str, Arc<EnumShape>>) -> FieldShape {
        let leaf = match &field.kind {
            Kind::Scalar(scalar) => Leaf::Scalar(*scalar),
            Kind::Enum(name) => match enums.get(name.as_str()) {
                Some(shape) if name != "google.protobuf.NullValue" => Leaf::Enum(Arc::clone(shape)),
                _ => Leaf::Any,
            },
            Kind::Message(name) => self.leaf(name),
        };
        let count = match field.cardinality {
            Cardinality::Singular => Count::One,
            Cardinality::Repeated => Count::Many,
            Cardinality::Map(_) => Count::Map,
        };
        let zero = zero(field, count, &leaf).map(|zero| format!(",\"{}\":{zero}", field.json_name));
        FieldShape {
            name: field.name.clone(),
            json_name: field.json_name.clone(),
            leaf,
            count,
            zero,
        }
    }

    fn leaf(&self, message: &str) -> Leaf {
        if let Some(leaf) = message.strip_prefix("google.protobuf.").and_then(well_known) {
            return leaf;
        }
        self.by_name.get(message).map_or(Leaf::Any, |id| Leaf::Message(*id))
    }

    /// The message of this name, unless it has a JSON form of its own.
    pub(super) fn message(&self, name: &str) -> Option<ShapeId> {
        match self.leaf(name) {
            Leaf::Message(id) => Some(id),
            _ => None,
        }
    }

    /// The field at the end of a path of the contract's names, and the way to it.
    pub(super) fn path(&self, from: ShapeId, names: &[String]) -> Option<(Vec<Step>, &FieldShape)> {
        let (first, rest) = names.split_first()?;
        let field = self.shape(from).field(first)?;
        if rest.is_empty() {
            return Some((vec![field.step()], field));
        }
        let Leaf::Message(inner) = field.leaf else {
            return None;
        };
        let (mut path, last) = self.path(inner, rest)?;
        path.insert(0, field.step());
        Some((path, last))
    }

    /// A message.
    pub(super) fn shape(&self, id: ShapeId) -> &Shape {
        &self.shapes[id.0]
    }
}

impl Shape {
    fn new(message: &Message, fields: Vec<FieldShape>) -> Self {
        let mut by_name = HashMap::new();
        for (place, field) in fields.iter().enumerate() {
            by_name.insert(field.json_name.clone(), place);
        }
        // Where one field's JSON name is another's name in the contract, the former goes first.
        for (place, field) in fields.iter().enumerate() {
            by_name.entry(field.name.clone()).or_insert(place);
        }
        Self { name: message.name.clone(), fields, by_name }
    }

    /// The field of this name, as JSON or as the contract writes it.
    pub(super) fn field(&self, name: &str) -> Option<&FieldShape> {
        self.by_name.get(name).map(|place| &self.fields[*place])
    }
}

impl FieldShape {
    /// The step of a path to it.
    pub(super) fn step(&self) -> Step {
        Step { json: self.json_name.clone(), name: self.name.clone() }
    }
}

impl Step {
    /// Whether this is one of its names.
    pub(super) fn is(&self, name: &str) -> bool {
        self.json == name || self.name == name
    }
}

impl EnumShape {
    fn new(declared: &Enum) -> Self {
        let values = declared.values.iter().map(|value| (value.name.clone(), value.number));
        Self { name: declared.name.clone(), values: values.collect(), closed: declared.closed }
    }
}

/// The messages of `google.protobuf` with a JSON form of their own.
fn well_known(name: &str) -> Option<Leaf> {
    Some(match name {
        "Timestamp" | "Duration" => Leaf::Text,
        "FieldMask" => Leaf::Mask,
        "BoolValue" => Leaf::Scalar(Scalar::Bool),
        "Int32Value" => Leaf::Scalar(Scalar::Int32),
        "Int64Value" => Leaf::Scalar(Scalar::Int64),
        "UInt32Value" => Leaf::Scalar(Scalar::Uint32),
        "UInt64Value" => Leaf::Scalar(Scalar::Uint64),
        "FloatValue" => Leaf::Scalar(Scalar::Float),
        "DoubleValue" => Leaf::Scalar(Scalar::Double),
        "StringValue" => Leaf::Scalar(Scalar::String),
        "BytesValue" => Leaf::Scalar(Scalar::Bytes),
        "Any" | "Struct" | "Value" | "ListValue" => Leaf::Any,
        _ => return None,
    })
}

/// The JSON form of "nothing" for fields that cannot be unset.
fn zero(field: &Field, count: Count, leaf: &Leaf) -> Option<String> {
    match count {
        Count::Many => return Some("[]".to_owned()),
        Count::Map => return Some("{}".to_owned()),
        Count::One => {}
    }
    if field.explicit_presence || field.oneof.is_some() || matches!(field.kind, Kind::Message(_)) {
        return None;
    }
    Some(match leaf {
        Leaf::Scalar(Scalar::Bool) => "false".to_owned(),
        Leaf::Scalar(Scalar::Int64 | Scalar::Uint64) => "\"0\"".to_owned(),
        Leaf::Scalar(Scalar::String | Scalar::Bytes) => "\"\"".to_owned(),
        Leaf::Scalar(_) => "0".to_owned(),
        Leaf::Enum(shape) => {
            let (name, _) = shape.values.iter().find(|(_, number)| *number == 0)?;
            format!("\"{name}\"")
        }
        Leaf::Text | Leaf::Mask | Leaf::Message(_) | Leaf::Any => return None,
    })
}
