//! Inventory: what is on the shelves, and for whom it is set aside.
//!
//! Articles are read through a cache. Whoever changes articles has them forgotten as the transaction
//! ends. Where instances share what they keep, the event that an article was set has it forgotten, too,
//! even if the process that set it died in between. Why so: `docs/adr/0019`.

use std::collections::BTreeMap;

use antiphon::cache::{Cache, Protobuf};
use antiphon::messaging::Handle;
use antiphon::saga::{Participants, Participate, Rejection};
use antiphon::sql::{Database, Migration, Sql, Tx, sqlx};
use antiphon::{App, Consumer, Fail, Status, Streaming};
use futures_util::StreamExt;
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::contract::shop::inventory::v1::{
    GetStockRequest, ImportStockResponse, InventoryError, InventoryService, InventoryServiceServer,
    ListStockRequest, ListStockResponse, PutStockRequest, Release, Released, Reserve, Reserved,
    Ship, Shipped, Stock, StockSet,
};

/// Where the service keeps its rows and answers calls.
#[derive(Clone)]
pub(crate) struct Inventory {
    db: Database,
    /// Articles by sku.
    stock: Cache<String, Stock>,
}

impl Inventory {
    /// The service's own database.
    pub(crate) fn db(&self) -> &Database {
        &self.db
    }
}

/// Adds the service to the process.
pub(crate) async fn mount(app: &mut App) -> antiphon::Result<()> {
    let db = app
        .database(
            "inventory",
            &[Migration::new("inventory", include_str!("../migrations/inventory.sql"))],
        )
        .await?;
    let inventory = Inventory { db: db.clone(), stock: app.cache("stock", Protobuf)? };
    crate::catalogue::seed(&inventory).await?;
    app.component(inventory.stock.filter_keeper({
        let db = db.clone();
        move || skus(db.clone())
    }));
    app.serve(InventoryServiceServer::new(inventory.clone()));
    app.consume(
        db.participant("inventory.commands")
            .on::<Reserve>(inventory.clone())
            .on::<Release>(inventory.clone())
            .on::<Ship>(inventory.clone()),
    )?;
    if inventory.stock.is_shared() {
        app.consume(Consumer::group("inventory.cache").on::<StockSet>(inventory))?;
    }
    Ok(())
}

impl InventoryService for Inventory {
    async fn put_stock(&self, request: PutStockRequest) -> Result<Stock, Status> {
        let mut tx = self.db.begin().await?;
        let stock = self.put(&mut tx, &request).await?;
        tx.commit().await?;
        self.tell_others([&request.sku]).await;
        Ok(stock)
    }

    async fn get_stock(&self, request: GetStockRequest) -> Result<Stock, Status> {
        let load = {
            let (db, sku) = (self.db.clone(), request.sku.clone());
            move || async move { read(&db, &sku).await.map_err(Status::internal) }
        };
        match self.stock.get(&request.sku, load).await? {
            Some(stock) => Ok(Stock::clone(&stock)),
            None => Err(InventoryError::sku_not_found(format!("there is no sku {}", request.sku))),
        }
    }

    async fn list_stock(&self, request: ListStockRequest) -> Result<ListStockResponse, Status> {
        let size = if request.page_size == 0 { 100 } else { request.page_size };
        let rows = sqlx::query("select * from stock where sku > ? order by sku limit ?")
            .bind(&request.page_token)
            .bind(size)
            .fetch_all(self.db.store().reader())
            .await
            .map_err(Status::internal)?;
        let stock: Vec<Stock> =
            rows.iter().map(stock).collect::<Result<_, _>>().map_err(Status::internal)?;
        let full = i32::try_from(stock.len()).is_ok_and(|count| count == size);
        let next_page_token = match stock.last() {
            Some(last) if full => last.sku.clone(),
            _ => String::new(),
        };
        Ok(ListStockResponse { stock, next_page_token, ..Default::default() })
    }

    async fn import_stock(
        &self,
        mut requests: Streaming<PutStockRequest>,
    ) -> Result<ImportStockResponse, Status> {
        // The transaction is not held while the caller takes its time to send.
        let mut received = Vec::new();
        while let Some(request) = requests.next().await {
            received.push(request?);
        }
        let mut tx = self.db.begin().await?;
        for request in &received {
            self.put(&mut tx, request).await?;
        }
        tx.commit().await?;
        self.tell_others(received.iter().map(|request| &request.sku)).await;
        let count = i32::try_from(received.len()).map_err(Status::internal)?;
        Ok(ImportStockResponse { count, ..Default::default() })
    }
}

impl Inventory {
    /// Sets one article.
    async fn put(&self, tx: &mut Tx, request: &PutStockRequest) -> Result<Stock, Status> {
        let row = write(tx, request).await.map_err(Status::internal)?;
        tx.emit(&StockSet {
            sku: request.sku.clone(),
            quantity: request.quantity,
            price_cents: request.price_cents,
            ..Default::default()
        });
        self.forget(tx, [&request.sku]);
        stock(&row).map_err(Status::internal)
    }

    /// Has these articles forgotten when the transaction is over.
    fn forget<'a>(&self, tx: &mut Tx, skus: impl IntoIterator<Item = &'a String>) {
        let stock = self.stock.clone();
        let skus: Vec<String> = skus.into_iter().cloned().collect();
        tx.when_over(move || stock.invalidate_soon(&skus));
    }

    /// Waits until the other instances have forgotten these articles, too, so that the caller reads
    /// what it wrote wherever it asks next.
    async fn tell_others<'a>(&self, skus: impl IntoIterator<Item = &'a String>) {
        if let Err(error) = self.stock.invalidate_many(skus).await {
            tracing::warn!(%error, "the event will tell them");
        }
    }
}

impl Handle<StockSet> for Inventory {
    async fn handle(&self, event: StockSet) -> Result<(), Fail> {
        Ok(self.stock.invalidate(&event.sku).await?)
    }
}

async fn read(db: &Database, sku: &str) -> Result<Option<Stock>, sqlx::Error> {
    let query = sqlx::query("select * from stock where sku = ?").bind(sku);
    let row = query.fetch_optional(db.store().reader()).await?;
    row.as_ref().map(stock).transpose()
}

/// Every sku there is.
async fn skus(db: Database) -> Result<Vec<String>, Status> {
    let query = sqlx::query_scalar("select sku from stock");
    query.fetch_all(db.store().reader()).await.map_err(Status::internal)
}

async fn write(tx: &mut Tx, request: &PutStockRequest) -> Result<AnyRow, sqlx::Error> {
    let updated = sqlx::query(
        "update stock set put_in = put_in + ? - on_hand, on_hand = ?, price_cents = ?
         where sku = ?",
    )
    .bind(request.quantity)
    .bind(request.quantity)
    .bind(request.price_cents)
    .bind(&request.sku)
    .execute(tx.sql())
    .await?;
    if updated.rows_affected() == 0 {
        sqlx::query("insert into stock (sku, on_hand, price_cents, put_in) values (?, ?, ?, ?)")
            .bind(&request.sku)
            .bind(request.quantity)
            .bind(request.price_cents)
            .bind(request.quantity)
            .execute(tx.sql())
            .await?;
    }
    sqlx::query("select * from stock where sku = ?").bind(&request.sku).fetch_one(tx.sql()).await
}

fn stock(row: &AnyRow) -> Result<Stock, sqlx::Error> {
    Ok(Stock {
        sku: row.try_get("sku")?,
        on_hand: row.try_get("on_hand")?,
        reserved: row.try_get("reserved")?,
        shipped: row.try_get("shipped")?,
        price_cents: row.try_get("price_cents")?,
        ..Default::default()
    })
}

impl Participate<Reserve, Sql> for Inventory {
    type Reply = Reserved;

    /// Sets everything aside, or nothing.
    async fn handle(&self, command: Reserve, tx: &mut Tx) -> Result<Reserved, Rejection> {
        let mut wanted = BTreeMap::<&String, i64>::new();
        for item in &command.items {
            *wanted.entry(&item.sku).or_default() += i64::from(item.quantity);
        }
        self.forget(tx, wanted.keys().copied());
        for (sku, quantity) in wanted {
            let taken = sqlx::query(
                "update stock set on_hand = on_hand - ?, reserved = reserved + ?
                 where sku = ? and on_hand >= ?",
            )
            .bind(quantity)
            .bind(quantity)
            .bind(sku)
            .bind(quantity)
            .execute(tx.sql())
            .await?;
            if taken.rows_affected() == 0 {
                return Err(Rejection::refuse(InventoryError::out_of_stock(format!(
                    "{sku} is out of stock"
                ))));
            }
            sqlx::query(
                "insert into reservations (order_id, sku, quantity, state)
                 values (?, ?, ?, 'reserved')",
            )
            .bind(&command.order_id)
            .bind(sku)
            .bind(quantity)
            .execute(tx.sql())
            .await?;
        }
        Ok(Reserved::default())
    }
}

impl Participate<Release, Sql> for Inventory {
    type Reply = Released;

    async fn handle(&self, command: Release, tx: &mut Tx) -> Result<Released, Rejection> {
        let items = reserved(tx, &command.order_id, "released").await?;
        self.forget(tx, items.iter().map(|(sku, _)| sku));
        for (sku, quantity) in items {
            sqlx::query(
                "update stock set on_hand = on_hand + ?, reserved = reserved - ? where sku = ?",
            )
            .bind(quantity)
            .bind(quantity)
            .bind(sku)
            .execute(tx.sql())
            .await?;
        }
        Ok(Released::default())
    }
}

impl Participate<Ship, Sql> for Inventory {
    type Reply = Shipped;

    async fn handle(&self, command: Ship, tx: &mut Tx) -> Result<Shipped, Rejection> {
        let items = reserved(tx, &command.order_id, "shipped").await?;
        self.forget(tx, items.iter().map(|(sku, _)| sku));
        for (sku, quantity) in items {
            sqlx::query(
                "update stock set reserved = reserved - ?, shipped = shipped + ? where sku = ?",
            )
            .bind(quantity)
            .bind(quantity)
            .bind(sku)
            .execute(tx.sql())
            .await?;
        }
        Ok(Shipped::default())
    }
}

/// Moves what is set aside for an order into another state, and says what it was. The saga lets one
/// command of an order through at a time, so nobody changes it in between.
async fn reserved(tx: &mut Tx, order_id: &str, state: &str) -> Result<Vec<(String, i64)>, Fail> {
    // By sku: whoever locks articles locks them in this order.
    let items = sqlx::query_as(
        "select sku, quantity from reservations where order_id = ? and state = 'reserved'
         order by sku",
    )
    .bind(order_id)
    .fetch_all(tx.sql())
    .await?;
    sqlx::query("update reservations set state = ? where order_id = ? and state = 'reserved'")
        .bind(state)
        .bind(order_id)
        .execute(tx.sql())
        .await?;
    Ok(items)
}
