//! WebSockets on the port of everything else, and their end when the server ends.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Running, soon, start};

async fn open(server: &Running, method: &str) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let url = format!("ws://{}/t.v1.Echo/{method}", server.address);
    soon(tokio_tungstenite::client_async(url, stream)).await.unwrap().0
}

async fn closed(socket: &mut WebSocketStream<TcpStream>) -> u16 {
    loop {
        match soon(socket.next()).await {
            Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_stream_is_carried_at_the_methods_own_path() {
    let server = start().await;
    let mut socket = open(&server, "Chat").await;
    for text in [r#"{"text":"a"}"#, r#"{"text":"b"}"#] {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::text(text));
    }
    socket.send(Message::text("")).await.unwrap();
    assert_eq!(closed(&mut socket).await, 1000);
    assert!(server.metrics().contains("rpc_system_name=\"websocket\""), "{}", server.metrics());
}

#[tokio::test]
async fn open_sockets_are_told_before_the_server_ends() {
    let server = start().await;
    let mut idle = open(&server, "Chat").await;
    let mut talking = open(&server, "Chat").await;
    talking.send(Message::text(r#"{"text":"a"}"#)).await.unwrap();
    soon(talking.next()).await.unwrap().unwrap();
    server.shutdown.drain(Duration::from_millis(600));
    // UNAVAILABLE: the client may go elsewhere.
    assert_eq!(closed(&mut talking).await, 4014);
    assert_eq!(closed(&mut idle).await, 4014);
    soon(server.ended).await.unwrap();
}

#[tokio::test]
async fn a_socket_that_never_answers_does_not_hold_up_the_end() {
    let server = start().await;
    let _deaf = open(&server, "Chat").await;
    server.shutdown.drain(Duration::from_millis(600));
    soon(server.ended).await.unwrap();
}
