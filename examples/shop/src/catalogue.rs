//! What the shop sells on its first day.

use antiphon::sql::sqlx;

use crate::contract::shop::inventory::v1::{InventoryService, PutStockRequest};
use crate::inventory::Inventory;

/// Sku, how many, and the price in cents. The last two are scarce on purpose.
const ARTICLES: [(&str, i64, i64); 10] = [
    ("book-rust", 1_000_000, 3_990),
    ("book-sql", 1_000_000, 2_950),
    ("cup-blue", 1_000_000, 1_250),
    ("cup-red", 1_000_000, 1_250),
    ("lamp-desk", 1_000_000, 4_900),
    ("pen-black", 1_000_000, 199),
    ("pen-green", 1_000_000, 199),
    ("shirt-m", 1_000_000, 1_995),
    ("poster-signed", 40, 9_900),
    ("record-first-press", 25, 14_900),
];

/// Fills empty shelves; leaves stocked ones alone.
///
/// # Errors
/// The database fails.
pub(crate) async fn seed(inventory: &Inventory) -> antiphon::Result<()> {
    let articles: i64 = sqlx::query_scalar("select count(*) from stock")
        .fetch_one(inventory.db().store().reader())
        .await?;
    if articles > 0 {
        return Ok(());
    }
    for (sku, quantity, price_cents) in ARTICLES {
        let article =
            PutStockRequest { sku: sku.into(), quantity, price_cents, ..Default::default() };
        inventory.put_stock(article).await?;
    }
    tracing::info!(articles = ARTICLES.len(), "seeded the catalogue");
    Ok(())
}
