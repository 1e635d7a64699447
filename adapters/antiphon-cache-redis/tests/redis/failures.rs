//! A server that stops, comes back, is silent or forgets: callers never get an error for it.

use std::sync::Arc;
use std::time::Duration;

use antiphon_cache::{Cache, CacheSettings, Json, SharedLevel};
use antiphon_core::Code;
use antiphon_telemetry::Telemetry;
use antiphon_testing::proxy::{Faults, Proxy, Way};
use antiphon_testing::services::{Private, Service};
use tokio::time::Instant;

use crate::common::{Level, Loads, at, cache, connected, get};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_and_starts_again_is_done_without_and_used_again() {
    let server = Private::start(Service::Redis).await.expect("a server");
    let settings = at(&server.url());
    let level = connected(&settings).await;
    let stock = cache(&level);
    let loads = Loads::default();
    assert_eq!(get(&stock, "before", &loads).await, 1);

    server.stop().await.expect("it stops");
    level.disconnected().await;
    assert_eq!(get(&stock, "before", &loads).await, 1, "memory goes on");
    for number in 0..200 {
        let began = Instant::now();
        assert_eq!(get(&stock, &format!("during-{number}"), &loads).await, number + 2);
        assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    }
    let error = stock.invalidate("before").await.expect_err("others may have it");
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(get(&stock, "before", &loads).await, 202, "here it is forgotten");

    server.start_again().await.expect("it starts");
    level.connected().await;
    stock.invalidate("before").await.expect("now it is done");
    // The server is used again: what this process loads another one finds.
    let other = cache(&connected(&settings).await);
    let loaded = get(&stock, "after", &loads).await;
    level.stored("after").await;
    assert_eq!(get(&other, "after", &loads).await, loaded);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_invalidated_while_the_connection_was_away_is_forgotten_when_it_is_back() {
    let server = Private::start(Service::Redis).await.expect("a server");
    let proxy = Proxy::in_front_of(&server.url()).await.expect("a proxy");
    let direct = at(&server.url());
    let through = antiphon_cache_redis::Settings { url: proxy.url().to_owned(), ..direct.clone() };
    let (near, far) = (connected(&direct).await, connected(&through).await);
    let (first, second) = (cache(&near), cache(&far));
    let loads = Loads::default();
    let old = get(&second, "k", &loads).await;
    proxy
        .set(Faults { refuse: true, ..Faults::both(Way { cut_after: Some(0), ..Way::default() }) });
    far.disconnected().await;
    first.invalidate("k").await.expect("it is forgotten");
    assert_eq!(get(&second, "k", &loads).await, old, "it has not heard of it");
    proxy.heal();
    far.connected().await;
    assert!(get(&second, "k", &loads).await > old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_others_made_while_the_connection_was_away_is_not_called_absent() {
    let server = Private::start(Service::Redis).await.expect("a server");
    let proxy = Proxy::in_front_of(&server.url()).await.expect("a proxy");
    let level = connected(&at(proxy.url())).await;
    let shared = Arc::<Level>::clone(&level);
    let settings = CacheSettings { filter_keys: 100, ..CacheSettings::default() };
    let builder = Cache::<String, u32>::builder("stock").settings(settings).shared(shared, Json);
    let stock = builder.build(&Telemetry::new()).expect("a cache");
    let filter = stock.filter().expect("a filter");
    assert!(filter.rebuild().finish() && filter.is_complete(), "nothing exists");
    let loads = Loads::default();
    assert!(stock.get("k", loads.number()).await.expect("an answer").is_none());
    proxy
        .set(Faults { refuse: true, ..Faults::both(Way { cut_after: Some(0), ..Way::default() }) });
    level.disconnected().await;
    assert!(!filter.is_complete(), "it hears of nothing");
    assert_eq!(get(&stock, "k", &loads).await, 1);
    proxy.heal();
    level.connected().await;
    filter.due().await;
    assert!(filter.rebuild().finish() && filter.is_complete());
    assert!(stock.get("other", loads.number()).await.expect("an answer").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_costs_a_bounded_wait_and_is_given_up() {
    let server = Private::start(Service::Redis).await.expect("a server");
    let level = connected(&at(&server.url())).await;
    let stock = cache(&level);
    let loads = Loads::default();
    get(&stock, "warm", &loads).await;
    server.pause().await.expect("it is paused");
    let began = Instant::now();
    for number in 0..50 {
        get(&stock, &number.to_string(), &loads).await;
    }
    // Three waits of a second to find out, fewer if the connection is given up before.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    level.disconnected().await;
    server.resume().await.expect("it goes on");
    level.connected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgot_everything_stores_nothing_under_an_old_lease() {
    let server = Private::start(Service::Redis).await.expect("a server");
    let level = connected(&at(&server.url())).await;
    let lease = level.read("stock", "k").await.expect("an answer").lease;
    let client = redis::Client::open(server.url()).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("it connects");
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.expect("it is empty");
    let value = Some(bytes::Bytes::from_static(b"old"));
    let (fresh, stale) = (Duration::from_secs(5), Duration::ZERO);
    let record = antiphon_cache::Record { value, fresh, stale };
    assert!(!level.fill("stock", "k", &lease, record).await.expect("an answer"));
    // Scripts that are gone are sent again.
    redis::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut connection).await.expect("gone");
    assert!(level.read("stock", "k").await.expect("an answer").stored.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_memory_is_done_without() {
    let server = Private::start(Service::Redis).await.expect("a server");
    let level = connected(&at(&server.url())).await;
    let client = redis::Client::open(server.url()).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("it connects");
    let mut limit = redis::cmd("CONFIG");
    limit.arg("SET").arg("maxmemory").arg("1").arg("maxmemory-policy").arg("noeviction");
    limit.query_async::<()>(&mut connection).await.expect("it is set");
    assert!(level.read("stock", "k").await.is_err(), "the fault bit");
    let stock = cache(&level);
    let loads = Loads::default();
    assert_eq!(get(&stock, "k", &loads).await, 1);
    stock.invalidate("k").await.expect("removing needs no memory");
    assert_eq!(get(&stock, "k", &loads).await, 2);
}
