//! Makes one JSON text of the request message out of path, query and body.
//!
//! What a route takes from where is prepared once. Where the body is the whole message, its bytes are
//! the text, untouched. What the client got wrong is collected, so that one answer names all of it.

use std::borrow::Cow;
use std::ops::Range;

use antiphon_contract::template::Template;
use antiphon_contract::{Body as ContractBody, Contract, HttpBinding};
use antiphon_core::{FieldViolation, Status};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::value::RawValue;

use super::decode::{self, Keep};
use super::schema::{Count, FieldShape, Leaf, Schema, ShapeId};
use super::tree::{self, Clash, Members, Node};
use super::value;
use crate::service::MethodKind;

/// How the request message of a route is made.
#[derive(Debug)]
pub(super) struct RequestPlan {
    /// `None` when the message has a JSON form of its own; then everything is in the body.
    input: Option<ShapeId>,
    variables: Vec<Variable>,
    has_verb: bool,
    /// Whether what is neither in the path nor in the body may be in the query.
    takes_query: bool,
    pub(super) body: BodyPlan,
}

/// What the body is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyPlan {
    /// There is none.
    None,
    /// Everything that is not in the path, as JSON.
    All,
    /// This field (its names in JSON and in the contract), as JSON.
    Field { json_name: String, name: String },
    /// Any bytes: a `google.api.HttpBody` that is the message, or this field of it.
    Raw { field: Option<String> },
}

/// A part of the path that is a field.
#[derive(Debug)]
struct Variable {
    /// The names in JSON.
    path: Vec<String>,
    /// The names in the contract, with dots.
    name: String,
    leaf: Leaf,
    segments: Range<usize>,
    /// Takes whatever is left.
    open_end: bool,
    keep: Keep,
}

/// What a request says apart from its body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    /// The path, raw.
    pub(super) path: &'a str,
    /// The query, raw, without the question mark.
    pub(super) query: &'a str,
}

const HTTP_BODY: &str = "google.api.HttpBody";

impl RequestPlan {
    /// Prepares a route to a method with this request message.
    pub(super) fn new(
        contract: &Contract,
        schema: &Schema,
        input: &str,
        binding: &HttpBinding,
        kind: MethodKind,
    ) -> Option<Self> {
        let shape = schema.message(input);
        let template = &binding.template;
        let mut variables = Vec::new();
        for declared in template.variables() {
            variables.push(Variable::new(schema, shape?, template, declared)?);
        }
        let is_raw = |field: &str| {
            let message = contract.message(input)?;
            let field = contract.field(message, &[field.to_owned()])?;
            Some(field.kind == antiphon_contract::Kind::Message(HTTP_BODY.to_owned()))
        };
        let streams_in = matches!(kind, MethodKind::ClientStream | MethodKind::Bidi);
        let body = match &binding.body {
            // What the client streams are whole messages.
            ContractBody::None if streams_in => BodyPlan::All,
            ContractBody::None => BodyPlan::None,
            ContractBody::All if input == HTTP_BODY => BodyPlan::Raw { field: None },
            ContractBody::All => BodyPlan::All,
            ContractBody::Field(name) => {
                let json_name = schema.shape(shape?).field(name)?.json_name.clone();
                if is_raw(name) == Some(true) {
                    BodyPlan::Raw {
                        field: Some(json_name),
                    }
                } else {
                    BodyPlan::Field {
                        json_name,
                        name: name.clone(),
                    }
                }
            }
        };
        let takes_query = binding.body != ContractBody::All;
        let has_verb = template.verb().is_some();
        Some(Self {
            input: shape,
            variables,
            has_verb,
            takes_query,
            body,
        })
    }

    /// A call at the method's own path: the body is the message.
    pub(super) fn plain(schema: &Schema, input: &str) -> Self {
        let input = schema.message(input);
        let (variables, body) = (Vec::new(), BodyPlan::All);
        Self {
            input,
            variables,
            has_verb: false,
            takes_query: false,
            body,
        }
    }

    /// Whether something of the message is in the path.
    pub(super) fn takes_from_path(&self) -> bool {
        !self.variables.is_empty()
    }

    /// A message of a stream: the first one with what path and query say, the others without.
    ///
    /// # Errors
    /// As [`message`](Self::message).
    pub(super) fn stream_message(
        &self,
        schema: &Schema,
        first: Option<Said<'_>>,
        message: Bytes,
    ) -> Result<Bytes, Status> {
        match (first, &self.body) {
            (Some(said), _) => self.message(schema, said, "", message),
            (None, BodyPlan::All) => Ok(message),
            (None, _) => {
                let members = Building::new(schema, self).body("", &message)?;
                Ok(written(&members, message.len()))
            }
        }
    }

    /// The request message.
    ///
    /// # Errors
    /// INVALID_ARGUMENT with everything that is wrong.
    pub(super) fn message(
        &self,
        schema: &Schema,
        said: Said<'_>,
        content_type: &str,
        body: Bytes,
    ) -> Result<Bytes, Status> {
        if self.body == BodyPlan::All && self.variables.is_empty() && said.query.is_empty() {
            return Ok(if body.is_empty() {
                Bytes::from_static(b"{}")
            } else {
                body
            });
        }
        let mut building = Building::new(schema, self);
        let mut members = building.body(content_type, &body)?;
        building.variables(said.path, &mut members);
        building.query(said.query, &mut members);
        if !building.violations.is_empty() {
            return Err(
                Status::invalid_argument("the request has parameters that are wrong")
                    .with_violations(building.violations),
            );
        }
        Ok(written(&members, body.len() + said.query.len()))
    }
}

fn written(members: &Members<'_>, len: usize) -> Bytes {
    let mut json = String::with_capacity(64 + len);
    tree::write(members, &mut json);
    Bytes::from(json)
}

impl Variable {
    fn new(
        schema: &Schema,
        input: ShapeId,
        template: &Template,
        declared: &antiphon_contract::template::Variable,
    ) -> Option<Self> {
        let mut path = Vec::new();
        let mut shape = Some(input);
        let mut leaf = None;
        for name in &declared.field {
            let field = schema.shape(shape?).field(name)?;
            path.push(field.json_name.clone());
            shape = match field.leaf {
                Leaf::Message(inner) => Some(inner),
                _ => None,
            };
            leaf = Some(field.leaf.clone());
        }
        let last = template.segments().get(declared.segments.end - 1);
        Some(Self {
            path,
            name: declared.field_path(),
            leaf: leaf?,
            segments: declared.segments.clone(),
            open_end: last == Some(&antiphon_contract::template::Segment::Rest),
            keep: if declared.is_single(template) {
                Keep::Nothing
            } else {
                Keep::Slash
            },
        })
    }

    /// What of the path is the value.
    fn cut<'a>(&self, path: &'a str) -> &'a str {
        let mut rest = path;
        for _ in 0..self.segments.start {
            rest = rest.split_once('/').map_or("", |(_, rest)| rest);
        }
        if self.open_end {
            return rest;
        }
        let mut slashes = rest.match_indices('/');
        match slashes.nth(self.segments.len() - 1) {
            Some((end, _)) => &rest[..end],
            None => rest,
        }
    }
}

struct Building<'a> {
    schema: &'a Schema,
    plan: &'a RequestPlan,
    violations: Vec<FieldViolation>,
}

impl<'a> Building<'a> {
    fn new(schema: &'a Schema, plan: &'a RequestPlan) -> Self {
        Self {
            schema,
            plan,
            violations: Vec::new(),
        }
    }

    fn wrong(&mut self, field: &str, rule: &str, description: impl Into<String>) {
        self.violations.push(FieldViolation {
            field: field.to_owned(),
            rule: rule.to_owned(),
            description: description.into(),
        });
    }

    fn body<'b>(&self, content_type: &str, body: &'b Bytes) -> Result<Members<'b>, Status> {
        match &self.plan.body {
            BodyPlan::None => Ok(Vec::new()),
            BodyPlan::All if body.is_empty() => Ok(Vec::new()),
            BodyPlan::All => {
                let mut members = tree::object(body).map_err(|error| malformed(&error))?;
                self.use_json_names(&mut members);
                Ok(members)
            }
            BodyPlan::Field { .. } if body.is_empty() => Ok(Vec::new()),
            BodyPlan::Field { json_name, .. } => {
                let value: &RawValue =
                    serde_json::from_slice(body).map_err(|error| malformed(&error))?;
                Ok(vec![(
                    Cow::Owned(json_name.clone()),
                    Node::Json(value.get().into()),
                )])
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

    /// So that what the path says finds its place whichever name the body uses.
    fn use_json_names(&self, members: &mut Members<'_>) {
        let Some(input) = self.plan.input else { return };
        let shape = self.schema.shape(input);
        for (name, _) in members {
            if let Some(field) = shape.field(name)
                && field.json_name != **name
            {
                *name = Cow::Owned(field.json_name.clone());
            }
        }
    }

    fn variables(&mut self, path: &str, members: &mut Members<'_>) {
        let plan = self.plan;
        let path = path.strip_prefix('/').unwrap_or(path);
        let path = match path.rfind(':') {
            Some(colon) if plan.has_verb => &path[..colon],
            _ => path,
        };
        for variable in &plan.variables {
            let mut json = String::new();
            let read = decode::path(variable.cut(path), variable.keep)
                .map_err(|error| ("escape", error.to_string()))
                .and_then(|text| {
                    value::write(&text, &variable.leaf, self.schema, &mut json)
                        .map_err(|wrong| (wrong.rule, wrong.description))
                });
            if let Err((rule, description)) = read {
                self.wrong(&variable.name, rule, description);
                continue;
            }
            match tree::put(members, &variable.path, json) {
                Ok(()) => {}
                Err(Clash::Taken) => {
                    let description = "differs from what the path says; leave it out of the body";
                    self.wrong(&variable.name, "bound_by_path", description);
                }
                Err(Clash::NoObject) => {
                    self.wrong(
                        &variable.name,
                        "type",
                        "must be an object around this field",
                    );
                }
            }
        }
    }

    fn query(&mut self, query: &str, members: &mut Members<'_>) {
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
                return Err((
                    "bound_by_path",
                    format!("the path says {} already", variable.name),
                ));
            }
        }
        let in_body = match &self.plan.body {
            BodyPlan::Field { json_name, .. }
            | BodyPlan::Raw {
                field: Some(json_name),
            } => path.first() == Some(json_name),
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
            Count::One if holds(members, &path) => Err(Clash::Taken),
            Count::One | Count::Map => tree::put(members, &path, json),
        };
        put.map_err(|_| ("duplicate", "is given more than once".to_owned()))
    }

    /// The field of a parameter: `order.lines`.
    fn field(&self, name: &str) -> Result<(Vec<String>, &FieldShape), (&'static str, String)> {
        let unknown = |step: &str, message: &str| {
            let description = match step == name {
                true => "there is no such parameter".to_owned(),
                false => format!("{message} has no field \"{step}\""),
            };
            ("unknown_field", description)
        };
        let mut shape = self.plan.input.map(|input| self.schema.shape(input));
        let mut path = Vec::new();
        let mut steps = name.split('.').peekable();
        while let Some(step) = steps.next() {
            let Some(message) = shape else {
                return Err(("unknown_field", format!("has no field \"{step}\"")));
            };
            let field = message
                .field(step)
                .ok_or_else(|| unknown(step, &message.name))?;
            path.push(field.json_name.clone());
            if field.count == Count::Map {
                return Err((
                    "map",
                    "is a map; maps are only taken from the body".to_owned(),
                ));
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
        Err(unknown(name, ""))
    }
}

fn holds(members: &Members<'_>, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return true;
    };
    members.iter().any(|(name, node)| {
        name == first
            && match node {
                Node::Object(members) => holds(members, rest),
                Node::Json(_) | Node::List(_) => rest.is_empty(),
            }
    })
}

/// What is wrong with a body that is not the JSON it should be.
fn malformed(error: &serde_json::Error) -> Status {
    let what = if error.is_data() {
        "not what it should be"
    } else {
        "not valid JSON"
    };
    Status::invalid_argument(format!("the body is {what}: {error}"))
}
