//! Points: one for every whole euro of a confirmed order.

use antiphon::sql::{Database, Migration, Sql, Tx, sqlx};
use antiphon::{App, Fail, Handle, Status};

use crate::contract::shop::orders::v1::OrderConfirmed;
use crate::contract::shop::points::v1::{
    Balance, GetBalanceRequest, PointsAwarded, PointsService, PointsServiceServer,
};

/// Adds the service to the process.
pub(crate) async fn mount(app: &mut App) -> antiphon::Result<()> {
    let db = app
        .database("points", &[Migration::new("points", include_str!("../migrations/points.sql"))])
        .await?;
    let points = Points { db: db.clone() };
    app.serve(PointsServiceServer::new(points.clone()));
    app.consume(db.group("points.orders").on::<OrderConfirmed>(points).ordered())?;
    Ok(())
}

#[derive(Clone)]
struct Points {
    db: Database,
}

impl PointsService for Points {
    async fn get_balance(&self, request: GetBalanceRequest) -> Result<Balance, Status> {
        let points: Option<i64> =
            sqlx::query_scalar("select points from balances where customer_id = ?")
                .bind(&request.customer_id)
                .fetch_optional(self.db.store().reader())
                .await
                .map_err(Status::internal)?;
        Ok(Balance {
            customer_id: request.customer_id,
            points: points.unwrap_or(0),
            ..Default::default()
        })
    }
}

impl Handle<OrderConfirmed, Sql> for Points {
    async fn handle(&self, order: OrderConfirmed, tx: &mut Tx) -> Result<(), Fail> {
        let points = order.total_cents / 100;
        sqlx::query("insert into awards (order_id, customer_id, points) values (?, ?, ?)")
            .bind(&order.order_id)
            .bind(&order.customer_id)
            .bind(points)
            .execute(tx.sql())
            .await?;
        let added = sqlx::query("update balances set points = points + ? where customer_id = ?")
            .bind(points)
            .bind(&order.customer_id)
            .execute(tx.sql())
            .await?;
        if added.rows_affected() == 0 {
            sqlx::query("insert into balances (customer_id, points) values (?, ?)")
                .bind(&order.customer_id)
                .bind(points)
                .execute(tx.sql())
                .await?;
        }
        tracing::debug!(order_id = order.order_id, points, "points awarded");
        tx.emit(&PointsAwarded {
            customer_id: order.customer_id,
            order_id: order.order_id,
            points,
            ..Default::default()
        });
        Ok(())
    }
}
