//! Builds one request message and collects what is wrong with it.

use std::borrow::Cow;

use antiphon_contract::nearest;
use antiphon_core::{FieldViolation, Status};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::value::RawValue;

use super::super::decode;
use super::super::schema::{Count, FieldShape, Leaf, Schema, Shape, Step};
use super::super::tree::{self, Clash, Members, Node};
use super::super::value;
use super::{BodyPlan, RequestPlan};

pub(super) fn written(members: &Members<'_>, len: usize) -> Bytes {
    let mut json = String::with_capacity(64 + len);
    tree::write(members, &mut json);
    Bytes::from(json)
}

pub(super) struct Building<'a> {
    schema: &'a Schema,
    plan: &'a RequestPlan,
    violations: Vec<FieldViolation>,
}

impl<'a> Building<'a> {
    pub(super) fn new(schema: &'a Schema, plan: &'a RequestPlan) -> Self {
        Self { schema, plan, violations: Vec::new() }
    }

    pub(super) fn check(&mut self) -> Result<(), Status> {
        match std::mem::take(&mut self.violations) {
            wrong if wrong.is_empty() => Ok(()),
            wrong => Err(Status::invalid_argument("the request has parameters that are wrong")
                .with_violations(wrong)),
        }
    }

    fn wrong(&mut self, field: &str, rule: &str, description: impl Into<String>) {
        self.violations.push(FieldViolation {
            field: field.to_owned(),
            rule: rule.to_owned(),
            description: description.into(),
        });
    }

    pub(super) fn body<'b>(
        &self,
        content_type: &str,
        body: &'b Bytes,
    ) -> Result<Members<'b>, Status> {
        match &self.plan.body {
            BodyPlan::None => Ok(Vec::new()),
            BodyPlan::All if body.is_empty() => Ok(Vec::new()),
            BodyPlan::All => tree::object(body).map_err(|error| malformed(&error)),
            BodyPlan::Field { .. } if body.is_empty() => Ok(Vec::new()),
            BodyPlan::Field { json_name } => {
                let value: &RawValue =
                    serde_json::from_slice(body).map_err(|error| malformed(&error))?;
                Ok(vec![(Cow::Owned(json_name.clone()), Node::Json(value.get().into()))])
            }
            BodyPlan::Raw { field } => {
                let mut kind = String::new();
                value::quote(content_type, &mut kind);
                let data = format!("\"{}\"", STANDARD.encode(body));
                let members = vec![
                    (Cow::Borrowed("contentType"), Node::Json(kind.into())),
                    (Cow::Borrowed("data"), Node::Json(data.into())),
                ];
                Ok(match field {
                    None => members,
                    Some(field) => vec![(Cow::Owned(field.clone()), Node::Object(members))],
                })
            }
        }
    }

    /// The path without its first slash and its verb.
    fn segments<'p>(&self, path: &'p str) -> &'p str {
        let path = path.strip_prefix('/').unwrap_or(path);
        match path.rfind(':') {
            Some(colon) if self.plan.has_verb => &path[..colon],
            _ => path,
        }
    }

    /// The message of a request that says all in its path. Most GET requests do.
    pub(super) fn path_alone(&mut self, path: &str) -> String {
        let path = self.segments(path);
        let mut json = String::with_capacity(path.len() + 32);
        json.push('{');
        for (place, variable) in self.plan.variables.iter().enumerate() {
            if place > 0 {
                json.push(',');
            }
            value::quote(&variable.path[0].json, &mut json);
            json.push(':');
            if let Err(wrong) = variable.write(path, self.schema, &mut json) {
                self.wrong(&variable.name, wrong.rule, wrong.description);
            }
        }
        json.push('}');
        json
    }

    pub(super) fn variables(&mut self, path: &str, members: &mut Members<'_>) {
        let path = self.segments(path);
        for variable in &self.plan.variables {
            let mut json = String::new();
            if let Err(wrong) = variable.write(path, self.schema, &mut json) {
                self.wrong(&variable.name, wrong.rule, wrong.description);
                continue;
            }
            match tree::put(members, &variable.path, json) {
                Ok(()) => {}
                Err(Clash::Taken) => {
                    let description = "differs from what the path says; leave it out of the body";
                    self.wrong(&variable.name, "bound_by_path", description);
                }
                Err(Clash::NoObject) => {
                    self.wrong(&variable.name, "type", "must be an object around this field");
                }
            }
        }
    }

    pub(super) fn query(&mut self, query: &str, members: &mut Members<'_>) {
        for (name, text) in decode::pairs(query) {
            let (name, text) = match (decode::query(name), decode::query(text)) {
                (Ok(name), Ok(text)) => (name, text),
                (Err(error), _) | (_, Err(error)) => {
                    self.wrong(name, "escape", error.to_string());
                    continue;
                }
            };
            if let Err((rule, description)) = self.parameter(&name, &text, members) {
                self.wrong(&name, rule, description);
            }
        }
    }

    fn parameter(
        &self,
        name: &str,
        text: &str,
        members: &mut Members<'_>,
    ) -> Result<(), (&'static str, String)> {
        if !self.plan.takes_query {
            let description = "the body holds the whole request; there are no query parameters";
            return Err(("unknown_field", description.to_owned()));
        }
        let (path, field) = self.field(name)?;
        for variable in &self.plan.variables {
            if variable.path.starts_with(&path) || path.starts_with(&variable.path) {
                return Err(("bound_by_path", format!("the path says {} already", variable.name)));
            }
        }
        let in_body = match &self.plan.body {
            BodyPlan::Field { json_name } | BodyPlan::Raw { field: Some(json_name) } => {
                path.first().is_some_and(|step| step.json == *json_name)
            }
            _ => false,
        };
        if in_body {
            return Err(("bound_by_body", "is the body of the request".to_owned()));
        }
        let mut json = String::new();
        value::write(text, &field.leaf, self.schema, &mut json)
            .map_err(|wrong| (wrong.rule, wrong.description))?;
        let put = match field.count {
            Count::Many => tree::push(members, &path, json),
            // A second value is refused even if it is the same one.
            Count::One if tree::holds(members, &path) => Err(Clash::Taken),
            Count::One | Count::Map => tree::put(members, &path, json),
        };
        put.map_err(|_| ("duplicate", "is given more than once".to_owned()))
    }

    /// The field of a parameter: `order.lines`.
    fn field(&self, name: &str) -> Result<(Vec<Step>, &FieldShape), (&'static str, String)> {
        let mut shape = self.plan.input.map(|input| self.schema.shape(input));
        let mut path = Vec::new();
        let mut steps = name.split('.').peekable();
        while let Some(step) = steps.next() {
            let Some(message) = shape else {
                return Err(("unknown_field", "is a field of no message".to_owned()));
            };
            let field = message.field(step).ok_or_else(|| unknown(step, message))?;
            path.push(field.step());
            if field.count == Count::Map {
                return Err(("map", "is a map; maps are only taken from the body".to_owned()));
            }
            if steps.peek().is_none() {
                return Ok((path, field));
            }
            shape = match (&field.leaf, field.count) {
                (Leaf::Message(inner), Count::One) => Some(self.schema.shape(*inner)),
                (Leaf::Message(_), _) => {
                    let description = "is a list of messages; such are only taken from the body";
                    return Err(("message", description.to_owned()));
                }
                _ => None,
            };
        }
        Err(("unknown_field", "there is no such parameter".to_owned()))
    }
}

fn unknown(name: &str, message: &Shape) -> (&'static str, String) {
    let known = message.fields.iter().map(|field| field.json_name.as_str());
    let hint =
        nearest(name, known).map_or_else(String::new, |near| format!("; did you mean \"{near}\"?"));
    ("unknown_field", format!("{} has no field \"{name}\"{hint}", message.name))
}

/// What is wrong with a body that is not the JSON it should be.
fn malformed(error: &serde_json::Error) -> Status {
    let what = if error.is_data() { "not what it should be" } else { "not valid JSON" };
    Status::invalid_argument(format!("the body is {what}: {error}"))
}
