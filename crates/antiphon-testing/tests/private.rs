//! A server of a test's own, beside the tasks of the test.

use std::time::Duration;

use antiphon_testing::proxy::{Faults, Way};
use antiphon_testing::services::{Private, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

async fn ping(address: &str) -> std::io::Result<String> {
    let mut client = TcpStream::connect(address).await?;
    client.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    let read = client.read_exact(&mut answer);
    let limit = Duration::from_millis(500);
    timeout(limit, read).await.map_err(|_| std::io::ErrorKind::TimedOut)??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn a_server_behind_a_proxy_is_reached_killed_paused_and_restarted() -> Result {
    let (server, proxy) = Private::behind_proxy(Service::Redis).await?;
    let address = proxy.address().to_string();
    assert_eq!(proxy.url(), format!("redis://{address}"));
    assert_eq!(ping(&address).await?, "+PONG\r\n");

    proxy.set(Faults { to_client: Way { swallow: true, ..Way::default() }, ..Faults::default() });
    assert!(ping(&address).await.is_err());
    proxy.heal();

    server.kill().await?;
    assert!(ping(&address).await.is_err());
    server.start_again().await?;
    assert_eq!(ping(&address).await?, "+PONG\r\n");

    server.pause().await?;
    assert!(ping(&address).await.is_err());
    server.resume().await?;
    assert_eq!(ping(&address).await?, "+PONG\r\n");

    server.restart().await?;
    assert_eq!(ping(&address).await?, "+PONG\r\n");
    let counts = proxy.counts();
    assert!(counts.unreachable == 1 && counts.swallowed == 1, "{counts}");
    Ok(())
}
