//! Every public route, as the contract promises it.

use serde_json::{Value, json};

use crate::harness::{PATIENCE, Shop, order, request, until};

fn book() -> Value {
    json!({
        "customerId": "ada",
        "card": "tok_ok",
        "lines": [{"sku": "book-rust", "quantity": 2}],
    })
}

async fn decided(shop: &Shop, id: &str) -> Value {
    until("the order is decided", || async {
        let order = shop.get(&format!("/v1/orders/{id}")).await.json();
        (order["status"] != "PENDING").then_some(order)
    })
    .await
}

#[tokio::test]
async fn an_order_goes_from_pending_to_confirmed_with_all_that_follows() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::open(data.path()).await;
    let placed = order(&shop, "k1", &book()).await;
    assert_eq!(placed.status, 201, "{}", placed.json());
    let order = placed.json();
    let id = order["id"].as_str().unwrap();
    assert_eq!(placed.header("location"), format!("/v1/orders/{id}"));
    assert_eq!(order["customerId"], "ada");
    assert_eq!(order["lines"], json!([{"sku": "book-rust", "quantity": 2}]));
    assert_eq!(order["totalCents"], "7980");
    assert_eq!(order["status"], "PENDING");
    assert!(order["createTime"].as_str().unwrap().ends_with('Z'));

    assert_eq!(decided(&shop, id).await["status"], "CONFIRMED");
    let payment = shop.get(&format!("/v1/payments/{id}")).await.json();
    assert_eq!((&payment["status"], &payment["amountCents"]), (&json!("CHARGED"), &json!("7980")));
    until("the points come", || async {
        let balance = shop.get("/v1/customers/ada/points").await.json();
        (balance["points"] == "79").then_some(())
    })
    .await;
    until("the shipment comes", || async {
        let shipment = shop.get(&format!("/v1/shipments/{id}")).await;
        (shipment.status == 200 && shipment.json()["orderId"] == id).then_some(())
    })
    .await;
    until("the stock is shipped", || async {
        let stock = shop.get("/v1/stock/book-rust").await.json();
        (stock["shipped"] == "2").then_some(())
    })
    .await;
    // While the shop still works on what it has begun.
    crate::harness::audit(data.path(), &[]).await;
    shop.close().await;
}

#[tokio::test]
async fn an_idempotency_key_makes_one_order_of_two_calls() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::open(data.path()).await;
    let first = order(&shop, "same", &book()).await.json();
    let second = order(&shop, "same", &book()).await;
    assert_eq!(second.status, 201);
    assert_eq!(second.json()["id"], first["id"]);
    let mut other = book();
    other["customerId"] = json!("bob");
    let refused = order(&shop, "same", &other).await;
    assert!((400..500).contains(&refused.status), "{}", refused.json());
    assert_eq!(refused.json()["reason"], "IDEMPOTENCY_KEY_REUSED");
    let all = shop.get("/v1/orders").await.json();
    assert_eq!(all["orders"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn orders_are_listed_by_customer_and_page() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::open(data.path()).await;
    for (number, customer) in ["ada", "bob", "ada", "ada"].into_iter().enumerate() {
        let mut body = book();
        body["customerId"] = json!(customer);
        assert_eq!(order(&shop, &format!("k{number}"), &body).await.status, 201);
    }
    let page = shop.get("/v1/orders?customerId=ada&pageSize=2").await.json();
    assert_eq!(page["orders"].as_array().unwrap().len(), 2);
    let token = page["nextPageToken"].as_str().unwrap();
    let rest = shop.get(&format!("/v1/orders?customerId=ada&pageSize=2&pageToken={token}")).await;
    let rest = rest.json();
    assert_eq!(rest["orders"].as_array().unwrap().len(), 1);
    assert!(rest["nextPageToken"].as_str().unwrap_or_default().is_empty());
    let refused = shop.get("/v1/orders?customer=ada").await;
    assert_eq!(refused.status, 400);
    assert!(refused.json().to_string().contains("customer"));
}

#[tokio::test]
async fn stock_is_put_read_and_listed() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::open(data.path()).await;
    let put = shop
        .send("PUT", "/v1/stock/mug%20%2Fblue", &json!({"quantity": "7", "priceCents": 500}))
        .await;
    assert_eq!(put.status, 200, "{}", put.json());
    let read = shop.get("/v1/stock/mug%20%2Fblue").await.json();
    assert_eq!(
        read,
        json!({"sku": "mug /blue", "onHand": "7", "reserved": "0", "shipped": "0", "priceCents": "500"})
    );
    let all = shop.get("/v1/stock").await.json();
    assert!(all["stock"].as_array().unwrap().iter().any(|article| article["sku"] == "mug /blue"));
    let missing = shop.get("/v1/stock/nothing").await;
    assert_eq!((missing.status, missing.json()["reason"].clone()), (404, json!("SKU_NOT_FOUND")));
    assert_eq!(missing.header("content-type"), "application/problem+json");
}

#[tokio::test]
async fn a_watcher_sees_the_order_to_its_end() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::open(data.path()).await;
    let mut body = book();
    body["card"] = json!("tok_slow");
    let id = order(&shop, "k", &body).await.json()["id"].as_str().unwrap().to_owned();
    let accept = [("accept", "text/event-stream")];
    let path = format!("/v1/orders/{id}:watch");
    let watching = request(&shop.api, "GET", &path, &accept, "");
    let seen = tokio::time::timeout(PATIENCE, watching).await.unwrap();
    assert_eq!(seen.header("content-type"), "text/event-stream");
    let text = String::from_utf8(seen.body.to_vec()).unwrap();
    let (first, last) = (text.find("PENDING").unwrap(), text.find("CONFIRMED").unwrap());
    assert!(first < last, "{text}");
}

#[tokio::test]
async fn an_order_can_be_cancelled_until_it_is_decided() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::open(data.path()).await;
    let mut body = book();
    body["card"] = json!("tok_slow");
    let id = order(&shop, "k", &body).await.json()["id"].as_str().unwrap().to_owned();
    let cancelled = shop.send("POST", &format!("/v1/orders/{id}:cancel"), &json!({})).await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.json());
    let order = decided(&shop, &id).await;
    assert_eq!(order["status"], "CANCELLED", "{order}");
    assert_eq!(order["cancelReason"], "CANCELLED");
    let confirmed = self::order(&shop, "k2", &book()).await.json();
    let id = confirmed["id"].as_str().unwrap();
    decided(&shop, id).await;
    let late = shop.send("POST", &format!("/v1/orders/{id}:cancel"), &json!({})).await;
    assert_eq!((late.status, late.json()["reason"].clone()), (409, json!("ALREADY_DECIDED")));
    // While the shop still works on what it has begun.
    crate::harness::audit(data.path(), &[]).await;
    shop.close().await;
}

#[tokio::test]
async fn bad_orders_are_refused_by_field() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::open(data.path()).await;
    let refused = |body: &'static str| {
        let shop = &shop;
        async move {
            let headers = [("content-type", "application/json")];
            let reply = request(&shop.api, "POST", "/v1/orders", &headers, body).await;
            assert_eq!(reply.status, 400, "{body}: {}", reply.json());
            assert_eq!(reply.header("content-type"), "application/problem+json");
            reply.json().to_string()
        }
    };
    assert!(refused(r#"{"customerId":"#).await.contains("line 1"));
    let unknown = refused(r#"{"customerId":"a","card":"tok_ok","lines":[],"colour":"red"}"#).await;
    assert!(unknown.contains("colour"), "{unknown}");
    let empty = refused(r#"{"customerId":"","card":"visa","lines":[]}"#).await;
    for field in ["customer_id", "card", "lines"] {
        assert!(empty.contains(field), "{field}: {empty}");
    }
    let wrong =
        r#"{"customerId":"a","card":"tok_ok","lines":[{"sku":"cup-red","quantity":"many"}]}"#;
    assert!(refused(wrong).await.contains("quantity"));
    let huge =
        r#"{"customerId":"a","card":"tok_ok","lines":[{"sku":"cup-red","quantity":99999999999}]}"#;
    assert!(refused(huge).await.contains("quantity"));
    let unsold = r#"{"customerId":"a","card":"tok_ok","lines":[{"sku":"unicorn","quantity":1}]}"#;
    assert!(refused(unsold).await.contains("UNKNOWN_SKU"));
    assert_eq!(shop.get("/v1/orders").await.json()["orders"].as_array().map_or(0, Vec::len), 0);
}

#[tokio::test]
async fn documents_and_health_are_served() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::open(data.path()).await;
    assert_eq!(shop.get("/openapi.json").await.json()["openapi"], "3.1.0");
    assert!(
        shop.get("/asyncapi.json").await.json()["asyncapi"].as_str().unwrap().starts_with("3.")
    );
    assert_eq!(shop.get("/docs").await.status / 100, 2);
    for path in ["/livez", "/readyz", "/metrics", "/config"] {
        assert_eq!(request(&shop.admin, "GET", path, &[], "").await.status, 200, "{path}");
    }
}
