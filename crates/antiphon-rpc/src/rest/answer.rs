//! Makes the HTTP answer out of the JSON of the answer message.

use antiphon_contract::template::Template;
use antiphon_contract::{Contract, HttpBinding, Kind, Method as ContractMethod};
use antiphon_core::Status;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::{Response, StatusCode};

use super::fill;
use super::scan;
use super::schema::{Schema, ShapeId};
use crate::server::Body;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const HTTP_BODY: &str = "google.api.HttpBody";

/// How the answers of a route are made.
#[derive(Debug)]
pub(super) struct AnswerPlan {
    /// `None` when the message has a JSON form of its own.
    output: Option<ShapeId>,
    /// The field that is sent instead of the whole message.
    selected: Option<[String; 1]>,
    /// What is sent is a `google.api.HttpBody`.
    pub(super) is_raw: bool,
    status: StatusCode,
    location: Option<Location>,
}

/// The `Location` header: where the thing that was made can be found.
#[derive(Debug)]
struct Location {
    template: Template,
    /// The path in JSON of each variable of the template.
    fields: Vec<Vec<String>>,
}

/// Bytes with their type, as a handler gave them in a `google.api.HttpBody`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) content_type: HeaderValue,
    pub(super) data: Bytes,
}

impl AnswerPlan {
    /// Prepares a route.
    pub(super) fn new(
        contract: &Contract,
        schema: &Schema,
        method: &ContractMethod,
        binding: &HttpBinding,
    ) -> Option<Self> {
        let mut plan = Self::plain(schema, method);
        if let Some(name) = &binding.response_body {
            let field =
                contract.field(contract.message(&method.output)?, std::slice::from_ref(name))?;
            plan.selected = Some([field.json_name.clone()]);
            plan.is_raw = field.kind == Kind::Message(HTTP_BODY.to_owned());
        }
        plan.status = StatusCode::from_u16(method.success_status).unwrap_or(StatusCode::OK);
        plan.location = match &method.location {
            Some(template) => Some(Location::new(schema, plan.output?, template)?),
            None => None,
        };
        Some(plan)
    }

    /// A call at the method's own path.
    pub(super) fn plain(schema: &Schema, method: &ContractMethod) -> Self {
        Self {
            output: schema.message(&method.output),
            selected: None,
            is_raw: method.output == HTTP_BODY,
            status: StatusCode::OK,
            location: None,
        }
    }

    /// What is sent of a message that our encoder wrote.
    pub(super) fn select(&self, schema: &Schema, json: Bytes) -> Bytes {
        let json = match self.output {
            Some(shape) if !self.is_raw => fill::zeros(schema, shape, json),
            _ => json,
        };
        match &self.selected {
            None => json,
            // A field that is not set has no other value.
            Some(path) => scan::lookup(&json, path)
                .map_or(Bytes::from_static(b"null"), |value| json.slice_ref(value)),
        }
    }

    /// The bytes of a `google.api.HttpBody`.
    ///
    /// # Errors
    /// INTERNAL when its content type is none.
    pub(super) fn raw(&self, schema: &Schema, json: Bytes) -> Result<Raw, Status> {
        let json = self.select(schema, json);
        let text = |name: &str| {
            scan::lookup(&json, &[name.to_owned()])
                .and_then(|value| serde_json::from_slice::<String>(value).ok())
                .unwrap_or_default()
        };
        let kind = match text("contentType") {
            kind if kind.is_empty() => "application/octet-stream".to_owned(),
            kind => kind,
        };
        let data = STANDARD.decode(text("data")).map_err(Status::internal)?;
        let content_type = HeaderValue::try_from(kind).map_err(Status::internal)?;
        Ok(Raw { content_type, data: data.into() })
    }

    /// The answer to a call with one answer message.
    ///
    /// # Errors
    /// INTERNAL when the handler's content type or the `Location` is none.
    pub(super) fn response(&self, schema: &Schema, json: Bytes) -> Result<Response<Body>, Status> {
        let location = self.location.as_ref().and_then(|location| location.header(&json));
        let (content_type, data) = if self.is_raw {
            let raw = self.raw(schema, json)?;
            (raw.content_type, raw.data)
        } else {
            (JSON, self.select(schema, json))
        };
        let has_body =
            self.status != StatusCode::NO_CONTENT && self.status != StatusCode::RESET_CONTENT;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if let Some(location) = location {
            headers.insert(LOCATION, location);
        }
        if has_body {
            headers.insert(CONTENT_TYPE, content_type);
            *response.body_mut() = Body::full(data);
        }
        Ok(response)
    }
}

impl Location {
    fn new(schema: &Schema, output: ShapeId, template: &Template) -> Option<Self> {
        let path = |names: &[String]| {
            let (path, _) = schema.path(output, names)?;
            Some(path.into_iter().map(|step| step.json).collect())
        };
        let fields: Option<Vec<_>> =
            template.variables().iter().map(|variable| path(&variable.field)).collect();
        Some(Self { template: template.clone(), fields: fields? })
    }

    /// `None` when a field that it needs is empty.
    fn header(&self, json: &[u8]) -> Option<HeaderValue> {
        let path = self.template.expand(|variable| {
            let place = self.template.variables().iter().position(|known| known == variable)?;
            let value = scan::lookup(json, &self.fields[place])?;
            match value.first()? {
                b'"' => serde_json::from_slice(value).ok(),
                _ => std::str::from_utf8(value).ok().map(str::to_owned),
            }
        });
        HeaderValue::try_from(path?).ok()
    }
}
