//! Reads the services' databases, each through a connection of its own.

use std::path::{Path, PathBuf};

use antiphon::sqlite::sqlx;
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};

use super::checks::{Article, Entry, Order, Payment, Reservation, Snapshot};

/// The databases of a data folder, opened for reading.
pub(super) struct Books {
    pub(super) data: PathBuf,
    orders: SqlitePool,
    inventory: SqlitePool,
    payments: SqlitePool,
    points: SqlitePool,
    shipping: SqlitePool,
}

async fn open(data: &Path, service: &str) -> antiphon::Result<SqlitePool> {
    let path = data.join(format!("{service}.db"));
    if !path.is_file() {
        return Err(format!(
            "{} is not there; has the shop run with `--data {}`?",
            path.display(),
            data.display()
        )
        .into());
    }
    let options = SqliteConnectOptions::new().filename(&path).read_only(true);
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await;
    pool.map_err(|error| format!("cannot read {}: {error}", path.display()).into())
}

impl Books {
    pub(super) async fn open(data: &Path) -> antiphon::Result<Self> {
        Ok(Self {
            data: data.to_owned(),
            orders: open(data, "orders").await?,
            inventory: open(data, "inventory").await?,
            payments: open(data, "payments").await?,
            points: open(data, "points").await?,
            shipping: open(data, "shipping").await?,
        })
    }

    /// Everything that the checks compare.
    pub(super) async fn read(&self, journals: &[PathBuf]) -> antiphon::Result<Snapshot> {
        Ok(Snapshot {
            orders: self.orders().await?,
            payments: sqlx::query_as("select order_id, status from payments")
                .fetch_all(&self.payments)
                .await?
                .into_iter()
                .map(|(order, status)| Payment { order, status })
                .collect(),
            ledger: sqlx::query_as("select order_id, entry, amount_cents from provider_ledger")
                .fetch_all(&self.payments)
                .await?
                .into_iter()
                .map(|(order, entry, cents): (String, String, i64)| Entry {
                    order,
                    is_refund: entry == "refund",
                    cents,
                })
                .collect(),
            stock: sqlx::query_as("select sku, on_hand, reserved, shipped, put_in from stock")
                .fetch_all(&self.inventory)
                .await?
                .into_iter()
                .map(|(sku, on_hand, reserved, shipped, put_in)| Article {
                    sku,
                    on_hand,
                    reserved,
                    shipped,
                    put_in,
                })
                .collect(),
            reservations: sqlx::query_as("select order_id, sku, quantity, state from reservations")
                .fetch_all(&self.inventory)
                .await?
                .into_iter()
                .map(|(order, sku, quantity, state)| Reservation { order, sku, quantity, state })
                .collect(),
            awards: sqlx::query_as("select order_id, customer_id, points from awards")
                .fetch_all(&self.points)
                .await?,
            balances: sqlx::query_as("select customer_id, points from balances")
                .fetch_all(&self.points)
                .await?,
            shipments: sqlx::query_scalar("select order_id from shipments")
                .fetch_all(&self.shipping)
                .await?,
            journal: journals.iter().map(|path| journal(path)).collect::<Result<Vec<_>, _>>()?.concat(),
        })
    }

    async fn orders(&self) -> antiphon::Result<Vec<Order>> {
        type Row = (String, String, String, i64, String, Option<String>);
        let rows: Vec<Row> = sqlx::query_as(
            "select id, customer_id, status, total_cents, lines, idempotency_key from orders",
        )
        .fetch_all(&self.orders)
        .await?;
        rows.into_iter()
            .map(|(id, customer, status, total_cents, lines, key)| {
                let lines: Vec<(String, i64)> = serde_json::from_str(&lines)?;
                Ok(Order { id, customer, status, total_cents, lines, key })
            })
            .collect()
    }
}

/// The accepted orders of one journal. The last line may be torn: its writer was killed before it
/// was told that the line is safe.
fn journal(path: &Path) -> antiphon::Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read the journal {}: {error}", path.display()))?;
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line)
                .map_err(|error| format!("{}: {error}: {line}", path.display()))?;
            let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            Ok((field("key"), field("id")))
        })
        .collect()
}
