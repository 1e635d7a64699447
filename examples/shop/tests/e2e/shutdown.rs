//! Ctrl-C: what was begun is finished, and the process ends in time.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Shop, audit};

/// What the defaults promise.
const DRAIN_MAX: Duration = Duration::from_secs(10);

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the real time of a real process is measured")]
async fn ctrl_c_finishes_what_was_begun() {
    let data = tempfile::tempdir().unwrap();
    let mut shop = Shop::open(data.path()).await;
    let body = json!({
        "customerId": "ada", "card": "tok_ok", "lines": [{"sku": "cup-red", "quantity": 1}],
    });
    for _ in 0..20 {
        assert_eq!(shop.send("POST", "/v1/orders", &body).await.status, 201);
    }
    let begun = Instant::now();
    shop.signal("INT");
    let status = shop.wait().await;
    assert!(status.success(), "{status}: {}", shop.log_text());
    assert!(begun.elapsed() < DRAIN_MAX, "{:?}", begun.elapsed());
    // The next start goes on where this one ended.
    let again = Shop::open(data.path()).await;
    audit(data.path(), &[]).await;
    again.close().await;
}
