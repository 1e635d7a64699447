//! Two instances of inventory with a shared level behind their memories, on a real Redis server.

#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

#[expect(dead_code, reason = "what the other tests of the shop need as well")]
#[path = "../e2e/harness.rs"]
mod harness;

use antiphon_testing::services::Service;
use serde_json::{Value, json};

use harness::{Shop, figure, order, until};

#[tokio::test]
async fn what_one_instance_changes_all_instances_read() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let config = folder.path().join("shop.toml");
    // Nothing is new again by the passing of time while the test runs.
    let settings = format!(
        "[cache_level]\nurl = {:?}\nredis.prefix = \"shop-{:016x}\"\n\
         [cache.stock]\nttl = \"1h\"\nnegative_ttl = \"1h\"\nfilter_age_max = \"1h\"\n",
        Service::Redis.url(),
        fastrand::u64(..)
    );
    std::fs::write(&config, &settings).unwrap();
    let only = ["--only", "inventory", "--config", config.to_str().unwrap()];
    let one = Shop::start(&data, "inventory-1", &only).await;
    let two = Shop::start(&data, "inventory-2", &only).await;

    // An article that both know not to exist, and then one of them has it.
    for shop in [&one, &two] {
        assert_eq!(shop.get("/v1/stock/cup-gold").await.status, 404);
    }
    for quantity in 1..20 {
        let article = json!({"quantity": quantity.to_string(), "priceCents": 1});
        assert_eq!(one.send("PUT", "/v1/stock/cup-gold", &article).await.status, 200);
        let own = one.get("/v1/stock/cup-gold").await.json();
        assert_eq!(own["onHand"], quantity.to_string());
        until("the other instance has heard of it", || async {
            (two.get("/v1/stock/cup-gold").await.json()["onHand"] == *quantity.to_string())
                .then_some(())
        })
        .await;
    }
    // The events say it as well: the seeds of the first start, and each of those above.
    let handled = "messaging_client_consumed_messages_total{group=\"inventory.cache\",kind=\"shop.inventory.v1.StockSet\"}";
    until("each event is handled by one of them", || async {
        let handled = figure(&one.admin, handled).await + figure(&two.admin, handled).await;
        (handled >= 10 + 19).then_some(())
    })
    .await;
    let shared = "cache_shared_requests_total{cache=\"stock\",outcome=\"hit\"}";
    assert!(figure(&two.admin, shared).await > 0, "what one loaded the other finds");

    // An order changes the article in whichever instance gets its commands.
    let rest = folder.path().join("orders.toml");
    let target = format!("static:{}", one.api);
    let client = "[clients.\"shop.inventory.v1.InventoryService\"]\n";
    std::fs::write(&rest, format!("{client}target = {target:?}\n")).unwrap();
    let others = "orders,payments,points,shipping,notifications";
    let more = ["--only", others, "--config", rest.to_str().unwrap()];
    let orders = Shop::start(&data, "orders", &more).await;
    let lines = json!([{"sku": "cup-gold", "quantity": 2}]);
    let body = json!({"customerId": "ada", "card": "tok_ok", "lines": lines});
    assert_eq!(order(&orders, "k", &body).await.status, 201);
    for shop in [&one, &two] {
        until("the article is read as the order left it", || async {
            let stock: Value = shop.get("/v1/stock/cup-gold").await.json();
            (stock["shipped"] == "2" && stock["onHand"] == "17").then_some(())
        })
        .await;
    }
    for shop in [orders, one, two] {
        shop.close().await;
    }
}
