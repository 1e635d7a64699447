//! What becomes of query parameters.

use serde_json::json;

use super::Server;

#[tokio::test]
async fn parameters_become_fields() {
    let server = Server::new();
    for (query, message) in [
        ("", json!({})),
        ("&&", json!({})),
        // envoy#13965: a plus sign is a space.
        ("name=a+b%2Bc", json!({"name": "a b+c"})),
        // envoy#21151: names are decoded as well.
        ("%6e%61me=x", json!({"name": "x"})),
        ("inner%2Eid=x", json!({"inner": {"id": "x"}})),
        ("name=%7B%22%5C%0A", json!({"name": "{\"\\\n"})),
        ("name=", json!({})),
        ("name", json!({})),
        ("i32=-5&u32=5&i64=-5&big=5", json!({"i32": -5, "u32": 5, "i64": "-5", "big": "5"})),
        ("ratio=1.5&exact=1e-3&flag=true", json!({"ratio": 1.5, "exact": 0.001, "flag": true})),
        ("exact=NaN&ratio=-Infinity", json!({"exact": "NaN", "ratio": "-Infinity"})),
        ("raw=AP8-_w&color=RED", json!({"raw": "AP8+/w==", "color": "RED"})),
        ("color=2", json!({"color": "BLUE"})),
        ("tags=a&tags=b,c&tags=", json!({"tags": ["a", "b,c", ""]})),
        ("numbers=1&numbers=-2", json!({"numbers": ["1", "-2"]})),
        ("colors=RED&colors=2", json!({"colors": ["RED", "BLUE"]})),
        (
            "inner.id=x&inner.n=3&inner.deep.x=y",
            json!({"inner": {"id": "x", "n": 3, "deep": {"x": "y"}}}),
        ),
        ("inner.tags=a&inner.tags=b", json!({"inner": {"tags": ["a", "b"]}})),
        (
            "at=2026-11-21T03:00:00Z&wait=1.5s",
            json!({"at": "2026-11-21T03:00:00Z", "wait": "1.500s"}),
        ),
        ("mask=name,innerId", json!({"mask": "name,innerId"})),
        ("mask=name,inner.snake_case", json!({"mask": "name,inner.snakeCase"})),
        ("text=t&count=7&sure=false", json!({"text": "t", "count": "7", "sure": false})),
        ("maybe=0", json!({"maybe": 0})),
        ("left=l", json!({"left": "l"})),
        ("snake_case_name=x", json!({"snakeCaseName": "x"})),
        ("snakeCaseName=x", json!({"snakeCaseName": "x"})),
    ] {
        let answer = server.get(&format!("/v1/things?{query}")).await;
        assert_eq!(answer.status(), 200, "{query}: {:?}", answer.body);
        assert_eq!(server.received(), message, "{query}");
    }
}

#[tokio::test]
async fn parameters_that_are_wrong_are_named_with_the_rule() {
    let server = Server::new();
    for (query, violations) in [
        ("nmae=x", vec![("nmae", "unknown_field")]),
        ("inner.idd=x", vec![("inner.idd", "unknown_field")]),
        ("name.x=1", vec![("name.x", "unknown_field")]),
        ("=x", vec![("", "unknown_field")]),
        ("inner.=x", vec![("inner.", "unknown_field")]),
        ("inner=x", vec![("inner", "message")]),
        ("any=x", vec![("any", "message")]),
        ("any.fields=x", vec![("any.fields", "unknown_field")]),
        ("labels=x", vec![("labels", "map")]),
        ("labels.a=x", vec![("labels.a", "map")]),
        ("parts.id=x", vec![("parts.id", "message")]),
        ("name=a&name=b", vec![("name", "duplicate")]),
        ("name=a&name=a", vec![("name", "duplicate")]),
        ("snake_case_name=a&snakeCaseName=a", vec![("snakeCaseName", "duplicate")]),
        (
            "i32=1.5&flag=1&color=red&big=-1",
            vec![("i32", "type"), ("flag", "type"), ("color", "enum"), ("big", "range")],
        ),
        ("i32=2147483648", vec![("i32", "range")]),
        ("i32=", vec![("i32", "type")]),
        ("raw=a+b", vec![("raw", "type")]),
        ("ratio=1e39&exact=1e309", vec![("ratio", "range"), ("exact", "range")]),
        ("name=%", vec![("name", "escape")]),
        ("name=%C3", vec![("name", "escape")]),
        ("%zz=1", vec![("%zz", "escape")]),
    ] {
        let answer = server.get(&format!("/v1/things?{query}")).await;
        assert_eq!(answer.status(), 400, "{query}");
        let expected: Vec<_> = violations
            .into_iter()
            .map(|(field, rule)| (field.to_owned(), rule.to_owned()))
            .collect();
        assert_eq!(answer.violations(), expected, "{query}");
        assert!(server.things.received().is_empty(), "{query}");
    }
}

#[tokio::test]
async fn what_the_message_itself_refuses_is_refused() {
    let server = Server::new();
    for query in ["at=yesterday", "wait=5", "left=l&right=1"] {
        let answer = server.get(&format!("/v1/things?{query}")).await;
        assert_eq!(answer.status(), 400, "{query}");
        assert_eq!(answer.json()["code"], "INVALID_ARGUMENT", "{query}");
    }
}

#[tokio::test]
async fn a_parameter_cannot_change_what_path_or_body_say() {
    let server = Server::new();
    for (verb, path, body, field, rule) in [
        ("GET", "/v1/things/a?name=b", "", "name", "bound_by_path"),
        ("GET", "/v1/shelves/1/books/2?inner.id=3", "", "inner.id", "bound_by_path"),
        ("PATCH", "/v1/things/a?inner.id=3", "{}", "inner.id", "bound_by_body"),
        ("POST", "/v1/things?name=b", "{}", "name", "unknown_field"),
        ("POST", "/v1/things?utm_source=b", "", "utm_source", "unknown_field"),
        ("PUT", "/v1/things/a?i32=1", "{}", "i32", "unknown_field"),
    ] {
        let answer = server.json(verb, path, body).await;
        assert_eq!(answer.status(), 400, "{verb} {path}");
        assert_eq!(answer.violations(), [(field.to_owned(), rule.to_owned())], "{verb} {path}");
    }
    // Another field of the same message is no contradiction.
    let answer = server.get("/v1/shelves/1/books/2?inner.n=3").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(server.received(), json!({"name": "shelves/1", "inner": {"id": "2", "n": 3}}));
}
