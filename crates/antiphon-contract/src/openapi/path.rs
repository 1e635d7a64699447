//! Templates as paths of OpenAPI, whose parameters are single segments.
//!
//! A variable of several segments becomes one parameter per wildcard in it:
//! `/v1/{name=shelves/*/books/*}` is `/v1/shelves/{name_1}/books/{name_2}`.

use serde_json::{Value, json};

use crate::model::{Contract, Field, Message};
use crate::schema::Schemas;
use crate::template::{Segment, Template};

/// The server refuses paths with backslashes and control characters, escaped or not.
const PATH_TEXT: &str = r"^[^\\\x00-\x1f\x7f]*$";

/// A parameter in a path.
pub(super) struct Part<'a> {
    pub(super) name: String,
    /// The field that it is, where it is a whole field.
    pub(super) field: Option<&'a Field>,
    /// Whether it may hold slashes.
    pub(super) open_end: bool,
}

impl<'a> Part<'a> {
    pub(super) fn schema(&self, schemas: &mut Schemas<'a>) -> Value {
        let mut schema = match self.field {
            Some(field) => schemas.field(field),
            None => json!({"type": "string"}),
        };
        if schema["type"] != "string" {
            return schema;
        }
        // An empty segment never matches.
        if !self.open_end && schema.get("minLength").is_none() {
            schema["minLength"] = json!(1);
        }
        if schema.get("pattern").is_none() {
            schema["pattern"] = json!(PATH_TEXT);
        }
        schema
    }
}

/// The parameters of a template, in their order.
pub(super) fn parts<'a>(
    contract: &'a Contract,
    input: &'a Message,
    template: &Template,
) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    let mut bare = 0;
    for (index, segment) in template.segments().iter().enumerate() {
        if matches!(segment, Segment::Literal(_)) {
            continue;
        }
        let open_end = *segment == Segment::Rest;
        let variable =
            template.variables().iter().find(|variable| variable.segments.contains(&index));
        let Some(variable) = variable else {
            bare += 1;
            parts.push(Part { name: format!("segment_{bare}"), field: None, open_end });
            continue;
        };
        let wild = |range: std::ops::Range<usize>| {
            let segments = &template.segments()[range];
            segments.iter().filter(|segment| !matches!(segment, Segment::Literal(_))).count()
        };
        let name = json_path(contract, input, &variable.field);
        let number = wild(variable.segments.start..index + 1);
        let (name, whole) = match wild(variable.segments.clone()) {
            1 => (name, variable.segments.len() == 1),
            _ => (format!("{name}_{number}"), false),
        };
        let field = if whole { contract.field(input, &variable.field) } else { None };
        parts.push(Part { name, field, open_end });
    }
    parts
}

/// The path with these names for its parameters.
pub(super) fn text(template: &Template, names: &[String]) -> String {
    let mut names = names.iter();
    let mut path = String::new();
    for segment in template.segments() {
        path.push('/');
        match segment {
            Segment::Literal(text) => path.push_str(text),
            Segment::One | Segment::Rest => {
                let name = names.next().map_or("", String::as_str);
                path.push_str(&format!("{{{name}}}"));
            }
        }
    }
    if path.is_empty() {
        path.push('/');
    }
    if let Some(verb) = template.verb() {
        path.push(':');
        path.push_str(verb);
    }
    path
}

/// The path of a field with the names that JSON uses.
fn json_path(contract: &Contract, message: &Message, path: &[String]) -> String {
    let names = (1..=path.len()).map(|length| {
        let field = contract.field(message, &path[..length]);
        field.map_or("", |field| field.json_name.as_str())
    });
    names.collect::<Vec<_>>().join(".")
}
