//! What becomes of request bodies.

use serde_json::json;

use super::{Server, request};
use crate::rest::RestSettings;
use crate::server::ServerSettings;

#[tokio::test]
async fn a_body_is_the_message_or_a_field_of_it() {
    let server = Server::new();
    for (verb, path, body, message) in [
        ("POST", "/v1/things", r#"{"name":"a","i64":"7"}"#, json!({"name": "a", "i64": "7"})),
        ("POST", "/v1/things", "", json!({})),
        ("POST", "/v1/things", " {} ", json!({})),
        ("PUT", "/v1/things/a", r#"{"i32":1}"#, json!({"name": "a", "i32": 1})),
        ("PUT", "/v1/things/a", "{}", json!({"name": "a"})),
        ("PUT", "/v1/things/a", "", json!({"name": "a"})),
        ("PUT", "/v1/things/a", r#" { "name" : "a" } "#, json!({"name": "a"})),
        (
            "PUT",
            "/v1/inner/x/things",
            r#"{"inner":{"n":1,"deep":{"x":"y"}},"name":"b"}"#,
            json!({"name": "b", "inner": {"id": "x", "n": 1, "deep": {"x": "y"}}}),
        ),
        ("PUT", "/v1/inner/x/things", r#"{"inner":{"id":"x"}}"#, json!({"inner": {"id": "x"}})),
        (
            "POST",
            "/v1/replace/s",
            r#"{"snake_case_name":"s","i32":1}"#,
            json!({"snakeCaseName": "s", "i32": 1}),
        ),
        // PATCH with a field mask in the query.
        (
            "PATCH",
            "/v1/things/a?mask=inner.id,inner.n&i32=4",
            r#"{"id":"x","n":0}"#,
            json!({"name": "a", "i32": 4, "mask": "inner.id,inner.n", "inner": {"id": "x"}}),
        ),
        ("PATCH", "/v1/things/a", "", json!({"name": "a"})),
        ("PUT", "/v1/things/a/left", r#""text""#, json!({"name": "a", "left": "text"})),
    ] {
        let answer = server.json(verb, path, body).await;
        assert!(answer.head.status.is_success(), "{verb} {path} {body}: {:?}", answer.body);
        assert_eq!(server.received(), message, "{verb} {path} {body}");
    }
}

#[tokio::test]
async fn a_body_that_contradicts_the_path_is_refused() {
    let server = Server::new();
    for (path, body, field) in [
        ("/v1/things/a", r#"{"name":"b"}"#, "name"),
        ("/v1/things/a", r#"{"name":null}"#, "name"),
        ("/v1/things/a", r#"{"name":{"x":1}}"#, "name"),
        ("/v1/inner/x/things", r#"{"inner":{"id":"y"}}"#, "inner.id"),
        ("/v1/inner/x/things", r#"{"inner":7}"#, "inner.id"),
    ] {
        let answer = server.json("PUT", path, body).await;
        assert_eq!(answer.status(), 400, "{path} {body}");
        assert_eq!(answer.violations()[0].0, field, "{path} {body}");
        assert!(server.things.received().is_empty());
    }
}

#[tokio::test]
async fn malformed_bodies_are_refused_with_their_place() {
    let server = Server::new();
    for (verb, path, body) in [
        ("PUT", "/v1/things/a", "{\"i32\":\n 1,,}"),
        ("PUT", "/v1/things/a", "{"),
        ("PUT", "/v1/things/a", "[]"),
        ("PUT", "/v1/things/a", "null"),
        ("PUT", "/v1/things/a", "{} {}"),
        ("PATCH", "/v1/things/a", "{\"id\""),
        ("POST", "/v1/things", "{\"i32\":\n 1,,}"),
        ("POST", "/v1/things", "nonsense"),
    ] {
        let answer = server.json(verb, path, body).await;
        assert_eq!(answer.status(), 400, "{verb} {path} {body}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(" at line "), "{verb} {path} {body}: {detail}");
    }
    let broken_text = request(
        "PUT",
        "/v1/things/a",
        &[("content-type", "application/json")],
        b"{\"text\":\"\xff\"}".to_vec(),
    );
    assert_eq!(server.call(broken_text).await.status(), 400);
}

#[tokio::test]
async fn what_is_no_json_needs_another_content_type() {
    let server = Server::new();
    for (headers, status) in [
        (vec![], 415),
        (vec![("content-type", "text/plain")], 415),
        (vec![("content-type", "application/x-www-form-urlencoded")], 415),
        (vec![("content-type", "application/json; charset=utf-16")], 415),
        (vec![("content-type", "application/json; charset=UTF-8")], 201),
    ] {
        let answer = server.call(request("POST", "/v1/things", &headers, "{}")).await;
        assert_eq!(answer.status(), status, "{headers:?}");
    }
}

#[tokio::test]
async fn a_body_where_none_belongs_is_refused() {
    let server = Server::new();
    let answer = server.json("GET", "/v1/things/a", "{}").await;
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.json()["detail"], "/v1/things/a takes no body");
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused() {
    let settings = ServerSettings { body_bytes_max: 100, ..ServerSettings::default() };
    let server = Server::with(RestSettings::default(), settings);
    let body = format!("{{\"name\":\"{}\"}}", "x".repeat(200));
    let answer = server.json("POST", "/v1/things", &body).await;
    assert_eq!(answer.status(), 413);
    assert_eq!(answer.json()["code"], "RESOURCE_EXHAUSTED");
}

#[tokio::test]
async fn bytes_of_any_type_are_taken_raw() {
    let server = Server::new();
    let upload = request("POST", "/v1/upload/a", &[("content-type", "image/png")], &b"\x89PNG"[..]);
    let answer = server.call(upload).await;
    assert_eq!(answer.status(), 200, "{:?}", answer.body);
    let file = json!({"contentType": "image/png", "data": "iVBORw=="});
    assert_eq!(server.received(), json!({"name": "a", "file": file}));
}
