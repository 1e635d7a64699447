//! What is wrong gets a specific answer, and the server goes on.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::{Http2, frame, grpc_request, http1, raw};
use crate::support::{settings, soon, start, start_with};

#[tokio::test]
async fn broken_frames_are_told_apart() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    for (body, code) in [
        (&b""[..], "12"),
        (b"\0\0\0", "3"),
        (b"\0\0\0\0\x09hi", "3"),
        (b"\0\0\0\0\0\0\0\0\0\0", "12"),
        (b"\x01\0\0\0\x02hi", "13"),
        (b"\x42\0\0\0\x02hi", "3"),
    ] {
        let answer = client.send(grpc_request("Echo", &[]), Bytes::from_static(body)).await;
        assert_eq!((answer.status, answer.code()), (200, code), "{body:?}");
        assert!(!answer.message().is_empty(), "{body:?}");
    }
    // The same on the general path.
    let cut = client.send(grpc_request("Join", &[]), Bytes::from_static(b"\0\0\0\0\x09hi")).await;
    assert_ne!(cut.code(), "0");
    assert_eq!(client.grpc("Echo", b"on").await.code(), "0");
}

#[tokio::test]
async fn messages_that_are_too_large_are_resource_exhausted() {
    let server =
        start_with(crate::support::ServerSettings { message_bytes_max: 100_000, ..settings() })
            .await;
    let client = Http2::connect(server.address).await;
    let large = vec![7; 100_000];
    assert_eq!(client.grpc("Echo", &large).await.code(), "0");
    let larger = vec![7; 100_001];
    assert_eq!(client.grpc("Echo", &larger).await.code(), "8");
    // A frame may announce more than it holds.
    let liar = Bytes::from_static(b"\0\xff\xff\xff\xff");
    assert_eq!(client.send(grpc_request("Echo", &[]), liar).await.code(), "3");
    let head = "POST /t.v1.Echo/Echo HTTP/1.1\r\ncontent-type: application/json";
    let (head, body) = soon(http1(server.address, head, &larger)).await;
    assert!(head.starts_with("HTTP/1.1 429"), "{head}");
    assert!(body.contains("resource_exhausted"), "{body}");
}

#[tokio::test]
async fn unknown_methods_are_unimplemented_in_the_callers_protocol() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let answer = client.grpc("Nothing", b"").await;
    assert_eq!((answer.status, answer.code()), (200, "12"));
    let head = "POST /t.v1.Echo/Nothing HTTP/1.1\r\ncontent-type: application/grpc-web";
    let (_, body) = soon(http1(server.address, head, &frame(b""))).await;
    assert!(body.contains("grpc-status: 12"), "{body}");
    let head = "POST /t.v1.Echo/Nothing HTTP/1.1\r\ncontent-type: application/proto";
    let (head, body) = soon(http1(server.address, head, b"")).await;
    assert!(head.starts_with("HTTP/1.1 404") && body.contains("unimplemented"), "{head} {body}");
    let (head, body) = soon(http1(server.address, "GET /nothing HTTP/1.1", b"")).await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    assert!(head.contains("application/problem+json") && body.contains("\"status\":404"), "{body}");
}

#[tokio::test]
async fn wrong_content_types_and_verbs_are_named() {
    let server = start().await;
    let head = "POST /t.v1.Echo/Echo HTTP/1.1\r\ncontent-type: text/plain";
    let (head, _) = soon(http1(server.address, head, b"x")).await;
    assert!(head.starts_with("HTTP/1.1 415") && head.contains("accept-post"), "{head}");
    let (head, _) = soon(http1(server.address, "DELETE /t.v1.Echo/Echo HTTP/1.1", b"")).await;
    assert!(head.starts_with("HTTP/1.1 405") && head.contains("allow: GET, POST"), "{head}");
    let head = "POST /t.v1.Echo/Echo HTTP/1.1\r\ncontent-type: application/grpc";
    let (head, body) = soon(http1(server.address, head, &frame(b""))).await;
    assert!(head.starts_with("HTTP/1.1 505") && body.contains("HTTP/2"), "{head} {body}");
    let client = Http2::connect(server.address).await;
    let thrift = [("content-type", "application/grpc+thrift")];
    let request = Http2::request("/t.v1.Echo/Echo", &thrift);
    assert_eq!(client.send(request, frame(b"x")).await.code(), "12");
}

#[tokio::test]
async fn unknown_and_broken_compression_is_refused() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    let compressed = Bytes::from_static(b"\x01\0\0\0\x02hi");
    for (encoding, code) in [("brotli", "12"), ("gzip", "3")] {
        let request = grpc_request("Echo", &[("grpc-encoding", encoding)]);
        let answer = client.send(request, compressed.clone()).await;
        assert_eq!(answer.code(), code, "{encoding} {}", answer.message());
    }
}

#[tokio::test]
async fn timeouts_that_are_none_are_refused_and_those_that_are_over_are_exceeded() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    for (timeout, code) in [("soon", "3"), ("-5S", "3"), ("999999999S", "3"), ("0S", "4")] {
        let answer = client.grpc_with("Echo", b"", &[("grpc-timeout", timeout)]).await;
        assert_eq!(answer.code(), code, "{timeout}");
        let stream = client.grpc_with("Count", b"1", &[("grpc-timeout", timeout)]).await;
        assert_eq!(stream.code(), code, "{timeout}");
    }
    let head = "POST /t.v1.Echo/Echo HTTP/1.1\r\ncontent-type: application/json\r\n\
        connect-timeout-ms: 10s";
    let (head, body) = soon(http1(server.address, head, b"{}")).await;
    assert!(head.starts_with("HTTP/1.1 400") && body.contains("connect-timeout-ms"), "{body}");
}

#[tokio::test]
async fn paths_that_only_an_attack_writes_are_refused() {
    let server = start().await;
    for path in ["/v1/../admin", "/v1/%2e%2e/admin", "/v1/%00", "/v1/a%5c..%5cb", "/v1/%zz"] {
        let (head, body) = soon(http1(server.address, &format!("GET {path} HTTP/1.1"), b"")).await;
        assert!(head.starts_with("HTTP/1.1 400"), "{path}: {head} {body}");
    }
}

#[tokio::test]
async fn headers_that_are_too_long_are_refused() {
    let server = start().await;
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "x".repeat(70_000));
    let answer = soon(raw(server.address, long.as_bytes())).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let client = Http2::connect(server.address).await;
    let long = "x".repeat(40_000);
    let request = grpc_request("Echo", &[("long", &long)]);
    let refused = client.try_send(request, frame(b"")).await;
    assert!(refused.is_err() || refused.unwrap().status == 431);
    let client = Http2::connect(server.address).await;
    assert_eq!(client.grpc("Echo", b"on").await.code(), "0");
}

#[tokio::test]
async fn bytes_that_are_no_http_are_refused() {
    let server = start().await;
    for bytes in [&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..], b"hello\r\n\r\n", b"\0\0\0\0"] {
        let answer = soon(raw(server.address, bytes)).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    // A preface whose last bytes are wrong, and one that is followed by rubbish.
    let answer = soon(raw(server.address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX")).await;
    assert!(!answer.contains("200"), "{answer}");
    let rubbish = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0xff; 64]].concat();
    soon(raw(server.address, &rubbish)).await;
}

#[tokio::test]
async fn silent_and_dripping_clients_are_closed() {
    let server = start_with(crate::support::ServerSettings {
        sniff_timeout: Duration::from_millis(200),
        header_timeout: Duration::from_millis(200),
        ..settings()
    })
    .await;
    for begin in [&b""[..], b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\nhost: x\r\nslow: "] {
        let answer = soon(raw(server.address, begin)).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    // One byte at a time does not help.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    soon(async {
        loop {
            tokio::time::sleep(Duration::from_millis(30)).await;
            let broken = stream.write_all(b"a").await.is_err();
            let mut byte = [0];
            let read = stream.try_read(&mut byte);
            if broken
                || matches!(read, Ok(0))
                || matches!(&read, Err(e) if e.kind() != std::io::ErrorKind::WouldBlock)
            {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_pauses_within_its_body_is_given_up() {
    let server = start_with(crate::support::ServerSettings {
        body_idle_timeout: Duration::from_millis(100),
        ..settings()
    })
    .await;
    let client = Http2::connect(server.address).await;
    let mut send = client.0.clone().ready().await.unwrap();
    let (answer, mut body) = send.send_request(grpc_request("Echo", &[]), false).unwrap();
    body.send_data(Bytes::from_static(b"\0\0\0\0\x05he"), false).unwrap();
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "4");
    assert!(answer.headers()["grpc-message"].to_str().unwrap().contains("sent nothing"));
}

#[tokio::test]
async fn a_body_in_text_that_does_not_come_runs_into_the_deadline_of_the_call() {
    let server = start().await;
    let head = "POST /t.v1.Echo/Echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\
        content-type: application/grpc-web-text\r\ngrpc-timeout: 50m\r\n\r\nAAAA";
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4_096];
    let length = soon(stream.read(&mut answer)).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.contains("grpc-status: 4"), "{answer}");
}

#[tokio::test]
async fn a_call_runs_into_its_deadline_and_its_handler_is_dropped() {
    let echo = crate::support::echo::Echo::default();
    let seen = std::sync::Arc::clone(&echo.0);
    let server = crate::support::start_service(settings(), std::sync::Arc::new(echo)).await;
    let client = Http2::connect(server.address).await;
    let answer = client.grpc_with("Wait", b"60000", &[("grpc-timeout", "50m")]).await;
    assert_eq!(answer.code(), "4");
    assert_eq!(seen.dropped.load(std::sync::atomic::Ordering::SeqCst), 1);
    let head = "POST /t.v1.Echo/Wait HTTP/1.1\r\ncontent-type: application/proto\r\n\
        connect-timeout-ms: 50";
    let (head, body) = soon(http1(server.address, head, b"60000")).await;
    assert!(head.starts_with("HTTP/1.1 504") && body.contains("deadline_exceeded"), "{head}");
    let stream = client.grpc_with("Forever", b"", &[("grpc-timeout", "50m")]).await;
    assert_eq!((stream.code(), stream.messages().len()), ("4", 1));
}

#[tokio::test]
async fn a_client_that_goes_away_stops_the_handler() {
    let echo = crate::support::echo::Echo::default();
    let seen = std::sync::Arc::clone(&echo.0);
    let server = crate::support::start_service(settings(), std::sync::Arc::new(echo)).await;
    let client = Http2::connect(server.address).await;
    let mut send = client.0.clone().ready().await.unwrap();
    let (answer, mut body) = send.send_request(grpc_request("Wait", &[]), false).unwrap();
    body.send_data(frame(b"60000"), true).unwrap();
    while seen.begun.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    body.send_reset(Reason::CANCEL);
    drop(answer);
    soon(async {
        while seen.dropped.load(std::sync::atomic::Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let metrics = server.metrics();
    assert!(metrics.contains("rpc_status_code=\"CANCELLED\""), "{metrics}");
}

#[tokio::test]
async fn requests_that_could_be_smuggled_are_refused() {
    let server = start().await;
    for head in [
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
        "POST / HTTP/1.1\r\nhost : x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\n folded: y\r\n\r\n",
    ] {
        let answer = soon(raw(server.address, head.as_bytes())).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head:?}: {answer}");
    }
}

#[tokio::test]
async fn a_reset_storm_ends_the_connection_and_not_the_server() {
    let server = start().await;
    let client = Http2::connect(server.address).await;
    for _ in 0..5_000 {
        let Ok(mut send) = client.0.clone().ready().await else { break };
        let request: Request<()> = grpc_request("Wait", &[]);
        let Ok((_, mut body)) = send.send_request(request, false) else { break };
        body.send_reset(Reason::CANCEL);
    }
    let other = Http2::connect(server.address).await;
    assert_eq!(soon(other.grpc("Echo", b"on")).await.code(), "0");
}

#[tokio::test]
async fn a_client_that_never_reads_is_given_up() {
    let server = start_with(crate::support::ServerSettings {
        write_timeout: Duration::from_millis(300),
        ..settings()
    })
    .await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let large = vec![b'x'; 3_000_000];
    let head = format!(
        "POST /t.v1.Echo/Echo HTTP/1.1\r\nhost: x\r\ncontent-type: application/proto\r\n\
         content-length: {}\r\n\r\n",
        large.len()
    );
    // Ask often enough to fill every buffer on the way back.
    let ask = async {
        for _ in 0..20 {
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&large).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    assert!(soon(ask).await.is_err(), "the server should have closed");
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
}
