//! Which route a path finds, and what becomes of its variables.

use serde_json::json;

use super::{Server, request};

#[tokio::test]
async fn variables_become_fields() {
    let server = Server::new();
    for (path, message) in [
        ("/v1/things/a", json!({"name": "a"})),
        ("/v1/things/a%20b%2Fc%25", json!({"name": "a b/c%"})),
        ("/v1/things/a+b", json!({"name": "a+b"})),
        ("/v1/things/caf%C3%A9", json!({"name": "café"})),
        ("/v1/things/%22%5D%7D", json!({"name": "\"]}"})),
        ("/v1/things/a:b", json!({"name": "a:b"})),
        ("/v1/things/a%3Acancel", json!({"name": "a:cancel"})),
        ("/v1/shelves/7/books/8", json!({"name": "shelves/7", "inner": {"id": "8"}})),
        ("/v1/shelves/a%2Fb%20c/books/8", json!({"name": "shelves/a%2Fb c", "inner": {"id": "8"}})),
        ("/v1/files", json!({})),
        ("/v1/files/", json!({})),
        ("/v1/files/a", json!({"name": "a"})),
        ("/v1/files/a/b%2Fc/d%20e", json!({"name": "a/b%2Fc/d e"})),
        ("/v1/deep/q/ignored/i", json!({"inner": {"id": "i", "deep": {"x": "q"}}})),
        (
            "/v1/typed/9007199254740993/BLUE/true/18446744073709551615",
            json!({
                "i64": "9007199254740993", "color": "BLUE", "flag": true,
                "big": "18446744073709551615",
            }),
        ),
        ("/v1/typed/-1/2/false/0", json!({"i64": "-1", "color": "BLUE"})),
    ] {
        let answer = server.get(path).await;
        assert_eq!(answer.status(), 200, "{path}: {:?}", answer.body);
        assert_eq!(server.received(), message, "{path}");
    }
}

#[tokio::test]
async fn values_that_do_not_fit_their_fields_are_named() {
    let server = Server::new();
    for (path, violations) in [
        ("/v1/typed/x/RED/true/1", vec![("i64", "type")]),
        ("/v1/typed/1/GREEN/true/1", vec![("color", "enum")]),
        ("/v1/typed/1/RED/yes/1", vec![("flag", "type")]),
        ("/v1/typed/9223372036854775808/RED/true/-1", vec![("i64", "range"), ("big", "range")]),
        ("/v1/things/%FF", vec![("name", "escape")]),
    ] {
        let answer = server.get(path).await;
        assert_eq!(answer.status(), 400, "{path}");
        let violations: Vec<_> = violations
            .into_iter()
            .map(|(field, rule)| (field.to_owned(), rule.to_owned()))
            .collect();
        assert_eq!(answer.violations(), violations, "{path}");
        assert!(server.things.received().is_empty(), "{path}");
    }
}

#[tokio::test]
async fn verbs_are_told_from_values() {
    let server = Server::new();
    for (verb, path, method, message) in [
        ("GET", "/v1/things:search?i32=1", "Search", json!({"i32": 1})),
        ("GET", "/v1/things?i32=1", "Find", json!({"i32": 1})),
        ("POST", "/v1/things/a:cancel", "Cancel", json!({"name": "a"})),
        ("POST", "/v1/things/a:b:cancel", "Cancel", json!({"name": "a:b"})),
        ("POST", "/v1/ops/1:cancel", "CancelOps", json!({"name": "ops/1"})),
        ("POST", "/v1/ops/a/b/c:cancel", "CancelOps", json!({"name": "ops/a/b/c"})),
        ("POST", "/v1/ops:cancel", "CancelOps", json!({"name": "ops"})),
        ("PURGE", "/v1/things/a", "Purge", json!({"name": "a"})),
        ("DELETE", "/v1/things/a", "Delete", json!({"name": "a"})),
        ("GET", "/v1/anyhow", "Exactly", json!({})),
        ("POST", "/v1/anyhow", "Anyhow", json!({})),
        ("BREW", "/v1/anyhow", "Anyhow", json!({})),
    ] {
        if matches!(method, "Delete" | "Exactly") {
            server.things.answer(Ok(json!({})));
        }
        let answer = server.call(request(verb, path, &[], "")).await;
        assert!(answer.head.status.is_success(), "{verb} {path}: {:?}", answer.body);
        assert_eq!(server.received(), message, "{verb} {path}");
        assert_eq!(server.things.called(), method, "{verb} {path}");
    }
}

#[tokio::test]
async fn what_is_nowhere_is_not_found() {
    let server = Server::new();
    for path in [
        "/",
        "/v1",
        "/v1/things/",
        "/v1/things/a/b",
        "/v1//things",
        "/V1/things/a",
        "/v1/things/a/",
        "/v1/typed/1/RED/true",
        "/v1/rooms/a",
        "/things.v1.Things/Hidden",
    ] {
        let answer = server.get(path).await;
        assert_eq!(answer.status(), 404, "{path}");
        assert_eq!(answer.violations(), [], "{path}");
        assert_eq!(answer.json()["code"], "NOT_FOUND");
    }
}

#[tokio::test]
async fn other_methods_are_told_what_is_allowed() {
    let server = Server::new();
    for (verb, path, status, allow) in [
        ("POST", "/v1/things/a", 405, "DELETE, GET, HEAD, OPTIONS, PATCH, PURGE, PUT"),
        ("OPTIONS", "/v1/things/a", 204, "DELETE, GET, HEAD, OPTIONS, PATCH, PURGE, PUT"),
        ("DELETE", "/v1/things", 405, "GET, HEAD, OPTIONS, POST"),
        ("GET", "/v1/things/a:cancel", 405, "OPTIONS, POST"),
        ("GET", "/v1/ops/1:cancel", 405, "OPTIONS, POST"),
        ("HEAD", "/v1/things/a:watch", 405, "GET, OPTIONS"),
        ("GET", "/v1/things:import", 426, ""),
        ("POST", "/v1/things:import", 405, "GET, OPTIONS"),
        ("get", "/v1/things", 405, "GET, HEAD, OPTIONS, POST"),
        ("OPTIONS", "/nowhere", 404, ""),
    ] {
        let answer = server.call(request(verb, path, &[], "")).await;
        assert_eq!(answer.status(), status, "{verb} {path} {:?}", answer.body);
        assert_eq!(answer.header("allow"), allow, "{verb} {path}");
    }
}
