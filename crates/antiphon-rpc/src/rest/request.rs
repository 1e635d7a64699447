//! Makes one JSON text of the request message out of path, query and body.
//!
//! What a route takes from where is prepared once. Where the body is the whole message, its bytes are
//! the text, untouched. What the client got wrong is collected, so that one answer names all of it.

mod building;

use std::ops::Range;

use antiphon_contract::template::Template;
use antiphon_contract::{Body as ContractBody, Contract, HttpBinding, Kind};
use antiphon_core::Status;
use bytes::Bytes;

use self::building::Building;
use super::decode::{self, Keep};
use super::schema::{Leaf, Schema, ShapeId, Step};
use super::value::{self, Wrong};
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
    /// The field of this name in JSON, as JSON.
    Field { json_name: String },
    /// Any bytes: a `google.api.HttpBody` that is the message, or this field of it.
    Raw { field: Option<String> },
}

/// A part of the path that is a field.
#[derive(Debug)]
struct Variable {
    path: Vec<Step>,
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
            Some(field.kind == Kind::Message(HTTP_BODY.to_owned()))
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
                    BodyPlan::Raw { field: Some(json_name) }
                } else {
                    BodyPlan::Field { json_name }
                }
            }
        };
        let takes_query = binding.body != ContractBody::All;
        let has_verb = template.verb().is_some();
        Some(Self { input: shape, variables, has_verb, takes_query, body })
    }

    /// A call at the method's own path: the body is the message.
    pub(super) fn plain(schema: &Schema, input: &str) -> Self {
        let input = schema.message(input);
        let (variables, body) = (Vec::new(), BodyPlan::All);
        Self { input, variables, has_verb: false, takes_query: false, body }
    }

    /// Whether the path alone makes an object without objects in it.
    fn is_flat(&self) -> bool {
        !matches!(self.body, BodyPlan::Raw { .. })
            && self.variables.iter().all(|variable| variable.path.len() == 1)
    }

    /// Whether something of the message is in the path.
    pub(super) fn takes_from_path(&self) -> bool {
        !self.variables.is_empty()
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
        let nothing_else = self.variables.is_empty() && said.query.is_empty();
        if self.body == BodyPlan::All && nothing_else && !body.is_empty() {
            return Ok(body);
        }
        let mut building = Building::new(schema, self);
        if body.is_empty() && said.query.is_empty() && self.is_flat() {
            let json = building.path_alone(said.path);
            building.check()?;
            return Ok(Bytes::from(json));
        }
        let mut members = building.body(content_type, &body)?;
        building.variables(said.path, &mut members);
        building.query(said.query, &mut members);
        building.check()?;
        Ok(building::written(&members, body.len() + said.query.len()))
    }
}

impl Variable {
    fn new(
        schema: &Schema,
        input: ShapeId,
        template: &Template,
        declared: &antiphon_contract::template::Variable,
    ) -> Option<Self> {
        let (path, field) = schema.path(input, &declared.field)?;
        let last = template.segments().get(declared.segments.end - 1);
        Some(Self {
            path,
            name: declared.field_path(),
            leaf: field.leaf.clone(),
            segments: declared.segments.clone(),
            open_end: last == Some(&antiphon_contract::template::Segment::Rest),
            keep: if declared.is_single(template) { Keep::Nothing } else { Keep::Slash },
        })
    }

    /// Appends the value that a path has for it, as JSON.
    fn write(&self, path: &str, schema: &Schema, json: &mut String) -> Result<(), Wrong> {
        match decode::path(self.cut(path), self.keep) {
            Ok(text) => value::write(&text, &self.leaf, schema, json),
            Err(error) => Err(Wrong { rule: "escape", description: error.to_string() }),
        }
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
