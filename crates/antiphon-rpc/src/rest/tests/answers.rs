//! What becomes of answers and errors.

use std::time::Duration;

use antiphon_core::{FieldViolation, Retry, Status};
use serde_json::{Value, json};

use super::{Server, request};

#[tokio::test]
async fn zeros_are_there_and_what_is_not_set_is_not() {
    let server = Server::new();
    server.things.answer(Ok(json!({
        "name": "a", "inner": {"n": 1}, "parts": [{}, {"id": "p"}], "named": {"k": {}},
        "any": {"x": 1.5},
    })));
    let answer = server.get("/v1/things/a").await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("content-length"), answer.body.len().to_string());
    let part = |id: &str, n: i32| json!({"id": id, "n": n, "tags": []});
    assert_eq!(
        answer.json(),
        json!({
            "name": "a", "i32": 0, "i64": "0", "u32": 0, "big": "0", "ratio": 0, "exact": 0,
            "flag": false, "raw": "", "color": "COLOR_UNSPECIFIED", "tags": [], "numbers": [],
            "colors": [], "inner": part("", 1), "labels": {}, "parts": [part("", 0), part("p", 0)],
            "any": {"x": 1.5}, "snakeCaseName": "", "named": {"k": part("", 0)},
        })
    );
    server.things.answer(Ok(json!({})));
    assert_eq!(server.get("/v1/things/a").await.json()["i64"], "0");
}

#[tokio::test]
async fn the_contract_sets_status_and_location() {
    let server = Server::new();
    let created = server.json("POST", "/v1/things", r#"{"name":"a/b","inner":{"id":"c d"}}"#).await;
    assert_eq!(created.status(), 201);
    assert_eq!(created.header("location"), "/v1/things/a%2Fb/c%20d");
    let nameless = server.json("POST", "/v1/things", r#"{"inner":{"id":"c"}}"#).await;
    assert_eq!((nameless.status(), nameless.header("location")), (201, ""));
    server.things.answer(Ok(json!({})));
    let deleted = server.call(request("DELETE", "/v1/things/a", &[], "")).await;
    assert_eq!((deleted.status(), deleted.body.len()), (204, 0));
    assert_eq!(deleted.header("content-type"), "");
}

#[tokio::test]
async fn a_field_of_the_answer_can_be_the_body() {
    let server = Server::new();
    for (path, answer, body) in [
        (
            "/v1/things/a/inner",
            json!({"inner": {"id": "x"}}),
            json!({"id": "x", "n": 0, "tags": []}),
        ),
        ("/v1/things/a/inner", json!({}), Value::Null),
        ("/v1/things/a/tags", json!({"tags": ["a", "]\""]}), json!(["a", "]\""])),
        ("/v1/things/a/tags", json!({}), json!([])),
    ] {
        server.things.answer(Ok(answer));
        assert_eq!(server.get(path).await.json(), body, "{path}");
    }
}

#[tokio::test]
async fn bytes_of_any_type_are_sent_raw() {
    let server = Server::new();
    server.things.answer(Ok(json!({"contentType": "image/png", "data": "iVBORw=="})));
    let accept_png = request("GET", "/v1/download/a", &[("accept", "image/png")], "");
    let answer = server.call(accept_png).await;
    assert_eq!(answer.header("content-type"), "image/png");
    assert_eq!(&answer.body[..], b"\x89PNG");
    server.things.answer(Ok(json!({})));
    let answer = server.get("/v1/download/a").await;
    assert_eq!(answer.header("content-type"), "application/octet-stream");
    assert_eq!((answer.status(), answer.body.len()), (200, 0));
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let server = Server::new();
    let got = server.get("/v1/things/a").await;
    let head = server.call(request("HEAD", "/v1/things/a", &[], "")).await;
    assert_eq!(head.status(), 200);
    assert_eq!(head.header("content-length"), got.header("content-length"));
    assert_eq!(head.header("content-type"), "application/json");
    assert!(head.body.is_empty());
}

#[tokio::test]
async fn a_client_that_takes_no_json_gets_406() {
    let server = Server::new();
    for (accept, status) in [
        ("application/json", 200),
        ("text/html,application/xhtml+xml,*/*;q=0.8", 200),
        ("application/*", 200),
        ("text/html", 406),
        ("application/json;q=0", 406),
    ] {
        let answer = server.call(request("GET", "/v1/things/a", &[("accept", accept)], "")).await;
        assert_eq!(answer.status(), status, "{accept}");
    }
    assert_eq!(server.things.received().len(), 3, "what cannot be answered is not done");
}

#[tokio::test]
async fn errors_are_problems_with_all_that_the_status_says() {
    let server = Server::new();
    let status = Status::failed_precondition("too late")
        .with_reason("TOO_LATE", "things")
        .with_metadata("since", "noon")
        .with_http_status(409)
        .with_retry(Retry::After(Duration::from_secs(3)))
        .with_violations([FieldViolation {
            field: "at".to_owned(),
            rule: "timestamp.lt_now".to_owned(),
            description: "is over".to_owned(),
        }]);
    server.things.answer(Err(status));
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [("traceparent", parent.as_str()), ("x-correlation-id", "c-1")];
    let answer = server.call(request("GET", "/v1/things/a", &headers, "")).await;
    assert_eq!((answer.status(), answer.header("retry-after")), (409, "3"));
    assert_eq!(answer.header("content-length"), answer.body.len().to_string());
    let problem = answer.json();
    assert_eq!(
        problem,
        json!({
            "type": "about:blank", "title": "Conflict", "status": 409, "detail": "too late",
            "code": "FAILED_PRECONDITION", "reason": "TOO_LATE", "domain": "things",
            "metadata": {"since": "noon"},
            "violations": [{"field": "at", "rule": "timestamp.lt_now", "description": "is over"}],
            "traceId": trace, "correlationId": "c-1",
        })
    );
}

#[tokio::test]
async fn a_bad_timeout_is_refused_and_a_timeout_holds() {
    let server = Server::new();
    let answer = server.call(request("GET", "/v1/things/a", &[("grpc-timeout", "soon")], "")).await;
    assert_eq!(answer.status(), 400);
    let answer = server.call(request("GET", "/v1/things/a", &[("grpc-timeout", "0m")], "")).await;
    assert_eq!((answer.status(), answer.json()["code"].as_str()), (504, Some("DEADLINE_EXCEEDED")));
}
