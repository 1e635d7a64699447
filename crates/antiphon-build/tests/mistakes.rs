//! Mistakes in a contract: each is told with file, line, column and reason.

use antiphon_build::Contract;

/// The first lines of every contract here; what is tested begins at line 10.
const HEAD: &str = r#"syntax = "proto3";
package t.v1;
import "antiphon/v1/options.proto";
import "google/api/annotations.proto";
message Inner { string id = 1; double ratio = 2; }
message Request { string id = 1; Inner inner = 2; repeated string tags = 3; map<string, string> map = 4; int64 number = 5; }
message Answer { string id = 1; repeated string tags = 2; }


"#;

fn compile(text: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("t.proto"), HEAD.to_owned() + text).expect("a file");
    let contract = Contract::new().file("t.proto").include(folder.path());
    contract.generate().map(drop).map_err(|error| error.to_string())
}

#[track_caller]
fn says(text: &str, lines: &[&str]) {
    let error = compile(text).expect_err(text);
    assert_eq!(error.lines().collect::<Vec<_>>(), lines, "{text}");
}

/// A service with one method, whose options begin at line 12.
fn method(signature: &str, options: &str) -> String {
    format!("service S {{\n  rpc M{signature} {{\n    {options}\n  }}\n}}\n")
}

const UNARY: &str = "(Request) returns (Answer)";

fn http(rule: &str) -> String {
    method(UNARY, &format!("option (google.api.http) = {{{rule}}};"))
}

fn policy(policy: &str) -> String {
    method(UNARY, &format!("option (antiphon.v1.method) = {{{policy}}};"))
}

fn event(binding: &str) -> String {
    format!(
        "message E {{\n  option (antiphon.v1.message) = {{{binding}}};\n  \
         string order_id = 1; Inner inner = 2; repeated int32 numbers = 3; double ratio = 4;\n}}\n"
    )
}

#[test]
fn a_good_contract_has_no_mistakes() {
    for text in [
        http(r#"get: "/v1/{id}" additional_bindings {post: "/v1/{inner.id}:go" body: "*"}"#),
        http(r#"post: "/v1/{id}" body: "inner" response_body: "tags""#),
        policy(r#"success_status: 202 location: "/v1/{id}" timeout: {nanos: 1}"#),
        event(r#"event {topic: "t" key: "inner.id"}"#),
        event(r#"command {destination: "t"}"#),
    ] {
        compile(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

#[test]
fn a_key_must_be_a_field_that_can_be_one() {
    for (key, why) in [
        ("ordr_id", r#": t.v1.E has no field "ordr_id"; did you mean "order_id"?"#),
        ("inner.idd", r#": t.v1.Inner has no field "idd"; did you mean "id"?"#),
        ("order_id.x", r#": "order_id" of t.v1.E is no message, so it has no "x""#),
        ("numbers.x", r#": "numbers" of t.v1.E is repeated, so it has no single "x""#),
        ("inner", " is a message; a key is one string, bytes, integer, bool or enum"),
        ("numbers", " is repeated; a key is one string, bytes, integer, bool or enum"),
        ("ratio", " is a fraction; a key is one string, bytes, integer, bool or enum"),
    ] {
        let line = format!(r#"t.proto:11:3: the key "{key}" of t.v1.E{why}"#);
        says(&event(&format!(r#"event {{topic: "t" key: "{key}"}}"#)), &[&line]);
    }
}

#[test]
fn a_message_must_say_where_it_goes() {
    says(
        &event(r#"event {key: "order_id"}"#),
        &["t.proto:11:3: the event t.v1.E has no topic; add `topic: \"…\"`"],
    );
    says(
        &event(""),
        &["t.proto:11:3: t.v1.E is neither an event nor a command; add one, or remove the option"],
    );
    says(
        &event("command {}"),
        &["t.proto:11:3: the command t.v1.E has no destination; add `destination: \"…\"`"],
    );
}

#[test]
fn a_message_is_not_both_an_event_and_a_command() {
    says(
        &event(r#"event {topic: "t"} command {destination: "t"}"#),
        &["t.proto:11:3: t.v1.E is both an event and a command"],
    );
}

#[test]
fn a_path_must_fit_the_request() {
    for (rule, why) in [
        (
            r#"get: "v1/x""#,
            r#"the path "v1/x" of t.v1.S.M: a path template begins with "/" (at character 1)"#,
        ),
        (
            r#"get: "/v1/{idd}""#,
            r#"the path "/v1/{idd}" of t.v1.S.M: t.v1.Request has no field "idd"; did you mean "id"?"#,
        ),
        (
            r#"get: "/v1/{tags}""#,
            r#"the path "/v1/{tags}" of t.v1.S.M: "tags" of t.v1.Request is repeated; a path holds single values"#,
        ),
        (
            r#"get: "/v1/{inner}""#,
            r#"the path "/v1/{inner}" of t.v1.S.M: "inner" of t.v1.Request is a message; a path holds single values"#,
        ),
        (
            r#"get: "/v1/{map}""#,
            r#"the path "/v1/{map}" of t.v1.S.M: "map" of t.v1.Request is a map; a path holds single values"#,
        ),
        (
            r#"body: "*""#,
            "a binding of t.v1.S.M has no path; add one of get, put, post, delete, patch, custom",
        ),
        (
            r#"custom {kind: "get it" path: "/v1"}"#,
            r#"the HTTP method "get it" of t.v1.S.M is not a word in capitals"#,
        ),
        (
            r#"get: "/v1" additional_bindings {get: "/v2" additional_bindings {get: "/v3"}}"#,
            "an additional binding of t.v1.S.M has additional bindings",
        ),
    ] {
        says(&http(rule), &[&format!("t.proto:12:5: {why}")]);
    }
}

#[test]
fn a_body_must_be_a_field() {
    for (rule, why) in [
        (
            r#"post: "/v1" body: "iner""#,
            r#"the body of t.v1.S.M: t.v1.Request has no field "iner"; did you mean "inner"?"#,
        ),
        (
            r#"post: "/v1/{id}" body: "id""#,
            r#"the body of t.v1.S.M: "id" is taken by the path already"#,
        ),
        (r#"get: "/v1" body: "*""#, "t.v1.S.M has a body, but GET has none"),
        (
            r#"post: "/v1" response_body: "tag""#,
            r#"the response_body of t.v1.S.M: t.v1.Answer has no field "tag"; did you mean "tags"?"#,
        ),
    ] {
        says(&http(rule), &[&format!("t.proto:12:5: {why}")]);
    }
}

#[test]
fn two_routes_do_not_collide() {
    says(
        &http(r#"get: "/v1/{id}" additional_bindings {get: "/v1/{inner.id}"}"#),
        &["t.proto:12:5: the route GET /v1/{inner.id} of t.v1.S.M collides with /v1/{id} of \
           t.v1.S.M (t.proto:12:5)"],
    );
    let two = http(r#"get: "/v1/{id=a/*}""#)
        + "service T {\n  rpc N(Request) returns (Answer) {\n    \
           option (google.api.http) = {get: \"/v1/a/{id}\"};\n  }\n}\n";
    says(
        &two,
        &["t.proto:17:5: the route GET /v1/a/{id} of t.v1.T.N collides with /v1/{id=a/*} of \
           t.v1.S.M (t.proto:12:5)"],
    );
    // Different methods, and paths of different priority, live side by side.
    compile(&http(
        r#"get: "/v1/{id}" additional_bindings {delete: "/v1/{id}"}
           additional_bindings {get: "/v1/x"} additional_bindings {get: "/v1/{id=**}"}"#,
    ))
    .unwrap();
}

#[test]
fn a_stream_of_requests_is_bound_to_what_can_carry_it() {
    let bound = |signature: &str, rule: &str| {
        method(signature, &format!("option (google.api.http) = {{{rule}}};"))
    };
    let client = "(stream Request) returns (Answer)";
    says(
        &bound(client, r#"delete: "/v1""#),
        &["t.proto:12:5: t.v1.S.M streams its requests over a WebSocket; bind it to get or post, \
           not DELETE"],
    );
    says(
        &bound(client, r#"post: "/v1" body: "inner""#),
        &[
            "t.proto:12:5: t.v1.S.M streams its requests, so the body is the whole message; replace \
           \"inner\" by \"*\"",
        ],
    );
    compile(&bound("(stream Request) returns (stream Answer)", r#"get: "/v1""#)).unwrap();
}

#[test]
fn a_policy_must_make_sense() {
    for (text, why) in [
        ("success_status: 302", "the success_status of t.v1.S.M is not 200 to 299"),
        ("success_status: 70000", "the success_status of t.v1.S.M is not 200 to 299"),
        ("timeout: {}", "the timeout of t.v1.S.M is not more than nothing"),
        ("timeout: {seconds: -1}", "the timeout of t.v1.S.M is not more than nothing"),
        (
            "objective: {availability: 99.9}",
            "the objective's availability of t.v1.S.M is not between 0 and 1",
        ),
        (
            "objective: {latency: {} quantile: 0.5}",
            "the objective's latency of t.v1.S.M is not more than nothing",
        ),
        (
            r#"location: "/v1/{idd}""#,
            r#"the location "/v1/{idd}" of t.v1.S.M: t.v1.Answer has no field "idd"; did you mean "id"?"#,
        ),
        (
            r#"location: "/v1/{tags}""#,
            r#"the location "/v1/{tags}" of t.v1.S.M: "tags" of t.v1.Answer is repeated; a path holds single values"#,
        ),
        (
            r#"location: "/v1/*""#,
            r#"the location "/v1/*" of t.v1.S.M has a bare "*"; put it into a variable"#,
        ),
        (
            "hedge: true",
            "t.v1.S.M may have effects, so it cannot be hedged; set `idempotency_level = \
             NO_SIDE_EFFECTS` if that is true",
        ),
    ] {
        says(&policy(text), &[&format!("t.proto:12:5: {why}")]);
    }
    says(
        &method(
            "(Request) returns (stream Answer)",
            r#"option (antiphon.v1.method) = {idempotent_by_key: true location: "/v1/{id}"};"#,
        ),
        &[
            "t.proto:12:5: t.v1.S.M streams its answers, so none of them is its location",
            "t.proto:12:5: t.v1.S.M streams, so its answer cannot be kept under a key",
        ],
    );
}

#[test]
fn reasons_must_be_told_apart_and_have_codes() {
    let errors = |option: &str, values: &str| {
        format!("enum E {{\n  {option}\n  E_UNSPECIFIED = 0;\n{values}}}\n")
    };
    let domain = "option (antiphon.v1.errors) = {};";
    says(
        &errors(domain, "  E_A = 1;\n"),
        &["t.proto:13:3: the reason E_A has no code; add `[(antiphon.v1.reason) = {code: …}]`"],
    );
    says(
        &errors(domain, "  E_A = 1 [(antiphon.v1.reason) = {code: OK}];\n"),
        &["t.proto:13:12: the reason E_A has no code; use one of google.rpc.Code but OK"],
    );
    says(
        &errors(domain, "  E_A = 1 [(antiphon.v1.reason) = {code: ABORTED http_status: 200}];\n"),
        &["t.proto:13:12: the HTTP status of the reason E_A is not 400 to 599"],
    );
    says(
        &errors("", "  E_A = 1 [(antiphon.v1.reason) = {code: ABORTED}];\n"),
        &["t.proto:13:12: E_A has (antiphon.v1.reason), but its enum has no (antiphon.v1.errors)"],
    );
    says(
        &errors(
            domain,
            "  A = 1 [(antiphon.v1.reason) = {code: ABORTED}];\n  \
             E_A = 2 [(antiphon.v1.reason) = {code: ABORTED}];\n",
        ),
        &["t.proto:14:3: the reason \"A\" of E_A is in the domain \"t.v1\" already, as A"],
    );
}

#[test]
fn every_mistake_is_told_at_once() {
    let text = event(r#"event {topic: "t" key: "x"}"#) + &policy("success_status: 99 timeout: {}");
    says(
        &text,
        &[
            "t.proto:11:3: the key \"x\" of t.v1.E: t.v1.E has no field \"x\"",
            "t.proto:16:5: the timeout of t.v1.S.M is not more than nothing",
            "t.proto:16:5: the success_status of t.v1.S.M is not 200 to 299",
        ],
    );
}

#[test]
fn what_protobuf_refuses_is_told_with_its_place() {
    says("message M {\n  Unknown x = 1;\n}\n", &["t.proto:11:3: name 'Unknown' is not defined"]);
    says("message M {\n  string x 1;\n}\n", &["t.proto:11:12: expected '=', but found '1'"]);
    let error = Contract::new().file("missing.proto").include("/").generate().unwrap_err();
    assert_eq!(error.to_string(), "file 'missing.proto' is not in any include path");
}
