//! Server streams over plain HTTP.

use antiphon_core::Status;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{Server, request};

fn events(body: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(body).unwrap();
    text.split_terminator("\n\n").map(str::to_owned).collect()
}

#[tokio::test]
async fn a_stream_is_lines_of_json() {
    let server = Server::new();
    for name in ["a", "b\nc"] {
        server.things.answer(Ok(json!({"inner": {"id": name}})));
    }
    let answer = server.get("/v1/things/x:watch?i32=3").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    assert_eq!(server.received(), json!({"name": "x", "i32": 3}));
    let lines: Vec<Value> = std::str::from_utf8(&answer.body)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["inner"]["id"], "b\nc");
    assert_eq!(lines[1]["i64"], "0");
}

#[tokio::test]
async fn a_stream_is_events_where_asked_for() {
    let server = Server::new();
    for name in ["a", "b"] {
        server.things.answer(Ok(json!({"name": name})));
    }
    let sse = [("accept", "text/event-stream")];
    let answer = server.call(request("GET", "/v1/things/x:watch", &sse, "")).await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(answer.header("cache-control"), "no-store");
    let events = events(&answer.body);
    assert!(events[0].starts_with("id: 1\ndata: {\"name\":\"a\""), "{events:?}");
    assert!(events[1].starts_with("id: 2\ndata: {\"name\":\"b\""), "{events:?}");
    assert_eq!(events[2..], ["event: end\ndata: {}"]);
}

#[tokio::test]
async fn a_failure_before_the_first_message_is_a_problem() {
    let server = Server::new();
    server.things.answer(Err(Status::not_found("no such thing")));
    let answer = server.get("/v1/things/x:watch").await;
    assert_eq!((answer.status(), answer.json()["detail"].as_str()), (404, Some("no such thing")));
    let answer = server.get("/v1/things/x:watch?i32=x").await;
    assert_eq!(answer.violations(), [("i32".to_owned(), "type".to_owned())]);
    let json = [("accept", "application/json")];
    let answer = server.call(request("GET", "/v1/things/x:watch", &json, "")).await;
    assert_eq!(answer.status(), 406);
}

#[tokio::test]
async fn lines_break_off_after_a_failure() {
    let server = Server::new();
    server.things.answer(Ok(json!({"name": "a"})));
    server.things.answer(Err(Status::not_found("gone").with_reason("GONE", "things")));
    let mut body = server.send(request("GET", "/v1/things/x:watch", &[], "")).await.into_body();
    let mut text = Vec::new();
    let broke_off = loop {
        match body.frame().await {
            None => break false,
            Some(Err(_)) => break true,
            Some(Ok(frame)) => text.extend_from_slice(frame.data_ref().unwrap()),
        }
    };
    assert!(broke_off, "the answer must not look whole");
    let text = String::from_utf8(text).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "NOT_FOUND");
    assert_eq!(last["error"]["reason"], "GONE");
}

#[tokio::test]
async fn events_end_with_the_failure() {
    let server = Server::new();
    server.things.answer(Ok(json!({"name": "a"})));
    server.things.answer(Err(Status::not_found("gone")));
    let sse = [("accept", "text/event-stream")];
    let answer = server.call(request("GET", "/v1/things/x:watch", &sse, "")).await;
    let events = events(&answer.body);
    let problem = events[1].strip_prefix("event: error\ndata: ").expect("an error event");
    assert_eq!(serde_json::from_str::<Value>(problem).unwrap()["status"], 404);
    assert_eq!(events.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_of_events_is_kept_alive() {
    let server = Server::new();
    server.things.never_end();
    let sse = [("accept", "text/event-stream")];
    let mut body = server.send(request("GET", "/v1/things/x:watch", &sse, "")).await.into_body();
    for _ in 0..2 {
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(&frame.data_ref().unwrap()[..], b": keep-alive\n\n");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_handler() {
    let server = Server::new();
    server.things.never_end();
    server.things.answer(Ok(json!({"name": "a"})));
    let mut body = server.send(request("GET", "/v1/things/x:watch", &[], "")).await.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    server.things.stream_dropped().await;
}

#[tokio::test]
async fn a_stream_can_begin_with_a_body() {
    let server = Server::new();
    server.things.answer(Ok(json!({"name": "a"})));
    let answer = server.json("POST", "/v1/tail", r#"{"name":"x"}"#).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(server.received(), json!({"name": "x"}));
}

#[tokio::test]
async fn raw_bytes_are_streamed_one_after_the_other() {
    let server = Server::new();
    server.things.answer(Ok(json!({"contentType": "text/csv", "data": "YSxi"})));
    server.things.answer(Ok(json!({"data": "LGM="})));
    let answer = server.get("/v1/stream/x").await;
    assert_eq!(answer.header("content-type"), "text/csv");
    assert_eq!(&answer.body[..], b"a,b,c");
}
