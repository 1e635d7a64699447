//! Shipping: a shipment for every confirmed order.

use antiphon::sql::{Database, Migration, Sql, Tx, sqlx};
use antiphon::{App, Fail, Handle, Status, Timestamp};
use sqlx::Row;

use crate::contract::shop::orders::v1::OrderConfirmed;
use crate::contract::shop::shipping::v1::{
    GetShipmentRequest, Shipment, ShipmentCreated, ShippingError, ShippingService,
    ShippingServiceServer,
};

/// Adds the service to the process.
pub(crate) async fn mount(app: &mut App) -> antiphon::Result<()> {
    let db = app
        .database(
            "shipping",
            &[Migration::new("shipping", include_str!("../migrations/shipping.sql"))],
        )
        .await?;
    let shipping = Shipping { db: db.clone() };
    app.serve(ShippingServiceServer::new(shipping.clone()));
    app.consume(db.group("shipping.orders").on::<OrderConfirmed>(shipping).ordered())?;
    Ok(())
}

#[derive(Clone)]
struct Shipping {
    db: Database,
}

impl ShippingService for Shipping {
    async fn get_shipment(&self, request: GetShipmentRequest) -> Result<Shipment, Status> {
        let row = sqlx::query("select * from shipments where order_id = ?")
            .bind(&request.order_id)
            .fetch_optional(self.db.store().reader())
            .await
            .map_err(Status::internal)?
            .ok_or_else(|| {
                ShippingError::shipment_not_found(format!(
                    "nothing was shipped for the order {}",
                    request.order_id
                ))
            })?;
        let shipment = || -> Result<Shipment, sqlx::Error> {
            Ok(Shipment {
                order_id: row.try_get("order_id")?,
                customer_id: row.try_get("customer_id")?,
                tracking_number: row.try_get("tracking_number")?,
                create_time: crate::time::field(Timestamp::from_micros(
                    row.try_get("create_time")?,
                )),
                ..Default::default()
            })
        };
        shipment().map_err(Status::internal)
    }
}

impl Handle<OrderConfirmed, Sql> for Shipping {
    async fn handle(&self, order: OrderConfirmed, tx: &mut Tx) -> Result<(), Fail> {
        let tracking_number = format!("TRK-{}", order.order_id);
        sqlx::query(
            "insert into shipments (order_id, customer_id, tracking_number, create_time)
             values (?, ?, ?, ?)",
        )
        .bind(&order.order_id)
        .bind(&order.customer_id)
        .bind(&tracking_number)
        .bind(self.db.now().as_micros())
        .execute(tx.sql())
        .await?;
        tracing::debug!(order_id = order.order_id, tracking_number, "shipment created");
        tx.emit(&ShipmentCreated {
            order_id: order.order_id,
            customer_id: order.customer_id,
            tracking_number,
            ..Default::default()
        });
        Ok(())
    }
}
