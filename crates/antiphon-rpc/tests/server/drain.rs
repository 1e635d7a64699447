//! A server that ends: nothing that was begun is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::support::client::{Http2, frame, grpc_request};
use crate::support::{in_progress, settings, soon, start, start_with};

#[tokio::test]
async fn calls_that_were_begun_are_answered() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.grpc("Wait", b"300").await })
    };
    in_progress(&server, 1).await;
    server.shutdown.drain(Duration::from_secs(10));
    assert_eq!(soon(waiting).await.unwrap().code(), "0");
    soon(server.ended).await.unwrap();
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn health_says_so_first_and_calls_go_on_while_the_server_is_a_lame_duck() {
    let server = start_with(crate::support::ServerSettings {
        lame_duck: Duration::from_millis(300),
        ..settings()
    })
    .await;
    let client = Http2::connect(server.address).await;
    server.shutdown.drain(Duration::from_secs(10));
    while server.health.is_ready() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(client.grpc("Echo", b"x").await.code(), "0");
    let other = Http2::connect(server.address).await;
    let request = Http2::request(
        "/grpc.health.v1.Health/Check",
        &[("content-type", "application/grpc"), ("te", "trailers")],
    );
    let answer = other.send(request, frame(b"")).await;
    assert_eq!(answer.messages(), [Bytes::from_static(&[8, 2])]);
    soon(server.ended).await.unwrap();
}

#[tokio::test]
async fn streams_get_a_status_before_they_are_cut() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let stream = {
        let client = client.clone();
        tokio::spawn(async move { client.grpc("Forever", b"").await })
    };
    in_progress(&server, 1).await;
    server.shutdown.drain(Duration::from_millis(600));
    let answer = soon(stream).await.unwrap();
    assert_eq!((answer.code(), answer.messages().len()), ("14", 1));
    soon(server.ended).await.unwrap();
}

/// A client that reads slowly, of a stream that always has more: the stream hears of the end all the
/// same, and is not cut.
#[tokio::test]
async fn a_stream_that_always_has_more_gets_a_status_too() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let stream = {
        let client = client.clone();
        tokio::spawn(async move { client.grpc("Flood", b"").await })
    };
    in_progress(&server, 1).await;
    server.shutdown.drain(Duration::from_secs(2));
    let answer = soon(stream).await.unwrap();
    assert_eq!(answer.code(), "14");
    soon(server.ended).await.unwrap();
}

#[tokio::test]
async fn the_drain_time_bounds_what_does_not_end() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let waiting =
        tokio::spawn(
            async move { client.try_send(grpc_request("Wait", &[]), frame(b"60000")).await },
        );
    in_progress(&server, 1).await;
    server.shutdown.drain(Duration::from_millis(200));
    soon(server.ended).await.unwrap();
    assert!(soon(waiting).await.unwrap().is_err());
}

#[tokio::test]
async fn a_second_signal_cuts() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let waiting =
        tokio::spawn(
            async move { client.try_send(grpc_request("Wait", &[]), frame(b"60000")).await },
        );
    in_progress(&server, 1).await;
    server.shutdown.drain(Duration::from_secs(600));
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.shutdown.cut();
    soon(server.ended).await.unwrap();
    assert!(soon(waiting).await.unwrap().is_err());
}

/// Two servers take turns behind clients that reconnect when they are told to go away: every call
/// that was sent on a connection is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_servers_take_over_from_each_other() {
    let mut server = start().await;
    let address = Arc::new(parking_lot::Mutex::new(server.address));
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (address, stop, calls) =
                (Arc::clone(&address), Arc::clone(&stop), Arc::clone(&calls));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let at = *address.lock();
                    let Ok(stream) = tokio::net::TcpStream::connect(at).await else { continue };
                    let Ok((mut send, connection)) = h2::client::handshake(stream).await else {
                        continue;
                    };
                    tokio::spawn(connection);
                    while !stop.load(Ordering::Relaxed) {
                        // A connection that goes away says so before a call is sent on it.
                        let Ok(ready) = send.clone().ready().await else { break };
                        send = ready;
                        let request = grpc_request("Wait", &[]);
                        let Ok((answer, mut body)) = send.send_request(request, false) else {
                            break;
                        };
                        let _ = body.send_data(frame(b"2"), true);
                        match answer.await {
                            Ok(answer) => {
                                assert_eq!(answer.status(), 200);
                                let mut body = answer.into_body();
                                while let Some(data) = body.data().await {
                                    data.unwrap();
                                }
                                let trailers = body.trailers().await.unwrap().unwrap();
                                assert_eq!(trailers["grpc-status"], "0");
                                calls.fetch_add(1, Ordering::Relaxed);
                            }
                            // Above the last stream of the GOAWAY: never begun, so safe to repeat.
                            Err(error) if error.is_go_away() || is_refused(&error) => break,
                            Err(error) => panic!("a call was lost: {error:?}"),
                        }
                    }
                }
            })
        })
        .collect();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let next = start().await;
        *address.lock() = next.address;
        let before = std::mem::replace(&mut server, next);
        before.shutdown.drain(Duration::from_secs(10));
        soon(before.ended).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        soon(client).await.unwrap();
    }
    assert!(calls.load(Ordering::Relaxed) > 100);
}

fn is_refused(error: &h2::Error) -> bool {
    error.reason() == Some(h2::Reason::REFUSED_STREAM)
}
