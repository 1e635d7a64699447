//! Orders: takes them, and carries each one to its end by the place-order saga.

mod rows;
mod saga;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use antiphon::saga::{Intervention, Saga, SagaOperator, Sagas};
use antiphon::sql::{Database, Migration, Sql, Tx, sqlx};
use antiphon::{
    App, Call, Code, Context, FieldViolation, MessageId, RequestHash, Status, Streaming,
};
use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use crate::contract::shop::inventory::v1::{GetStockRequest, InventoryServiceClient, Stock};
use crate::contract::shop::orders::v1::{
    CancelOrderRequest, GetOrderRequest, ListOrdersRequest, ListOrdersResponse, Order, OrderPlaced,
    OrdersError, OrdersService, OrdersServiceServer, PlaceOrder, PlaceOrderRequest,
    WatchOrderRequest, order,
};

/// How long a watcher waits before it looks for what another process wrote.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Adds the service to the process.
pub(crate) async fn mount(app: &mut App) -> antiphon::Result<()> {
    let db = app
        .database("orders", &[Migration::new("orders", include_str!("../migrations/orders.sql"))])
        .await?;
    let place_order = saga::place_order()?;
    let sagas = Sagas::of(&db, app.telemetry()).saga(&place_order);
    let operator = sagas.operator();
    app.consume(sagas)?;
    let inventory: InventoryServiceClient = app.client()?;
    let commits = db.committed();
    app.serve(OrdersServiceServer::new(Orders { db, place_order, operator, inventory, commits }));
    Ok(())
}

#[derive(Clone)]
struct Orders {
    db: Database,
    place_order: Saga<PlaceOrder, Sql>,
    operator: SagaOperator<Sql>,
    inventory: InventoryServiceClient,
    /// Counts the commits of this process, so that watchers look again.
    commits: watch::Receiver<()>,
}

impl OrdersService for Orders {
    async fn place_order(&self, request: PlaceOrderRequest) -> Result<Order, Status> {
        let total_cents = self.total(&request).await?;
        match self.db.begin_call("PlaceOrder", RequestHash::of(&request)).await? {
            Call::Answered(order) => Ok(order),
            Call::New(mut tx) => {
                let order = self.place(&mut tx, &request, total_cents).await?;
                tx.commit(&order).await?;
                Ok(order)
            }
        }
    }

    async fn get_order(&self, request: GetOrderRequest) -> Result<Order, Status> {
        self.find(&request.id).await
    }

    async fn list_orders(&self, request: ListOrdersRequest) -> Result<ListOrdersResponse, Status> {
        let size = if request.page_size == 0 { 50 } else { request.page_size };
        let before = match request.page_token.as_str() {
            // After every id: they are digits, the letters a to f, and hyphens.
            "" => "g".to_owned(),
            token => match token.parse::<MessageId>() {
                Ok(id) => id.to_string(),
                Err(_) => {
                    return Err(OrdersError::bad_page_token(format!(
                        "`{token}` is not a page token of ours"
                    )));
                }
            },
        };
        let rows = sqlx::query(
            "select * from orders where id < ? and (? = '' or customer_id = ?)
             order by id desc limit ?",
        )
        .bind(before)
        .bind(&request.customer_id)
        .bind(&request.customer_id)
        .bind(size)
        .fetch_all(self.db.store().reader())
        .await
        .map_err(Status::internal)?;
        let full = i32::try_from(rows.len()).is_ok_and(|count| count == size);
        let next_page_token = match rows.last() {
            Some(last) if full => sqlx::Row::try_get(last, "id").map_err(Status::internal)?,
            _ => String::new(),
        };
        let orders = rows.iter().map(rows::order).collect::<Result<_, _>>();
        let orders = orders.map_err(Status::internal)?;
        Ok(ListOrdersResponse { orders, next_page_token, ..Default::default() })
    }

    async fn cancel_order(&self, request: CancelOrderRequest) -> Result<Order, Status> {
        let mut tx = self.db.begin().await?;
        let kind = self.place_order.kind();
        let turned = self.operator.cancel_within(&mut tx, kind, &request.id).await;
        if turned? == Intervention::Done {
            tx.commit().await?;
        }
        let order = self.find(&request.id).await?;
        if order.status == order::Status::CONFIRMED {
            return Err(OrdersError::already_decided(format!(
                "the order {} can no longer be cancelled",
                request.id
            )));
        }
        Ok(order)
    }

    async fn watch_order(&self, request: WatchOrderRequest) -> Result<Streaming<Order>, Status> {
        let first = self.find(&request.id).await?;
        let state = Watch { orders: self.clone(), last: None, next: Some(first) };
        Ok(Streaming::new(stream::try_unfold(state, Watch::next)))
    }
}

/// One watcher of one order.
struct Watch {
    orders: Orders,
    last: Option<Order>,
    /// What is to be shown first.
    next: Option<Order>,
}

impl Watch {
    async fn next(mut self) -> Result<Option<(Order, Self)>, Status> {
        let order = match (self.next.take(), &self.last) {
            (Some(first), _) => first,
            (None, Some(last)) if last.status != order::Status::PENDING => return Ok(None),
            (None, Some(last)) => {
                let last = last.clone();
                loop {
                    self.orders.commits.mark_unchanged();
                    let order = self.orders.find(&last.id).await?;
                    if order != last {
                        break order;
                    }
                    // Either something was committed here, or it is time to look anyway.
                    let _ = tokio::time::timeout(LOOK_AGAIN, self.orders.commits.changed()).await;
                }
            }
            (None, None) => return Ok(None),
        };
        self.last = Some(order.clone());
        Ok(Some((order, self)))
    }
}

impl Orders {
    /// What the lines cost today. Every unknown sku is named.
    async fn total(&self, request: &PlaceOrderRequest) -> Result<i64, Status> {
        let skus: BTreeSet<String> = request.lines.iter().map(|line| line.sku.clone()).collect();
        let prices: BTreeMap<String, Result<Stock, Status>> = stream::iter(skus)
            .map(|sku| async move {
                let question = GetStockRequest { sku: sku.clone(), ..Default::default() };
                (sku, self.inventory.get_stock(question).await)
            })
            .buffer_unordered(8)
            .collect()
            .await;
        let (mut total, mut unknown) = (0_i64, Vec::new());
        for (at, line) in request.lines.iter().enumerate() {
            match &prices[&line.sku] {
                Ok(stock) => total += stock.price_cents * i64::from(line.quantity),
                Err(status) if status.code() == Code::NotFound => unknown.push(FieldViolation {
                    field: format!("lines[{at}].sku"),
                    rule: "known_sku".into(),
                    description: format!("the shop does not sell {}", line.sku),
                }),
                Err(status) => {
                    tracing::warn!(%status, "prices cannot be asked for");
                    return Err(Status::unavailable("prices cannot be asked for at the moment"));
                }
            }
        }
        if unknown.is_empty() {
            return Ok(total);
        }
        let status =
            OrdersError::unknown_sku("the order names articles that the shop does not sell");
        Err(status.with_violations(unknown))
    }

    async fn place(
        &self,
        tx: &mut Tx,
        request: &PlaceOrderRequest,
        total_cents: i64,
    ) -> Result<Order, Status> {
        let now = self.db.now();
        let id = MessageId::new(now).to_string();
        sqlx::query(
            "insert into orders
                 (id, customer_id, line_items, total_cents, status, create_time, idempotency_key)
             values (?, ?, ?, ?, 'PENDING', ?, ?)",
        )
        .bind(&id)
        .bind(&request.customer_id)
        .bind(rows::lines_to_text(&request.lines))
        .bind(total_cents)
        .bind(now.as_micros())
        .bind(Context::current().idempotency_key())
        .execute(tx.sql())
        .await
        .map_err(Status::internal)?;
        tx.emit(&OrderPlaced {
            order_id: id.clone(),
            customer_id: request.customer_id.clone(),
            lines: request.lines.clone(),
            total_cents,
            ..Default::default()
        });
        let data = PlaceOrder {
            order_id: id.clone(),
            customer_id: request.customer_id.clone(),
            card: request.card.clone(),
            lines: request.lines.clone(),
            total_cents,
            ..Default::default()
        };
        self.place_order.start(tx, &id, &data).await?;
        tracing::debug!(order_id = id, total_cents, "order placed");
        Ok(Order {
            id,
            customer_id: request.customer_id.clone(),
            lines: request.lines.clone(),
            total_cents,
            status: order::Status::PENDING.into(),
            create_time: crate::time::field(now),
            ..Default::default()
        })
    }

    async fn find(&self, id: &str) -> Result<Order, Status> {
        let row = sqlx::query("select * from orders where id = ?")
            .bind(id)
            .fetch_optional(self.db.store().reader())
            .await
            .map_err(Status::internal)?
            .ok_or_else(|| OrdersError::order_not_found(format!("there is no order {id}")))?;
        rows::order(&row).map_err(Status::internal)
    }
}
