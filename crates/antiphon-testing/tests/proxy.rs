//! The proxy, between a real client and a real server on this machine.

use std::io;
use std::time::Duration;

use antiphon_testing::proxy::{Faults, Proxy, Way};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

/// A server that sends back what it gets.
async fn echo() -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    Ok(format!("echo://{address}/x"))
}

async fn proxy() -> io::Result<(Proxy, TcpStream)> {
    let proxy = Proxy::in_front_of(&echo().await?).await?;
    let client = TcpStream::connect(proxy.address()).await?;
    Ok((proxy, client))
}

/// Sends something and reads as much.
async fn ask(client: &mut TcpStream, words: &[u8]) -> io::Result<Vec<u8>> {
    client.write_all(words).await?;
    let mut answer = vec![0; words.len()];
    client.read_exact(&mut answer).await?;
    Ok(answer)
}

async fn silent(client: &mut TcpStream) -> bool {
    timeout(Duration::from_millis(50), client.read_u8()).await.is_err()
}

async fn is_reset(client: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let read = timeout(Duration::from_secs(5), client.read_to_end(&mut rest)).await;
    matches!(read, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn without_faults_everything_passes_and_ends_in_order() -> Result {
    let (proxy, mut client) = proxy().await?;
    assert!(proxy.url().starts_with("echo://127.0.0.1:") && proxy.url().ends_with("/x"));
    assert_eq!(ask(&mut client, b"hello").await?, b"hello");
    let big = vec![3; 3_000_000];
    let (mut from, mut to) = client.split();
    let mut back = Vec::new();
    let send = async {
        to.write_all(&big).await?;
        to.shutdown().await
    };
    let (sent, read) = tokio::join!(send, from.read_to_end(&mut back));
    sent?;
    assert_eq!(read?, big.len());
    assert_eq!(back, big);
    let counts = proxy.counts();
    assert_eq!(counts.connections, 1);
    assert_eq!(counts.bytes_to_server, 3_000_005);
    assert_eq!(counts.bytes_to_client, 3_000_005);
    assert_eq!(counts.bites(), 0, "{counts}");
    Ok(())
}

#[tokio::test]
async fn latency_adds_up_over_both_ways() -> Result {
    let (proxy, mut client) = proxy().await?;
    proxy.set(Faults::both(Way { latency: Duration::from_millis(40), ..Way::default() }));
    let begun = Instant::now();
    assert_eq!(ask(&mut client, b"slow").await?, b"slow");
    assert!(begun.elapsed() >= Duration::from_millis(80), "{:?}", begun.elapsed());
    assert_eq!(proxy.counts().delayed, 2);
    Ok(())
}

#[tokio::test]
async fn what_is_held_arrives_when_it_heals() -> Result {
    let (proxy, mut client) = proxy().await?;
    assert_eq!(ask(&mut client, b"a").await?, b"a");
    proxy.set(Faults { to_server: Way { hold: true, ..Way::default() }, ..Faults::default() });
    client.write_all(b"b").await?;
    assert!(silent(&mut client).await);
    proxy.heal();
    assert_eq!(client.read_u8().await?, b'b');
    assert_eq!(proxy.counts().held, 1);
    assert_eq!(ask(&mut client, b"c").await?, b"c");
    Ok(())
}

#[tokio::test]
async fn lost_answers_are_lost_although_the_server_got_the_question() -> Result {
    let (proxy, mut client) = proxy().await?;
    proxy.set(Faults { to_client: Way { swallow: true, ..Way::default() }, ..Faults::default() });
    client.write_all(b"question").await?;
    assert!(silent(&mut client).await);
    let counts = proxy.counts();
    assert_eq!((counts.bytes_to_server, counts.bytes_to_client), (8, 0));
    assert_eq!(counts.swallowed, 1);
    proxy.heal();
    assert!(is_reset(&mut client).await, "bytes are missing in the middle");
    let mut again = TcpStream::connect(proxy.address()).await?;
    assert_eq!(ask(&mut again, b"again").await?, b"again");
    Ok(())
}

#[tokio::test]
async fn a_cut_comes_in_the_middle() -> Result {
    let (proxy, mut client) = proxy().await?;
    let cut = Way { cut_after: Some(3), ..Way::default() };
    proxy.set(Faults { to_server: cut, ..Faults::default() });
    client.write_all(b"abcdef").await?;
    assert!(is_reset(&mut client).await);
    let counts = proxy.counts();
    assert_eq!((counts.bytes_to_server, counts.cut, counts.reset), (3, 1, 0), "{counts}");
    Ok(())
}

#[tokio::test]
async fn a_reset_ends_what_is_open_and_nothing_else() -> Result {
    let (proxy, mut client) = proxy().await?;
    assert_eq!(ask(&mut client, b"a").await?, b"a");
    proxy.reset();
    assert!(is_reset(&mut client).await);
    assert_eq!(proxy.counts().reset, 1);
    let mut again = TcpStream::connect(proxy.address()).await?;
    assert_eq!(ask(&mut again, b"b").await?, b"b");
    Ok(())
}

#[tokio::test]
async fn refused_connections_are_reset_at_once() -> Result {
    let (proxy, mut client) = proxy().await?;
    assert_eq!(ask(&mut client, b"a").await?, b"a");
    proxy.set(Faults { refuse: true, ..Faults::default() });
    let mut refused = TcpStream::connect(proxy.address()).await?;
    assert!(is_reset(&mut refused).await);
    assert_eq!(ask(&mut client, b"b").await?, b"b", "what is open stays open");
    assert_eq!(proxy.counts().refused, 1);
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_by_a_reset() -> Result {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let target = listener.local_addr()?;
    drop(listener);
    let proxy = Proxy::to(target).await?;
    let mut client = TcpStream::connect(proxy.address()).await?;
    assert!(is_reset(&mut client).await);
    assert_eq!(proxy.counts().unreachable, 1);
    Ok(())
}

#[tokio::test]
async fn the_end_of_the_proxy_is_the_end_of_its_connections() -> Result {
    let (proxy, mut client) = proxy().await?;
    assert_eq!(ask(&mut client, b"a").await?, b"a");
    drop(proxy);
    assert!(is_reset(&mut client).await);
    Ok(())
}
