//! A server that is killed, silent, comes back or forgets: calls never fail for it.

use std::time::Duration;

use antiphon_testing::services::{Private, Service};
use tokio::time::Instant;

use crate::common::{ask, at, until};
use crate::servers::{PATIENT, at_once, burst, call, serve};

/// How long a call waits for a silent store.
const TIMEOUT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn a_server_that_is_killed_is_done_without_and_shared_again_when_it_is_back() {
    let server = Private::start(Service::Redis).await.expect("a server");
    let redis = at(&server.url());
    let one = serve(&redis, burst(10, true), PATIENT).await;
    let two = serve(&redis, burst(10, true), PATIENT).await;
    let both = [one.address, two.address];
    assert_eq!(at_once(&both, 40, "before").await, 10);

    server.kill().await.expect("it is killed");
    one.store.disconnected().await;
    two.store.disconnected().await;
    // Each server keeps the limit by itself, and no call fails or waits.
    let begun = Instant::now();
    assert_eq!(at_once(&both, 40, "meanwhile").await, 20);
    for _ in 0..3 {
        assert_eq!(call(one.address, "meanwhile").await, 429);
        assert_eq!(call(two.address, "meanwhile").await, 429);
    }
    assert!(begun.elapsed() < PATIENT, "{:?}", begun.elapsed());
    assert!(one.is_alone() && two.is_alone());

    server.start_again().await.expect("it starts");
    one.store.connected().await;
    two.store.connected().await;
    // Calls find out, and nobody waits for it.
    let found_out = async {
        while one.is_alone() || two.is_alone() {
            assert!(matches!(call(one.address, "a").await, 200 | 429));
            assert!(matches!(call(two.address, "b").await, 200 | 429));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found_out).await.expect("they find out");
    assert_eq!(at_once(&both, 40, "after").await, 10);
}

#[tokio::test]
async fn a_silent_server_costs_a_bounded_wait_and_then_none() {
    let server = Private::start(Service::Redis).await.expect("a server");
    let one = serve(&at(&server.url()), burst(1_000, false), TIMEOUT).await;
    assert_eq!(call(one.address, "any").await, 200);
    server.pause().await.expect("it is paused");
    // Each waits for the same or the next question, until there were three.
    while !one.is_alone() {
        let begun = Instant::now();
        assert_eq!(call(one.address, "any").await, 200);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    let begun = Instant::now();
    for _ in 0..50 {
        assert_eq!(call(one.address, "any").await, 200);
    }
    assert!(begun.elapsed() < 50 * TIMEOUT, "nobody waits any more: {:?}", begun.elapsed());
    server.resume().await.expect("it goes on");
    let found_out = async {
        while one.is_alone() {
            assert_eq!(call(one.address, "any").await, 200);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found_out).await.expect("it finds out");
}

#[tokio::test]
async fn a_server_that_forgot_everything_begins_anew() {
    let server = Private::start(Service::Redis).await.expect("a server");
    let one = serve(&at(&server.url()), burst(5, true), PATIENT).await;
    assert_eq!(at_once(&[one.address], 20, "a").await, 5);
    ask::<()>(&server.url(), &redis::cmd("FLUSHALL")).await;
    ask::<()>(&server.url(), redis::cmd("SCRIPT").arg("FLUSH")).await;
    // The script is sent again.
    assert_eq!(at_once(&[one.address], 20, "b").await, 5);
    assert!(!one.is_alone());
}

#[tokio::test]
async fn a_server_without_memory_is_done_without() {
    let server = Private::start(Service::Redis).await.expect("a server");
    let one = serve(&at(&server.url()), burst(5, true), PATIENT).await;
    let mut limit = redis::cmd("CONFIG");
    limit.arg("SET").arg("maxmemory").arg("1").arg("maxmemory-policy").arg("noeviction");
    ask::<()>(&server.url(), &limit).await;
    for tenant in ["a", "b", "c", "d"] {
        assert_eq!(at_once(&[one.address], 20, tenant).await, 5, "{tenant}");
    }
    until("it is alone", || one.is_alone()).await;
}
