//! Errors as problem details (RFC 9457), with the fields that the same error has over RPC.

use antiphon_core::{Context, Status};
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde::Serialize;

use crate::server::Body;

const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem<'a> {
    // The code, reason and domain say what happened; there is no page to point to.
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    domain: &'a str,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    metadata: serde_json::Map<String, serde_json::Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    violations: Vec<Violation<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
}

#[derive(Serialize)]
struct Violation<'a> {
    field: &'a str,
    rule: &'a str,
    description: &'a str,
}

/// The problem as JSON. The ids are those of the call, where there was one.
pub(super) fn json(status: &Status, context: Option<&Context>) -> String {
    let http = http_status(status);
    let metadata =
        status.metadata().iter().map(|(name, value)| (name.clone(), value.clone().into()));
    let violations = status.violations().iter().map(|violation| Violation {
        field: &violation.field,
        rule: &violation.rule,
        description: &violation.description,
    });
    let problem = Problem {
        kind: "about:blank",
        title: title(http),
        status: http.as_u16(),
        detail: status.message(),
        code: status.code().name(),
        reason: status.reason(),
        domain: status.domain(),
        metadata: metadata.collect(),
        violations: violations.collect(),
        trace_id: context.map(|context| context.trace().trace_id.to_string()),
        correlation_id: context.map(|context| context.correlation_id().into_owned()),
    };
    // Strings and numbers always have a JSON form.
    serde_json::to_string(&problem).unwrap_or_default()
}

/// The problem as an answer.
pub(super) fn response(status: &Status, context: Option<&Context>) -> Response<Body> {
    let mut response = Response::new(Body::full(json(status, context)));
    *response.status_mut() = http_status(status);
    response.headers_mut().insert(CONTENT_TYPE, PROBLEM);
    if let Some(wait) = status.retry_after() {
        // Whole seconds only; rounded up, so that nobody comes too early.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn http_status(status: &Status) -> StatusCode {
    StatusCode::from_u16(status.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn title(status: StatusCode) -> &'static str {
    match status.canonical_reason() {
        Some(reason) => reason,
        None if status.as_u16() == 499 => "Client Closed Request",
        None => "Error",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use antiphon_core::{FieldViolation, Retry};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_problem_says_all_that_the_status_says() {
        let status = Status::failed_precondition("the order is decided")
            .with_reason("ALREADY_DECIDED", "shop.orders")
            .with_metadata("status", "CONFIRMED")
            .with_http_status(409)
            .with_retry(Retry::After(Duration::from_millis(1_200)))
            .with_source("a secret")
            .with_violations([FieldViolation {
                field: "id".to_owned(),
                rule: "decided".to_owned(),
                description: "is decided".to_owned(),
            }]);
        let context = Context::root().with_correlation_id("order-7");
        let response = response(&status, Some(&context));
        assert_eq!(response.status(), 409);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        let problem: serde_json::Value =
            serde_json::from_str(&json(&status, Some(&context))).unwrap();
        let expected = json!({
            "type": "about:blank",
            "title": "Conflict",
            "status": 409,
            "detail": "the order is decided",
            "code": "FAILED_PRECONDITION",
            "reason": "ALREADY_DECIDED",
            "domain": "shop.orders",
            "metadata": {"status": "CONFIRMED"},
            "violations": [{"field": "id", "rule": "decided", "description": "is decided"}],
            "traceId": context.trace().trace_id.to_string(),
            "correlationId": "order-7",
        });
        assert_eq!(problem, expected);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let problem: serde_json::Value =
            serde_json::from_str(&json(&Status::not_found("no"), None)).unwrap();
        let expected = json!({
            "type": "about:blank", "title": "Not Found", "status": 404, "detail": "no",
            "code": "NOT_FOUND",
        });
        assert_eq!(problem, expected);
    }
}
