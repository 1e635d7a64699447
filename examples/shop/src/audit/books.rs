//! Reads the services' databases, each through a connection of its own.

use std::path::{Path, PathBuf};

use antiphon::operate::Operations;
use antiphon::outbox::{InboxStore, Ledger, OutboxStore};
use antiphon::saga::SagaStore;
use antiphon::sql::{Reader, Sql, sqlx};
use serde_json::Value;

use super::checks::{Article, Entry, Order, Payment, Reservation, Snapshot};

/// All services; each has a database of its name.
const SERVICES: [&str; 6] =
    ["orders", "inventory", "payments", "points", "shipping", "notifications"];

/// The databases of a shop, in the order of [`SERVICES`].
pub(super) struct Books {
    stores: Vec<(&'static str, Sql)>,
}

/// What is on its way.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// How many of anything.
    pub(super) count: u64,
    /// Of what how many.
    pub(super) what: Vec<String>,
}

impl InFlight {
    fn add(&mut self, count: u64, what: String) {
        self.count += count;
        self.what.push(what);
    }
}

impl Books {
    pub(super) async fn open(operations: &Operations) -> antiphon::Result<Self> {
        let mut stores = Vec::new();
        for service in SERVICES {
            stores.push((service, operations.database(service).await?.store().clone()));
        }
        Ok(Self { stores })
    }

    /// What reads the rows of a service.
    fn of(&self, service: &str) -> antiphon::Result<Reader<'_>> {
        let found = self.stores.iter().find(|(name, _)| *name == service);
        found.map(|(_, store)| store.reader()).ok_or_else(|| format!("no service {service}").into())
    }

    /// What is on its way: rows in outboxes, sagas that have not ended, messages that a group has not
    /// handled. Nothing at rest.
    pub(super) async fn in_flight(&self) -> antiphon::Result<InFlight> {
        let mut found = InFlight::default();
        let mut ledger = Ledger::new();
        for (service, store) in &self.stores {
            let (rows, _) = store.backlog().await?;
            if rows > 0 {
                found.add(rows, format!("{rows} messages in the outbox of {service}"));
            }
            for sagas in store.live().await? {
                let parked = if sagas.parked { " and parked" } else { "" };
                let (count, state) = (sagas.count, sagas.state.name());
                found.add(count, format!("{count} sagas {} are {state}{parked}", sagas.kind));
            }
            ledger.add_sent(&store.sent().await?);
            ledger.add_handled(&store.handled().await?);
        }
        for line in ledger.lines() {
            let (group, kind) = (&line.group, &line.kind);
            if line.in_flight + line.lost > 0 {
                let missing = line.in_flight + line.lost;
                let what = format!("{missing} of {} {kind} not handled by {group}", line.committed);
                found.add(missing, what);
            }
            if line.surplus > 0 {
                let what = format!("{} {kind} too many handled by {group}", line.surplus);
                found.add(line.surplus, what);
            }
        }
        Ok(found)
    }

    /// Everything that the checks compare.
    pub(super) async fn read(&self, journals: &[PathBuf]) -> antiphon::Result<Snapshot> {
        Ok(Snapshot {
            orders: self.orders().await?,
            payments: sqlx::query_as("select order_id, status from payments")
                .fetch_all(self.of("payments")?)
                .await?
                .into_iter()
                .map(|(order, status)| Payment { order, status })
                .collect(),
            ledger: sqlx::query_as("select order_id, entry, amount_cents from provider_ledger")
                .fetch_all(self.of("payments")?)
                .await?
                .into_iter()
                .map(|(order, entry, cents): (String, String, i64)| Entry {
                    order,
                    is_refund: entry == "refund",
                    cents,
                })
                .collect(),
            stock: sqlx::query_as("select sku, on_hand, reserved, shipped, put_in from stock")
                .fetch_all(self.of("inventory")?)
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
                .fetch_all(self.of("inventory")?)
                .await?
                .into_iter()
                .map(|(order, sku, quantity, state)| Reservation { order, sku, quantity, state })
                .collect(),
            awards: sqlx::query_as("select order_id, customer_id, points from awards")
                .fetch_all(self.of("points")?)
                .await?,
            balances: sqlx::query_as("select customer_id, points from balances")
                .fetch_all(self.of("points")?)
                .await?,
            shipments: sqlx::query_scalar("select order_id from shipments")
                .fetch_all(self.of("shipping")?)
                .await?,
            journal: journals
                .iter()
                .map(|path| journal(path))
                .collect::<Result<Vec<_>, _>>()?
                .concat(),
        })
    }

    async fn orders(&self) -> antiphon::Result<Vec<Order>> {
        type Row = (String, String, String, i64, String, Option<String>);
        let rows: Vec<Row> = sqlx::query_as(
            "select id, customer_id, status, total_cents, line_items, idempotency_key from orders",
        )
        .fetch_all(self.of("orders")?)
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
