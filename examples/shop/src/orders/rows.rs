//! Orders as rows.

use antiphon::Timestamp;
use antiphon::sql::sqlx;
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::contract::shop::orders::v1::{Order, OrderLine, order};

/// Lines as they are kept: JSON, `[["sku", quantity], …]`.
pub(super) fn lines_to_text(lines: &[OrderLine]) -> String {
    let pairs: Vec<_> = lines.iter().map(|line| (&line.sku, line.quantity)).collect();
    serde_json::to_string(&pairs).unwrap_or_default()
}

fn lines_from_text(text: &str) -> Result<Vec<OrderLine>, sqlx::Error> {
    let pairs: Vec<(String, i32)> =
        serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))?;
    let line = |(sku, quantity)| OrderLine { sku, quantity, ..Default::default() };
    Ok(pairs.into_iter().map(line).collect())
}

/// Reads an order.
///
/// # Errors
/// The row is not an order.
pub(super) fn order(row: &AnyRow) -> Result<Order, sqlx::Error> {
    let status = match row.try_get("status")? {
        "PENDING" => order::Status::PENDING,
        "CONFIRMED" => order::Status::CONFIRMED,
        "CANCELLED" => order::Status::CANCELLED,
        other => return Err(sqlx::Error::Decode(format!("the status {other}").into())),
    };
    Ok(Order {
        id: row.try_get("id")?,
        customer_id: row.try_get("customer_id")?,
        lines: lines_from_text(row.try_get("line_items")?)?,
        total_cents: row.try_get("total_cents")?,
        status: status.into(),
        create_time: crate::time::field(Timestamp::from_micros(row.try_get("create_time")?)),
        cancel_reason: row.try_get("cancel_reason")?,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_round_trip() {
        let line = OrderLine { sku: "a\"b".into(), quantity: 3, ..Default::default() };
        let text = lines_to_text(std::slice::from_ref(&line));
        assert_eq!(lines_from_text(&text).unwrap(), [line]);
        assert!(lines_from_text("{}").is_err());
    }
}
