//! One route: parameters, body, answers.

use serde_json::{Map, Value, json};

use super::{answers, path::Part};
use crate::model::{
    Body, Cardinality, Contract, Field, HttpBinding, Idempotency, Kind, Message, Method,
    MethodKind, Service,
};
use crate::schema::{Schemas, must_be_given};

pub(super) struct Operation<'a, 'b> {
    pub(super) contract: &'a Contract,
    pub(super) service: &'a Service,
    pub(super) method: &'a Method,
    pub(super) binding: &'a HttpBinding,
    pub(super) input: &'a Message,
    pub(super) parts: &'b [Part<'a>],
    /// The names of the path's parameters.
    pub(super) names: &'b [String],
}

/// Messages inside messages are parameters down to this depth.
const QUERY_DEPTH: usize = 4;

impl<'a> Operation<'a, '_> {
    pub(super) fn document(&self, schemas: &mut Schemas<'a>, id: String) -> Value {
        let method = self.method;
        let mut operation = Map::new();
        operation.insert("operationId".to_owned(), json!(id));
        operation.insert("tags".to_owned(), json!([self.service.short_name()]));
        let (summary, description) = self.docs();
        for (name, text) in [("summary", summary), ("description", description)] {
            if !text.is_empty() {
                operation.insert(name.to_owned(), json!(text));
            }
        }
        if method.deprecated {
            operation.insert("deprecated".to_owned(), json!(true));
        }
        let parameters = self.parameters(schemas);
        if !parameters.is_empty() {
            operation.insert("parameters".to_owned(), Value::Array(parameters));
        }
        if let Some(body) = self.body(schemas) {
            operation.insert("requestBody".to_owned(), body);
        }
        let responses = answers::responses(self.contract, self.service, self, schemas);
        operation.insert("responses".to_owned(), responses);
        Value::Object(operation)
    }

    /// Whether the client sends a stream, which over HTTP is a WebSocket.
    pub(super) fn streams_requests(&self) -> bool {
        matches!(self.method.kind, MethodKind::ClientStream | MethodKind::Bidi)
    }

    /// The first sentence, and everything where there is more.
    fn docs(&self) -> (String, String) {
        let docs = &self.method.source.docs;
        let mut all = docs.clone();
        if self.streams_requests() {
            let sentence = "This is a WebSocket; each message is one JSON text.";
            all = if all.is_empty() { sentence.to_owned() } else { format!("{all}\n\n{sentence}") };
        }
        let flat = docs.split("\n\n").next().unwrap_or_default().replace('\n', " ");
        let summary = flat.split_once(". ").map_or(&*flat, |(first, _)| first);
        let summary = summary.trim_end_matches('.').to_owned();
        let more = all.trim_end_matches('.') != summary;
        (summary, if more { all } else { String::new() })
    }

    fn parameters(&self, schemas: &mut Schemas<'a>) -> Vec<Value> {
        let mut parameters = Vec::new();
        for (part, name) in self.parts.iter().zip(self.names) {
            let mut schema = part.schema(schemas);
            let description = take_description(&mut schema);
            let slashes = "Any number of segments, slashes included.";
            let description = match (part.open_end, description) {
                (true, _) => Some(slashes.to_owned()),
                (false, description) => description,
            };
            parameters.push(parameter(name, "path", true, description, &schema));
        }
        if self.binding.body != Body::All && !self.streams_requests() {
            self.query(schemas, self.input, &mut Vec::new(), &mut Vec::new(), &mut parameters);
        }
        if self.method.idempotency == Idempotency::ByKey {
            let description = "Chosen by the caller, new for each thing to be done. A second call \
                               with the same key does nothing and gets the first one's answer.";
            let schema = json!({
                "type": "string",
                "minLength": 1,
                "maxLength": 255,
                "pattern": "^[!-~]([ -~]*[!-~])?$",
            });
            let description = Some(description.to_owned());
            parameters.push(parameter("Idempotency-Key", "header", false, description, &schema));
        }
        parameters
    }

    fn query(
        &self,
        schemas: &mut Schemas<'a>,
        message: &'a Message,
        path: &mut Vec<String>,
        names: &mut Vec<String>,
        parameters: &mut Vec<Value>,
    ) {
        for field in &message.fields {
            path.push(field.name.clone());
            names.push(field.json_name.clone());
            if !self.is_bound(path) {
                self.query_field(schemas, field, path, names, parameters);
            }
            path.pop();
            names.pop();
        }
    }

    fn query_field(
        &self,
        schemas: &mut Schemas<'a>,
        field: &'a Field,
        path: &mut Vec<String>,
        names: &mut Vec<String>,
        parameters: &mut Vec<Value>,
    ) {
        if field.is_map() {
            return;
        }
        if let Kind::Message(name) = &field.kind
            && let Some(message) = self.contract.message(name)
        {
            let text = ["Any", "Struct", "Value", "ListValue"]
                .iter()
                .all(|other| *name != format!("google.protobuf.{other}"));
            if !message.is_well_known() {
                let single = field.cardinality == Cardinality::Singular;
                if single && path.len() < QUERY_DEPTH {
                    self.query(schemas, message, path, names, parameters);
                }
                return;
            }
            if !text {
                return;
            }
        }
        let mut schema = schemas.field(field);
        let description = take_description(&mut schema);
        let required = path.len() == 1 && must_be_given(field);
        parameters.push(parameter(&names.join("."), "query", required, description, &schema));
    }

    /// Whether a field is in the path or the body.
    fn is_bound(&self, path: &[String]) -> bool {
        let in_body = matches!(&self.binding.body, Body::Field(name) if path == [name.clone()]);
        let mut variables = self.binding.template.variables().iter();
        in_body || variables.any(|variable| variable.field == path)
    }

    fn body(&self, schemas: &mut Schemas<'a>) -> Option<Value> {
        if self.streams_requests() {
            return None;
        }
        let (schema, required) = match &self.binding.body {
            Body::None => return None,
            Body::Field(name) => {
                let field = self.input.field(name)?;
                if matches!(&field.kind, Kind::Message(name) if name == HTTP_BODY) {
                    return Some(any_body());
                }
                (schemas.field(field), must_be_given(field))
            }
            Body::All if self.input.name == HTTP_BODY => return Some(any_body()),
            Body::All if self.input.is_well_known() => (schemas.message(&self.input.name), true),
            Body::All => {
                let variables = self.binding.template.variables().iter();
                let bound: Vec<&str> = variables
                    .filter(|variable| variable.field.len() == 1)
                    .map(|variable| variable.field[0].as_str())
                    .collect();
                let left = |field: &&Field| !bound.contains(&&*field.name);
                let required = self.input.fields.iter().filter(left).any(must_be_given);
                let schema = match bound.as_slice() {
                    [] => schemas.message(&self.input.name),
                    _ => schemas.object(self.input, &bound),
                };
                (schema, required)
            }
        };
        Some(json!({"required": required, "content": {"application/json": {"schema": schema}}}))
    }
}

pub(super) const HTTP_BODY: &str = "google.api.HttpBody";

fn any_body() -> Value {
    json!({"required": false, "content": {"*/*": {"schema": {}}}})
}

fn parameter(
    name: &str,
    place: &str,
    required: bool,
    description: Option<String>,
    schema: &Value,
) -> Value {
    let mut parameter = Map::new();
    parameter.insert("name".to_owned(), json!(name));
    parameter.insert("in".to_owned(), json!(place));
    if let Some(description) = description {
        parameter.insert("description".to_owned(), json!(description));
    }
    parameter.insert("required".to_owned(), json!(required));
    parameter.insert("schema".to_owned(), schema.clone());
    Value::Object(parameter)
}

/// The comment of a field describes the parameter, not its type.
fn take_description(schema: &mut Value) -> Option<String> {
    match schema.as_object_mut()?.remove("description")? {
        Value::String(text) => Some(text),
        _ => None,
    }
}
