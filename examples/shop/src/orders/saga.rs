//! The place-order saga: reserve → charge → confirm (the point of no return) → ship.
//!
//! Points and the shipment follow from the event of the confirmation.

use std::time::Duration;

use antiphon::RetryPolicy;
use antiphon::saga::{DefinitionError, Rejection, Saga, Step};
use antiphon::sql::{Sql, Tx, sqlx};

use crate::contract::shop::inventory::v1::{Item, Release, Reserve, Ship};
use crate::contract::shop::orders::v1::{OrderCancelled, OrderConfirmed, PlaceOrder};
use crate::contract::shop::payments::v1::{Charge, Refund};

/// Slow cards, and a broker that comes back, fit into this.
const ANSWER: Duration = Duration::from_secs(20);

/// The saga, version 1.
///
/// # Errors
/// The definition contradicts itself.
pub(super) fn place_order() -> Result<Saga<PlaceOrder, Sql>, DefinitionError> {
    let retry = RetryPolicy::exponential(Duration::from_secs(1), Duration::from_secs(30));
    Saga::define("place-order", 1)
        .deadline(Duration::from_secs(300))
        .step(Step::remote("reserve", reserve).undo(release).timeout(ANSWER).retry(retry))
        .step(Step::remote("charge", charge).undo(refund).timeout(ANSWER).retry(retry))
        .step(Step::local("confirm", confirm).pivot())
        .step(Step::remote("ship", ship).forward_only().timeout(ANSWER).retry(retry))
        .on_failure(|order, failure| order.refusal = failure.reason.clone())
        .on_compensated(cancel)
        .build()
}

fn reserve(order: &PlaceOrder) -> Reserve {
    let items = order.lines.iter().map(|line| Item {
        sku: line.sku.clone(),
        quantity: line.quantity,
        ..Default::default()
    });
    Reserve { order_id: order.order_id.clone(), items: items.collect(), ..Default::default() }
}

fn release(order: &PlaceOrder) -> Release {
    Release { order_id: order.order_id.clone(), ..Default::default() }
}

fn charge(order: &PlaceOrder) -> Charge {
    Charge {
        order_id: order.order_id.clone(),
        customer_id: order.customer_id.clone(),
        card: order.card.clone(),
        amount_cents: order.total_cents,
        ..Default::default()
    }
}

fn refund(order: &PlaceOrder) -> Refund {
    Refund { order_id: order.order_id.clone(), ..Default::default() }
}

fn ship(order: &PlaceOrder) -> Ship {
    Ship { order_id: order.order_id.clone(), ..Default::default() }
}

async fn confirm(order: &mut PlaceOrder, tx: &mut Tx) -> Result<(), Rejection> {
    sqlx::query("update orders set status = 'CONFIRMED' where id = ?")
        .bind(&order.order_id)
        .execute(tx.sql())
        .await?;
    tracing::debug!(order_id = order.order_id, "order confirmed");
    tx.emit(&OrderConfirmed {
        order_id: order.order_id.clone(),
        customer_id: order.customer_id.clone(),
        lines: order.lines.clone(),
        total_cents: order.total_cents,
        ..Default::default()
    });
    Ok(())
}

async fn cancel(order: &mut PlaceOrder, tx: &mut Tx) -> Result<(), Rejection> {
    sqlx::query("update orders set status = 'CANCELLED', cancel_reason = ? where id = ?")
        .bind(&order.refusal)
        .bind(&order.order_id)
        .execute(tx.sql())
        .await?;
    tracing::debug!(order_id = order.order_id, reason = order.refusal, "order cancelled");
    tx.emit(&OrderCancelled {
        order_id: order.order_id.clone(),
        customer_id: order.customer_id.clone(),
        reason: order.refusal.clone(),
        ..Default::default()
    });
    Ok(())
}
