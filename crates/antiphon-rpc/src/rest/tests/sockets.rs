//! Streams over WebSocket.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_tungstenite::tungstenite::{self, handshake::client::Response};

use super::{Server, request};
use crate::rest::RestSettings;
use crate::server::ServerSettings;

type Socket = WebSocketStream<DuplexStream>;

impl Server {
    async fn socket(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(Socket, Response), tungstenite::Error> {
        let mut request = format!("ws://things.example{path}").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        tokio_tungstenite::client_async(request, self.connect()).await
    }

    async fn open(&self, path: &str) -> Socket {
        self.socket(path, &[]).await.unwrap().0
    }

    /// The status with which a WebSocket is refused.
    async fn refusal(&self, path: &str, headers: &[(&'static str, &str)]) -> u16 {
        match self.socket(path, headers).await {
            Err(tungstenite::Error::Http(response)) => response.status().as_u16(),
            other => panic!("{path}: {other:?}"),
        }
    }
}

async fn say(socket: &mut Socket, message: Value) {
    socket.send(Message::text(message.to_string())).await.unwrap();
}

async fn hear(socket: &mut Socket) -> Value {
    match socket.next().await {
        Some(Ok(Message::Text(text))) => serde_json::from_str(&text).unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn closed(socket: &mut Socket) -> (u16, String) {
    loop {
        match socket.next().await {
            Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                return (code.into(), reason.to_string());
            }
            Some(Ok(Message::Ping(_))) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn two_sides_talk_until_one_has_said_all() {
    let server = Server::new();
    let mut socket = server.open("/v1/rooms/r:chat?i32=7").await;
    say(&mut socket, json!({"u32": 1})).await;
    let first = hear(&mut socket).await;
    assert_eq!((&first["name"], &first["i32"], &first["u32"]), (&json!("r"), &json!(7), &json!(1)));
    assert_eq!(first["i64"], "0", "zeros are there, as over plain HTTP");
    say(&mut socket, json!({"u32": 2})).await;
    let second = hear(&mut socket).await;
    assert_eq!((&second["name"], &second["u32"]), (&json!("r"), &json!(2)));
    assert_eq!(second["i32"], 0, "the query belongs to the first message");
    socket.send(Message::text("")).await.unwrap();
    assert_eq!(closed(&mut socket).await, (1000, String::new()));
    server.rest.closed().await;
}

#[tokio::test]
async fn a_path_without_messages_is_a_message() {
    let server = Server::new();
    let mut socket = server.open("/v1/rooms/r:chat").await;
    socket.send(Message::text("")).await.unwrap();
    assert_eq!(hear(&mut socket).await["name"], "r");
    assert_eq!(closed(&mut socket).await.0, 1000);
}

#[tokio::test]
async fn a_client_stream_has_one_answer() {
    let server = Server::new();
    let mut socket = server.open("/v1/things:import").await;
    for name in ["a", "b", "c"] {
        say(&mut socket, json!({"name": name})).await;
    }
    socket.send(Message::text("")).await.unwrap();
    let answer = hear(&mut socket).await;
    assert_eq!((&answer["name"], &answer["i32"]), (&json!("c"), &json!(3)));
    assert_eq!(closed(&mut socket).await.0, 1000);
}

#[tokio::test]
async fn a_server_stream_begins_with_the_path_or_with_a_message() {
    let server = Server::new();
    server.things.answer(Ok(json!({"name": "a"})));
    let mut socket = server.open("/v1/things/x:watch").await;
    assert_eq!(hear(&mut socket).await["name"], "a");
    assert_eq!(closed(&mut socket).await.0, 1000);
    assert_eq!(server.received(), json!({"name": "x"}));
    for path in ["/v1/tail", "/things.v1.Things/Tail", "/things.v1.Things/Watch"] {
        server.things.answer(Ok(json!({"name": "a"})));
        let mut socket = server.open(path).await;
        say(&mut socket, json!({"name": "y"})).await;
        assert_eq!(hear(&mut socket).await["name"], "a", "{path}");
        assert_eq!(closed(&mut socket).await.0, 1000, "{path}");
        assert_eq!(server.received(), json!({"name": "y"}), "{path}");
    }
}

#[tokio::test]
async fn protobuf_goes_in_binary_frames() {
    let server = Server::new();
    let proto = [("sec-websocket-protocol", "antiphon.proto")];
    let (mut socket, response) = server.socket("/things.v1.Things/Chat", &proto).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "antiphon.proto");
    // Field 1, "hi".
    let message = &b"\x0a\x02hi"[..];
    socket.send(Message::binary(message)).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(message));
    // An empty message is a message; an empty text frame is the end.
    socket.send(Message::binary(&b""[..])).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(&b""[..]));
    socket.send(Message::text("")).await.unwrap();
    assert_eq!(closed(&mut socket).await.0, 1000);
    assert_eq!(server.refusal("/v1/rooms/r:chat", &proto).await, 400);
}

#[tokio::test]
async fn a_failure_is_told_twice() {
    let server = Server::new();
    let mut socket = server.open("/things.v1.Things/Chat").await;
    say(&mut socket, json!({})).await;
    hear(&mut socket).await;
    say(&mut socket, json!({"name": "fail"})).await;
    let problem = hear(&mut socket).await;
    assert_eq!(problem["error"]["code"], "NOT_FOUND");
    assert_eq!(problem["error"]["reason"], "GONE");
    assert_eq!(closed(&mut socket).await, (4005, "NOT_FOUND (GONE): nothing here".to_owned()));
}

#[tokio::test]
async fn wrong_messages_end_the_call() {
    for (message, code) in [
        (Message::text("{"), 4003),
        (Message::text(r#"{"nmae":"x"}"#), 4003),
        (Message::text(r#"{"name":"other"}"#), 4003),
        (Message::binary(&b"x"[..]), 1003),
    ] {
        let server = Server::new();
        let mut socket = server.open("/v1/rooms/r:chat").await;
        socket.send(message.clone()).await.unwrap();
        if code > 4000 {
            assert_eq!(hear(&mut socket).await["error"]["code"], "INVALID_ARGUMENT", "{message}");
        }
        assert_eq!(closed(&mut socket).await.0, code, "{message}");
        server.things.stream_dropped().await;
    }
}

#[tokio::test]
async fn a_message_that_is_too_long_ends_the_call() {
    let settings = ServerSettings { message_bytes_max: 100, ..ServerSettings::default() };
    let server = Server::with(RestSettings::default(), settings);
    let mut socket = server.open("/v1/rooms/r:chat").await;
    say(&mut socket, json!({"left": "x".repeat(200)})).await;
    assert_eq!(closed(&mut socket).await.0, 1009);
}

#[tokio::test]
async fn a_message_after_the_end_is_refused() {
    let server = Server::new();
    server.things.never_end();
    let mut socket = server.open("/v1/things/x:watch").await;
    say(&mut socket, json!({"name": "more"})).await;
    hear(&mut socket).await;
    assert_eq!(closed(&mut socket).await.0, 4003);
}

#[tokio::test]
async fn a_client_that_closes_or_vanishes_cancels_the_handler() {
    let server = Server::new();
    for closes in [true, false] {
        server.things.never_end();
        let mut socket = server.open("/v1/things/x:watch").await;
        if closes {
            socket.close(None).await.unwrap();
        } else {
            drop(socket);
        }
        server.things.stream_dropped().await;
        server.rest.closed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_pinged_and_then_closed() {
    let server = Server::new();
    server.things.never_end();
    let mut socket = server.open("/v1/things/x:watch").await;
    // Reading answers pings, so that the socket stays open.
    let stays = tokio::time::timeout(Duration::from_secs(600), async {
        loop {
            assert!(matches!(socket.next().await, Some(Ok(Message::Ping(_)))));
        }
    });
    assert!(stays.await.is_err());
    // Who does not read does not answer.
    server.things.stream_dropped().await;
}

#[tokio::test(start_paused = true)]
async fn an_old_socket_is_closed() {
    let settings =
        RestSettings { socket_age_max: Duration::from_secs(100), ..RestSettings::default() };
    let server = Server::with(settings, ServerSettings::default());
    server.things.never_end();
    let mut socket = server.open("/v1/things/x:watch").await;
    let problem = loop {
        match socket.next().await {
            Some(Ok(Message::Ping(_))) => {}
            Some(Ok(Message::Text(text))) => break serde_json::from_str::<Value>(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(problem["error"]["code"], "UNAVAILABLE");
    assert_eq!(closed(&mut socket).await.0, 4014);
}

#[tokio::test]
async fn what_cannot_be_a_socket_is_refused_over_http() {
    let server = Server::new();
    for (path, headers, status) in [
        ("/v1/nowhere", vec![], 404),
        ("/v1/things/x", vec![], 404),
        ("/things.v1.Things/Get", vec![], 404),
        ("/v1/things/x:watch?i32=x", vec![], 400),
        ("/v1/things/x:watch", vec![("origin", "https://evil.example")], 403),
        ("/v1/things/x:watch", vec![("sec-websocket-version", "7")], 426),
        ("/v1/things/x:watch", vec![("grpc-timeout", "never")], 400),
    ] {
        assert_eq!(server.refusal(path, &headers).await, status, "{path} {headers:?}");
    }
    // Without an upgrade, a stream from the client cannot be had.
    let answer = server.call(request("POST", "/v1/things:import", &[], "")).await;
    assert_eq!(answer.status(), 405);
}
