//! The services of the simulated shop: orders (which owns the saga), inventory and payments.
//!
//! Their handlers count every effect and are not idempotent on purpose: what they count is right
//! only if the framework lets each take effect once.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Context, RetryPolicy};
use antiphon_messaging::Fail;
use antiphon_outbox::{Handle, StoreError, Tx};
use antiphon_saga::{
    DefinitionError, LocalWork, Participate, ParticipateLater, Rejection, Saga, Step, Ticket,
};
use antiphon_testing::memory_store::Connection;

use crate::contract::{
    Capture, Charge, Done, OrderCancelled, OrderConfirmed, OrderPlaced, PlaceOrder, Refund,
    Release, Reserve, Ship,
};
use crate::faults::NodeFaults;
use crate::store::NodeStore;

/// How many articles there are at first: fewer than all orders want.
pub(crate) const STOCK: i64 = 9;
/// How long the saga may take to its pivot: less than the faults last.
const DEADLINE: Duration = Duration::from_secs(9);

/// What all handlers of a node share.
#[derive(Clone)]
pub(crate) struct Shop {
    pub(crate) node: Arc<NodeFaults>,
}

impl Shop {
    fn may_work(&self) -> Result<(), Fail> {
        if self.node.handler_fails() { Err(Fail::retry("injected")) } else { Ok(()) }
    }
}

/// Adds to a number of a table.
pub(crate) async fn add(
    connection: &mut Connection,
    table: &str,
    key: &str,
    by: i64,
) -> Result<i64, StoreError> {
    let before = connection.get_for_update(table, key).await?;
    let sum = before.map_or(0, |bytes| number(&bytes)) + by;
    connection.put(table, key, sum.to_string()).await?;
    Ok(sum)
}

pub(crate) fn number(bytes: &[u8]) -> i64 {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Counts an effect on an order, and remembers in which trace it happened.
async fn effect(tx: &mut Tx<NodeStore>, what: &str, order: &str) -> Result<(), StoreError> {
    let trace = Context::current().trace().trace_id.to_string();
    tx.put("traces", &format!("{order}/{what}"), trace).await?;
    add(tx, "effects", &format!("{order}/{what}"), 1).await.map(drop)
}

/// The definition of the saga.
pub(crate) fn place_order(shop: &Shop) -> Result<Saga<PlaceOrder, NodeStore>, DefinitionError> {
    let retry =
        RetryPolicy::exponential(Duration::from_millis(400), Duration::from_secs(2)).attempts(3);
    let timeout = Duration::from_millis(1_500);
    Saga::define("place-order", 1)
        .deadline(DEADLINE)
        .step(
            Step::remote("reserve", |order: &PlaceOrder| Reserve::of(&order.order, order.value))
                .undo(|order| Release::of(&order.order, order.value))
                .timeout(timeout)
                .retry(retry),
        )
        .step(
            Step::remote("charge", |order: &PlaceOrder| Charge::of(&order.order, order.value))
                .undo(|order| Refund::of(&order.order, order.value))
                .timeout(timeout)
                .retry(retry),
        )
        .step(Step::local("confirm", Confirm(shop.clone())).pivot().retry(retry))
        .step(
            Step::remote("ship", |order: &PlaceOrder| Ship::of(&order.order, order.value))
                .forward_only()
                .timeout(timeout)
                .retry(retry),
        )
        .on_compensated(Cancel(shop.clone()))
        .build()
}

struct Confirm(Shop);

impl LocalWork<PlaceOrder, NodeStore> for Confirm {
    async fn run(&self, order: &mut PlaceOrder, tx: &mut Tx<NodeStore>) -> Result<(), Rejection> {
        effect(tx, "confirm", &order.order).await?;
        tx.emit(&OrderConfirmed::of(&order.order, 2));
        self.0.may_work()?;
        Ok(())
    }
}

struct Cancel(Shop);

impl LocalWork<PlaceOrder, NodeStore> for Cancel {
    async fn run(&self, order: &mut PlaceOrder, tx: &mut Tx<NodeStore>) -> Result<(), Rejection> {
        effect(tx, "cancel", &order.order).await?;
        tx.emit(&OrderCancelled::of(&order.order, 2));
        self.0.may_work()?;
        Ok(())
    }
}

impl Participate<Reserve, NodeStore> for Shop {
    type Reply = Done;

    async fn handle(&self, order: Reserve, tx: &mut Tx<NodeStore>) -> Result<Done, Rejection> {
        effect(tx, "reserve", &order.order).await?;
        if add(tx, "stock", "on-hand", -order.value).await? < 0 {
            return Err(Rejection::because("OUT_OF_STOCK", "there are not enough"));
        }
        add(tx, "stock", "reserved", order.value).await?;
        self.may_work()?;
        Ok(Done::default())
    }
}

impl Participate<Release, NodeStore> for Shop {
    type Reply = Done;

    async fn handle(&self, order: Release, tx: &mut Tx<NodeStore>) -> Result<Done, Rejection> {
        effect(tx, "release", &order.order).await?;
        add(tx, "stock", "on-hand", order.value).await?;
        add(tx, "stock", "reserved", -order.value).await?;
        self.may_work()?;
        Ok(Done::default())
    }
}

impl Participate<Ship, NodeStore> for Shop {
    type Reply = Done;

    async fn handle(&self, order: Ship, tx: &mut Tx<NodeStore>) -> Result<Done, Rejection> {
        effect(tx, "ship", &order.order).await?;
        add(tx, "stock", "reserved", -order.value).await?;
        add(tx, "stock", "shipped", order.value).await?;
        self.may_work()?;
        Ok(Done::default())
    }
}

/// Money is taken in a later transaction: the provider is not part of the database.
impl ParticipateLater<Charge, NodeStore> for Shop {
    async fn handle(
        &self,
        order: Charge,
        ticket: Ticket,
        tx: &mut Tx<NodeStore>,
    ) -> Result<(), Rejection> {
        tx.put("payments", &order.order, ticket.to_string()).await?;
        tx.send(&Capture::of(&order.order, order.value));
        self.may_work()?;
        Ok(())
    }
}

impl Handle<Capture, NodeStore> for Shop {
    async fn handle(&self, order: Capture, tx: &mut Tx<NodeStore>) -> Result<(), Fail> {
        let ticket = tx.get_for_update("payments", &order.order).await?.unwrap_or_default();
        // Refunded before anything was taken.
        let Ok(ticket) = std::str::from_utf8(&ticket).unwrap_or_default().parse::<Ticket>() else {
            return Ok(());
        };
        if order.order.ends_with("declined") {
            tx.put("payments", &order.order, "declined").await?;
            ticket.refuse(tx, Rejection::because("DECLINED", "the card was declined")).await?;
        } else {
            effect(tx, "charge", &order.order).await?;
            tx.put("payments", &order.order, "charged").await?;
            ticket.done(tx, &Done::default()).await?;
        }
        self.may_work()
    }
}

impl Participate<Refund, NodeStore> for Shop {
    type Reply = Done;

    async fn handle(&self, order: Refund, tx: &mut Tx<NodeStore>) -> Result<Done, Rejection> {
        let state = tx.get_for_update("payments", &order.order).await?;
        if state.as_deref() == Some(b"charged") {
            effect(tx, "refund", &order.order).await?;
        }
        tx.put("payments", &order.order, "refunded").await?;
        self.may_work()?;
        Ok(Done::default())
    }
}

/// Awards points: a plain consumer of events.
pub(crate) struct Points(pub(crate) Shop);

impl Handle<OrderConfirmed, NodeStore> for Points {
    async fn handle(&self, order: OrderConfirmed, tx: &mut Tx<NodeStore>) -> Result<(), Fail> {
        effect(tx, "points", &order.order).await?;
        self.0.may_work()
    }
}

/// Writes down in which order the events of an order took effect.
#[derive(Clone)]
pub(crate) struct Witness(pub(crate) Shop);

impl Witness {
    async fn saw(&self, version: i64, order: &str, tx: &mut Tx<NodeStore>) -> Result<(), Fail> {
        let mut seen = tx.get_for_update("seen", order).await?.unwrap_or_default().to_vec();
        seen.extend_from_slice(version.to_string().as_bytes());
        tx.put("seen", order, seen).await?;
        self.0.may_work()
    }
}

macro_rules! witness {
    ($($event:ident)+) => {$(
        impl Handle<$event, NodeStore> for Witness {
            async fn handle(&self, event: $event, tx: &mut Tx<NodeStore>) -> Result<(), Fail> {
                self.saw(event.value, &event.order, tx).await
            }
        }
    )+};
}

witness!(OrderPlaced OrderConfirmed OrderCancelled);
