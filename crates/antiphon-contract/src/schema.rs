//! JSON Schema (2020-12) of the contract's messages in their JSON form.
//!
//! Messages and enums become named schemas under `#/components/schemas`; types with a JSON form of
//! their own (`google.protobuf`) are written where they are used. Rules of `buf.validate` that JSON
//! Schema can say become keywords.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::model::{Cardinality, Contract, Enum, Field, Kind, Message, Scalar};

mod rules;

pub(crate) use rules::must_be_given;

/// Makes schemas and remembers which named ones they lead to.
pub(crate) struct Schemas<'a> {
    contract: &'a Contract,
    wanted: BTreeSet<&'a str>,
}

impl<'a> Schemas<'a> {
    pub(crate) fn new(contract: &'a Contract) -> Self {
        Self { contract, wanted: BTreeSet::new() }
    }

    /// All named schemas that were referred to, with those that they refer to in turn.
    pub(crate) fn named(mut self) -> Map<String, Value> {
        let mut named = Map::new();
        while let Some(name) = self.wanted.iter().find(|name| !named.contains_key(**name)).copied()
        {
            let schema = match (self.contract.message(name), self.contract.enumeration(name)) {
                (Some(message), _) => self.object(message, &[]),
                (_, Some(enumeration)) => enum_schema(enumeration),
                _ => json!({}),
            };
            named.insert(name.to_owned(), schema);
        }
        named.sort_keys();
        named
    }

    /// The schema of a message type, by reference where it has a name.
    pub(crate) fn message(&mut self, name: &'a str) -> Value {
        match well_known(name) {
            Some(schema) => schema,
            None => self.reference(name),
        }
    }

    fn reference(&mut self, name: &'a str) -> Value {
        self.wanted.insert(name);
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    /// The schema of a message's fields but for some, which are named by the contract.
    pub(crate) fn object(&mut self, message: &'a Message, without: &[&str]) -> Value {
        let mut schema = Map::new();
        schema.insert("type".to_owned(), json!("object"));
        describe(&mut schema, &message.source.docs, message.deprecated);
        let mut properties = Map::new();
        let mut required = Vec::new();
        let fields = message.fields.iter().filter(|field| !without.contains(&&*field.name));
        for field in fields.clone() {
            properties.insert(field.json_name.clone(), self.field(field));
            if must_be_given(field) {
                required.push(field.json_name.as_str());
            }
        }
        schema.insert("properties".to_owned(), Value::Object(properties));
        if !required.is_empty() {
            schema.insert("required".to_owned(), json!(required));
        }
        schema.insert("additionalProperties".to_owned(), json!(false));
        let groups: Vec<Value> = (0..message.oneofs.len())
            .filter_map(|group| {
                let members: Vec<&str> = fields
                    .clone()
                    .filter(|field| field.oneof == Some(group))
                    .map(|field| &*field.json_name)
                    .collect();
                (!members.is_empty()).then(|| one_of(&members, message.oneofs[group].required))
            })
            .collect();
        if !groups.is_empty() {
            schema.insert("allOf".to_owned(), Value::Array(groups));
        }
        Value::Object(schema)
    }

    /// The schema of a field with its rules and its comment.
    pub(crate) fn field(&mut self, field: &'a Field) -> Value {
        let mut value = self.kind(&field.kind);
        let rules = field.rules.as_ref();
        let mut schema = match field.cardinality {
            Cardinality::Singular => {
                rules::apply(&mut value, &field.kind, rules);
                value
            }
            Cardinality::Repeated => {
                let list = rules.and_then(|rules| rules.get("repeated"));
                let items = list.and_then(|list| list.get("items"));
                rules::apply(&mut value, &field.kind, items);
                let mut schema = json!({"type": "array", "items": value});
                rules::list(&mut schema, list);
                schema
            }
            Cardinality::Map(key) => {
                let map = rules.and_then(|rules| rules.get("map"));
                let values = map.and_then(|map| map.get("values"));
                rules::apply(&mut value, &field.kind, values);
                let mut schema = json!({"type": "object", "additionalProperties": value});
                rules::map(&mut schema, key, map);
                schema
            }
        };
        if let Value::Object(schema) = &mut schema {
            describe(schema, &field.source.docs, field.deprecated);
        }
        schema
    }

    fn kind(&mut self, kind: &'a Kind) -> Value {
        match kind {
            Kind::Scalar(of) => scalar(*of),
            Kind::Enum(name) if name == "google.protobuf.NullValue" => json!({"type": "null"}),
            Kind::Enum(name) => self.reference(name),
            Kind::Message(name) => self.message(name),
        }
    }
}

/// Adds a comment, before what a rule has said, and the advice against it.
fn describe(schema: &mut Map<String, Value>, docs: &str, deprecated: bool) {
    if !docs.is_empty() {
        let rules = schema.get("description").and_then(Value::as_str);
        let text = rules.map_or_else(|| docs.to_owned(), |rules| format!("{docs}\n\n{rules}"));
        schema.insert("description".to_owned(), Value::String(text));
    }
    if deprecated {
        schema.insert("deprecated".to_owned(), json!(true));
    }
}

fn enum_schema(enumeration: &Enum) -> Value {
    let names: Vec<&str> = enumeration.values.iter().map(|value| &*value.name).collect();
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("string"));
    schema.insert("enum".to_owned(), json!(names));
    let values = enumeration
        .values
        .iter()
        .filter(|value| !value.source.docs.is_empty())
        .map(|value| format!("* `{}`: {}", value.name, value.source.docs.replace('\n', " ")));
    let docs: Vec<String> = (!enumeration.source.docs.is_empty())
        .then(|| enumeration.source.docs.clone())
        .into_iter()
        .chain([values.collect::<Vec<_>>().join("\n")].into_iter().filter(|list| !list.is_empty()))
        .collect();
    describe(&mut schema, &docs.join("\n\n"), false);
    Value::Object(schema)
}

/// At most one of these members; exactly one where one is required.
fn one_of(members: &[&str], required: bool) -> Value {
    let each: Vec<Value> = members.iter().map(|name| json!({"required": [name]})).collect();
    let mut choices = each.clone();
    if !required {
        choices.push(json!({"not": {"anyOf": each}}));
    }
    json!({"oneOf": choices})
}

/// The canonical form of a scalar: 64-bit integers are texts.
pub(crate) fn scalar(scalar: Scalar) -> Value {
    match scalar {
        Scalar::Bool => json!({"type": "boolean"}),
        Scalar::Int32 => {
            json!({"type": "integer", "format": "int32", "minimum": i32::MIN, "maximum": i32::MAX})
        }
        Scalar::Uint32 => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
        Scalar::Int64 => json!({"type": "string", "format": "int64", "pattern": "^-?[0-9]{1,19}$"}),
        Scalar::Uint64 => json!({"type": "string", "format": "uint64", "pattern": "^[0-9]{1,20}$"}),
        Scalar::Float => json!({"type": "number", "format": "float"}),
        Scalar::Double => json!({"type": "number", "format": "double"}),
        Scalar::String => json!({"type": "string"}),
        Scalar::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
    }
}

/// The schema of a type with a JSON form of its own.
fn well_known(name: &str) -> Option<Value> {
    let name = name.strip_prefix("google.protobuf.")?;
    Some(match name {
        "Timestamp" => json!({"type": "string", "format": "date-time"}),
        "Duration" => json!({
            "type": "string",
            "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$",
            "examples": ["1.5s"],
        }),
        "FieldMask" => json!({"type": "string", "examples": ["name,lines.quantity"]}),
        "Empty" => json!({"type": "object", "additionalProperties": false}),
        "Struct" => json!({"type": "object", "additionalProperties": true}),
        "Value" => json!({}),
        "ListValue" => json!({"type": "array", "items": {}}),
        "Any" => json!({
            "type": "object",
            "properties": {"@type": {"type": "string", "description": "The type of the message."}},
            "required": ["@type"],
            "additionalProperties": true,
        }),
        "BoolValue" => scalar(Scalar::Bool),
        "Int32Value" => scalar(Scalar::Int32),
        "Int64Value" => scalar(Scalar::Int64),
        "UInt32Value" => scalar(Scalar::Uint32),
        "UInt64Value" => scalar(Scalar::Uint64),
        "FloatValue" => scalar(Scalar::Float),
        "DoubleValue" => scalar(Scalar::Double),
        "StringValue" => scalar(Scalar::String),
        "BytesValue" => scalar(Scalar::Bytes),
        _ => return None,
    })
}
