//! What a route answers: the good answer, and problem details (RFC 9457) for everything else.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::operation::{HTTP_BODY, Operation};
use crate::model::{Body, Contract, Idempotency, Kind, MethodKind, Service};
use crate::schema::Schemas;

const PROBLEM: &str = "application/problem+json";

/// A status of HTTP, its name, the canonical code that it stands for, and what it means.
type Refusal = (u16, &'static str, &'static str, &'static str);

/// What the server answers by itself, before and around the handler.
const REFUSALS: [Refusal; 15] = [
    (400, "Bad Request", "INVALID_ARGUMENT", "The request is not as the contract says."),
    (401, "Unauthorized", "UNAUTHENTICATED", "The caller is not known."),
    (403, "Forbidden", "PERMISSION_DENIED", "The caller may not."),
    (404, "Not Found", "NOT_FOUND", "There is no such thing."),
    (406, "Not Acceptable", "INVALID_ARGUMENT", "No media type that the caller takes is there."),
    (408, "Request Timeout", "DEADLINE_EXCEEDED", "The request did not arrive in time."),
    (409, "Conflict", "ABORTED", "The state does not allow it."),
    (413, "Payload Too Large", "RESOURCE_EXHAUSTED", "The request is too large."),
    (415, "Unsupported Media Type", "INVALID_ARGUMENT", "The body is not JSON."),
    (429, "Too Many Requests", "RESOURCE_EXHAUSTED", "Too much; try again later."),
    (499, "Client Closed Request", "CANCELLED", "The caller went away."),
    (500, "Internal Server Error", "INTERNAL", "A bug."),
    (501, "Not Implemented", "UNIMPLEMENTED", "Not implemented."),
    (503, "Service Unavailable", "UNAVAILABLE", "Not now; try again."),
    (504, "Gateway Timeout", "DEADLINE_EXCEEDED", "The deadline of the call has passed."),
];

/// A stream that only a WebSocket carries.
const UPGRADE: Refusal =
    (426, "Upgrade Required", "INVALID_ARGUMENT", "The request does not open a WebSocket.");

/// A second call with a key that was another's.
const KEY_REUSED: Refusal = (
    422,
    "Unprocessable Entity",
    "FAILED_PRECONDITION",
    "The idempotency key was used for another request (`IDEMPOTENCY_KEY_REUSED`).",
);

pub(super) fn responses<'a>(
    contract: &'a Contract,
    service: &Service,
    operation: &Operation<'a, '_>,
    schemas: &mut Schemas<'a>,
) -> Value {
    let mut responses = Map::new();
    let (status, good) = good(contract, operation, schemas);
    responses.insert(status, good);
    let mut reasons = reasons(contract, service);
    let mut refusals = REFUSALS.to_vec();
    if operation.binding.body == Body::None {
        refusals.retain(|(status, ..)| *status != 415);
    }
    if operation.streams_requests() {
        refusals.push(UPGRADE);
    }
    if operation.method.idempotency == Idempotency::ByKey {
        refusals.push(KEY_REUSED);
    }
    for (status, title, code, words) in refusals {
        let description = match reasons.remove(&status) {
            None => words.to_owned(),
            Some(reasons) => {
                format!("{words}\n\nReasons of this service:\n\n{}", reasons.join("\n"))
            }
        };
        let mut refusal = described(&description);
        refusal["content"][PROBLEM]["example"] = json!({
            "type": "about:blank",
            "title": title,
            "status": status,
            "detail": words,
            "code": code,
        });
        responses.insert(status.to_string(), refusal);
    }
    for (status, reasons) in reasons {
        responses.insert(status.to_string(), described(&reasons.join("\n")));
    }
    responses.insert("default".to_owned(), json!({"$ref": "#/components/responses/Problem"}));
    Value::Object(responses)
}

fn described(description: &str) -> Value {
    json!({
        "description": description,
        "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    })
}

/// The reasons that the package of a service declares, by HTTP status.
fn reasons(contract: &Contract, service: &Service) -> BTreeMap<u16, Vec<String>> {
    let mut by_status: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for enumeration in contract.enums.values() {
        let package = enumeration.name.rsplit_once('.').map_or("", |(package, _)| package);
        if package != service.package() || enumeration.errors.is_none() {
            continue;
        }
        for value in &enumeration.values {
            let Some(reason) = &value.reason else { continue };
            let docs = value.source.docs.replace('\n', " ");
            let line = format!("* `{}`: {docs}", reason.name);
            let line = line.trim_end_matches([' ', ':']).to_owned();
            by_status.entry(reason.status()).or_default().push(line);
        }
    }
    by_status
}

fn good<'a>(
    contract: &'a Contract,
    operation: &Operation<'a, '_>,
    schemas: &mut Schemas<'a>,
) -> (String, Value) {
    let method = operation.method;
    if operation.streams_requests() {
        return ("101".to_owned(), json!({"description": "The WebSocket is open."}));
    }
    let output = contract.message(&method.output);
    let field = output.zip(operation.binding.response_body.as_deref());
    let field = field.and_then(|(output, name)| output.field(name));
    let raw = match field {
        Some(field) => matches!(&field.kind, Kind::Message(name) if name == HTTP_BODY),
        None => method.output == HTTP_BODY,
    };
    let schema = match field {
        _ if raw => json!({}),
        Some(field) => schemas.field(field),
        None => schemas.message(&method.output),
    };
    let content = match method.kind {
        _ if raw => json!({"*/*": {"schema": schema}}),
        MethodKind::ServerStream => json!({
            "application/x-ndjson": {"schema": schema},
            "text/event-stream": {"schema": {"type": "string"}},
        }),
        _ => json!({"application/json": {"schema": schema}}),
    };
    let mut answer = Map::new();
    let description = match method.kind {
        MethodKind::ServerStream => "One JSON text per line, or one event each.",
        _ => "Done.",
    };
    answer.insert("description".to_owned(), json!(description));
    if let Some(location) = &method.location {
        let description = format!("`{location}`, filled from the answer.");
        let schema = json!({"type": "string", "format": "uri-reference"});
        let header = json!({"description": description, "schema": schema});
        answer.insert("headers".to_owned(), json!({"Location": header}));
    }
    if !matches!(method.success_status, 204 | 205) {
        answer.insert("content".to_owned(), content);
    }
    (method.success_status.to_string(), Value::Object(answer))
}

pub(super) fn problem() -> Value {
    described("What went wrong.")
}

pub(super) fn problem_schema() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "What went wrong (RFC 9457): the same as over RPC.",
        "properties": {
            "type": {"type": "string", "format": "uri-reference"},
            "title": text("The HTTP status in words."),
            "status": {"type": "integer", "description": "The HTTP status."},
            "detail": text("What is wrong, for people."),
            "instance": {"type": "string", "format": "uri-reference"},
            "code": text("The canonical code of gRPC: `NOT_FOUND`."),
            "reason": text("The stable reason, for programs."),
            "domain": text("Where the reason is unique."),
            "metadata": {
                "type": "object",
                "description": "Facts for programs.",
                "additionalProperties": {"type": "string"},
            },
            "violations": {
                "type": "array",
                "description": "The fields that are wrong.",
                "items": {
                    "type": "object",
                    "properties": {
                        "field": text("The path of the field: `lines[0].quantity`."),
                        "rule": text("The rule that it breaks: `int32.gt`."),
                        "description": text("What is wrong, for people."),
                    },
                    "required": ["field", "rule", "description"],
                },
            },
            "traceId": text("The trace of the call."),
            "correlationId": text("What the call belongs to."),
        },
        "required": ["type", "title", "status"],
    })
}
