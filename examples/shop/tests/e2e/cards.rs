//! Every card of the simulated provider ends the way it should.

use serde_json::json;

use crate::harness::{Shop, audit, until};

#[tokio::test]
async fn every_card_ends_as_it_should_and_nothing_is_left_over() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::open(data.path()).await;
    let cases = [
        ("tok_ok", "book-rust", "CONFIRMED", ""),
        ("tok_slow", "book-rust", "CONFIRMED", ""),
        ("tok_flaky", "book-rust", "CONFIRMED", ""),
        ("tok_timeout", "book-rust", "CONFIRMED", ""),
        ("tok_declined", "book-rust", "CANCELLED", "CARD_DECLINED"),
        ("tok_ok", "record-first-press", "CANCELLED", "OUT_OF_STOCK"),
    ];
    let mut orders = Vec::new();
    for (card, sku, status, reason) in cases {
        let body = json!({
            "customerId": card, "card": card, "lines": [{"sku": sku, "quantity": 26}],
        });
        let order = shop.send("POST", "/v1/orders", &body).await;
        assert_eq!(order.status, 201, "{}", order.json());
        orders.push((order.json()["id"].as_str().unwrap().to_owned(), card, status, reason));
    }
    for (id, card, status, reason) in &orders {
        let order = until(card, || async {
            let order = shop.get(&format!("/v1/orders/{id}")).await.json();
            (order["status"] != "PENDING").then_some(order)
        })
        .await;
        assert_eq!(order["status"], *status, "{card}: {order}");
        assert_eq!(order["cancelReason"].as_str().unwrap_or_default(), *reason, "{card}");
    }
    // While the shop still works on what it has begun.
    audit(data.path(), &[]).await;
    shop.close().await;
}
