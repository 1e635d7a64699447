//! Stock is read through a cache: what was written is read, and what does not exist is not asked for.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::harness::{PATIENCE, Shop, figure, order, until};

/// Settings with which nothing is new again by the passing of time while a test runs.
const FOR_EVER: &str =
    "[cache.stock]\nttl = \"1h\"\nnegative_ttl = \"1h\"\nfilter_age_max = \"1h\"\n";

async fn open(folder: &std::path::Path) -> Shop {
    let config = folder.join("shop.toml");
    std::fs::write(&config, FOR_EVER).unwrap();
    Shop::start(&folder.join("data"), "shop", &["--config", config.to_str().unwrap()]).await
}

/// Gets these paths one after the other over one connection; gives the statuses.
async fn get_all(to: String, paths: Vec<String>) -> Vec<u16> {
    let stream = TcpStream::connect(&to).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut statuses = Vec::with_capacity(paths.len());
    for path in paths {
        let request = Request::get(path).header("host", &to).body(Empty::<Bytes>::new()).unwrap();
        let reply = sender.send_request(request).await.unwrap();
        statuses.push(reply.status().as_u16());
        reply.into_body().collect().await.unwrap();
    }
    statuses
}

#[tokio::test]
async fn who_puts_stock_reads_it_whoever_else_reads_at_the_same_time() {
    let folder = tempfile::tempdir().unwrap();
    let shop = open(folder.path()).await;
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let paths = vec!["/v1/stock/cup-red".to_owned(); 1_000];
        readers.spawn(get_all(shop.api.clone(), paths));
    }
    for quantity in 1..100 {
        let article = json!({"quantity": quantity.to_string(), "priceCents": quantity});
        let put = shop.send("PUT", "/v1/stock/cup-red", &article).await;
        assert_eq!(put.status, 200, "{}", put.json());
        let read = shop.get("/v1/stock/cup-red").await.json();
        assert_eq!(read["onHand"], quantity.to_string());
    }
    let statuses = readers.join_all().await.concat();
    assert!(statuses.len() == 4_000 && statuses.iter().all(|status| *status == 200));
    let hits = figure(&shop.admin, "cache_requests_total{cache=\"stock\",outcome=\"hit\"}").await;
    assert!(hits > 2_000, "{hits} of 4,000 reads were answered from memory");
    // An article that did not exist a moment ago is there, too.
    assert_eq!(shop.get("/v1/stock/cup-gold").await.status, 404);
    let article = json!({"quantity": "1", "priceCents": 1});
    assert_eq!(shop.send("PUT", "/v1/stock/cup-gold", &article).await.status, 200);
    assert_eq!(shop.get("/v1/stock/cup-gold").await.json()["onHand"], "1");
    shop.close().await;
}

#[tokio::test]
async fn reads_follow_the_orders() {
    let folder = tempfile::tempdir().unwrap();
    let shop = open(folder.path()).await;
    let read = || async { shop.get("/v1/stock/book-rust").await.json() };
    let before = read().await;
    let is = |stock: &Value, on_hand: i64, shipped: i64| {
        let begun: i64 = before["onHand"].as_str().unwrap().parse().unwrap();
        let (on_hand, shipped) = ((begun - on_hand).to_string(), shipped.to_string());
        stock["onHand"] == *on_hand && stock["reserved"] == "0" && stock["shipped"] == *shipped
    };
    for (card, end) in [("tok_ok", "CONFIRMED"), ("tok_declined", "CANCELLED")] {
        let body = json!({
            "customerId": "ada", "card": card, "lines": [{"sku": "book-rust", "quantity": 2}],
        });
        let placed = order(&shop, card, &body).await;
        let id = placed.json()["id"].as_str().unwrap().to_owned();
        until("the order is decided", || async {
            // While it is being decided the article is read all the time, and kept again.
            read().await;
            let order = shop.get(&format!("/v1/orders/{id}")).await.json();
            (order["status"] == end).then_some(())
        })
        .await;
        until("the article is read as the order left it", || async {
            is(&read().await, 2, 2).then_some(())
        })
        .await;
    }
    shop.close().await;
}

#[tokio::test]
async fn ten_thousand_skus_that_do_not_exist_hardly_reach_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let shop = open(folder.path()).await;
    let filtered = "cache_requests_total{cache=\"stock\",outcome=\"filtered\"}";
    until("the filter is built", || async {
        let sku = fastrand::u64(..);
        assert_eq!(shop.get(&format!("/v1/stock/early-{sku:x}")).await.status, 404);
        (figure(&shop.admin, filtered).await > 0).then_some(())
    })
    .await;
    let absent = "cache_loads_total{cache=\"stock\",outcome=\"absent\"}";
    let before = figure(&shop.admin, absent).await;
    let mut readers = JoinSet::new();
    for reader in 0..8 {
        let paths = (0..1_250).map(|number| format!("/v1/stock/nothing-{reader}-{number}"));
        readers.spawn(get_all(shop.api.clone(), paths.collect()));
    }
    let statuses = tokio::time::timeout(PATIENCE * 2, readers.join_all()).await.unwrap().concat();
    assert!(statuses.len() == 10_000 && statuses.iter().all(|status| *status == 404));
    let loads = figure(&shop.admin, absent).await - before;
    assert!(loads < 200, "{loads} of 10,000 reads of absent skus reached the database");
    shop.close().await;
}
