//! Requests in JSON: what is taken, and what is refused with which field.

use antiphon_core::{Code, Status};
use antiphon_rpc::Codec;
use antiphon_rpc::message::decode;
use contract_tests::sample::v1::{ECHO, Everything};

fn read(json: &str) -> Result<Everything, Status> {
    decode(&ECHO, json.as_bytes(), Codec::Json)
}

#[test]
fn every_form_that_the_mapping_allows_is_taken() {
    for json in [
        "{}",
        r#"{"truth": true, "small": -1, "smallPositive": 1, "large": "-5", "largePositive": 5}"#,
        r#"{"small_positive": 1}"#,
        r#"{"small": "12", "small_positive": 1.0, "large": 1e3}"#,
        r#"{"float": "NaN", "double": "-Infinity"}"#,
        r#"{"bytes": "AP8=", "genre": "GENRE_NOVEL"}"#,
        r#"{"genre": 2}"#,
        r#"{"inner": {"text": "x", "inner": [{"text": "y"}]}, "inners": [{}, {}]}"#,
        r#"{"counts": {"a": 1, "b": "2"}, "numbered": {"-7": {"text": "x"}}}"#,
        r#"{"left": "x"}"#,
        r#"{"left": null, "right": 1}"#,
        r#"{"maybe": 0, "inner": null, "numbers": null, "counts": null, "text": null}"#,
        r#"{"time": "2026-01-02T03:04:05.678Z", "duration": "1.5s", "mask": "a,b.c"}"#,
        r#"{"struct": {"a": [1, {"b": null}]}, "value": [1], "list": [true, "x"]}"#,
        r#"{"wrapped": "5", "wrappedText": "x"}"#,
    ] {
        let message = read(json).unwrap_or_else(|status| panic!("{json}: {status}"));
        let again = serde_json::to_value(&message).unwrap();
        // Compared as JSON, because NaN is not equal to itself.
        let twice = read(&again.to_string()).unwrap();
        assert_eq!(serde_json::to_value(&twice).unwrap(), again, "{json}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (json, violations) in [
        (r#"{"tru": 1}"#, vec![("tru", "unknown_field")]),
        (
            r#"{"inner": {"inner": [{}, {"txt": ""}]}}"#,
            vec![("inner.inner[1].txt", "unknown_field")],
        ),
        (r#"{"middle": {"x": 1}}"#, vec![("middle.x", "unknown_field")]),
        (r#"{"numbered": {"1": {"x": 1}}}"#, vec![(r#"numbered["1"].x"#, "unknown_field")]),
        (r#"{"truth": "true"}"#, vec![("truth", "type")]),
        (
            r#"{"small": "x", "text": 5, "x": 1}"#,
            vec![("small", "type"), ("text", "type"), ("x", "unknown_field")],
        ),
        (r#"{"small": 2147483648}"#, vec![("small", "range")]),
        (r#"{"small": 1.5}"#, vec![("small", "type")]),
        (r#"{"smallPositive": -1}"#, vec![("small_positive", "range")]),
        (r#"{"large": "9223372036854775808"}"#, vec![("large", "range")]),
        (r#"{"largePositive": "-1"}"#, vec![("large_positive", "range")]),
        (r#"{"float": 1e39}"#, vec![("float", "range")]),
        (r#"{"double": "x"}"#, vec![("double", "type")]),
        (r#"{"bytes": "!"}"#, vec![("bytes", "type")]),
        (r#"{"genre": "NOVEL"}"#, vec![("genre", "enum")]),
        (r#"{"genre": 1.5}"#, vec![("genre", "type")]),
        (r#"{"inner": []}"#, vec![("inner", "type")]),
        (r#"{"inner": "x"}"#, vec![("inner", "type")]),
        (r#"{"inners": {}}"#, vec![("inners", "type")]),
        (r#"{"inners": [1]}"#, vec![("inners[0]", "type")]),
        (r#"{"numbers": [1, "x"]}"#, vec![("numbers[1]", "type")]),
        (r#"{"counts": {"a": "x"}}"#, vec![(r#"counts["a"]"#, "type")]),
        (r#"{"numbered": {"x": {}}}"#, vec![(r#"numbered["x"]"#, "type")]),
        (r#"{"left": "x", "right": 1}"#, vec![("right", "oneof")]),
        (r#"{"time": "yesterday"}"#, vec![("time", "type")]),
        (r#"{"duration": "5"}"#, vec![("duration", "type")]),
        (r#"{"struct": 1}"#, vec![("struct", "type")]),
        (r#"{"list": {}}"#, vec![("list", "type")]),
        (r#"{"wrapped": "x"}"#, vec![("wrapped", "type")]),
        (r#"[]"#, vec![("", "type")]),
        (r#"5"#, vec![("", "type")]),
        (r#"null"#, vec![("", "type")]),
    ] {
        let status = read(json).expect_err(json);
        assert_eq!(status.code(), Code::InvalidArgument, "{json}");
        let found: Vec<_> = status
            .violations()
            .iter()
            .map(|violation| (violation.field.as_str(), violation.rule.as_str()))
            .collect();
        assert_eq!(found, violations, "{json}: {status}");
    }
}

#[test]
fn a_field_that_is_given_twice_is_refused() {
    let status = decode::<contract_tests::sample::v1::Book>(
        &ECHO,
        br#"{"name": "a", "title": "b", "name": "c"}"#,
        Codec::Json,
    )
    .unwrap_err();
    assert_eq!(status.violations()[0].rule, "duplicate");
}

#[test]
fn the_nearest_name_is_offered() {
    let status = read(r#"{"smal": 1}"#).unwrap_err();
    assert_eq!(
        status.violations()[0].description,
        "sample.v1.Everything has no such field; did you mean \"small\"?"
    );
}

#[test]
fn text_that_is_not_json_says_where() {
    for (json, message) in [
        ("{\"small\": 1,}", "the message is not valid JSON: trailing comma at line 1 column 13"),
        ("", "the message is not valid JSON: EOF while parsing a value at line 1 column 0"),
        ("{} x", "the message is not valid JSON: trailing characters at line 1 column 4"),
    ] {
        assert_eq!(read(json).unwrap_err().message(), message);
    }
    let status = decode::<Everything>(&ECHO, b"{\"text\": \"\xff\"}", Codec::Json).unwrap_err();
    assert_eq!(
        status.message(),
        "the message is not valid JSON: invalid unicode code point at line 1 column 11"
    );
}

#[test]
fn nesting_is_bounded() {
    let deep = "{\"inner\": ".repeat(1000) + "{}" + &"}".repeat(1000);
    assert_eq!(read(&deep).unwrap_err().code(), Code::InvalidArgument);
}
