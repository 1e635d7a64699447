//! What must be true of the whole shop, as pure functions over what its databases say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::{Value, json};

/// How many examples of a breach are shown.
const EXAMPLES_MAX: usize = 5;

/// What all databases say.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) orders: Vec<Order>,
    pub(super) payments: Vec<Payment>,
    pub(super) ledger: Vec<Entry>,
    pub(super) stock: Vec<Article>,
    pub(super) reservations: Vec<Reservation>,
    /// Order, customer, points.
    pub(super) awards: Vec<(String, String, i64)>,
    /// Customer, points.
    pub(super) balances: Vec<(String, i64)>,
    pub(super) shipments: Vec<String>,
    /// Idempotency key and order, as the customers saw them.
    pub(super) journal: Vec<(String, String)>,
}

#[derive(Debug)]
pub(super) struct Order {
    pub(super) id: String,
    pub(super) customer: String,
    pub(super) status: String,
    pub(super) total_cents: i64,
    /// Sku and quantity.
    pub(super) lines: Vec<(String, i64)>,
    pub(super) key: Option<String>,
}

#[derive(Debug)]
pub(super) struct Payment {
    pub(super) order: String,
    pub(super) status: String,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) order: String,
    pub(super) is_refund: bool,
    pub(super) cents: i64,
}

#[derive(Debug)]
pub(super) struct Article {
    pub(super) sku: String,
    pub(super) on_hand: i64,
    pub(super) reserved: i64,
    pub(super) shipped: i64,
    pub(super) put_in: i64,
}

#[derive(Debug)]
pub(super) struct Reservation {
    pub(super) order: String,
    pub(super) sku: String,
    pub(super) quantity: i64,
    pub(super) state: String,
}

/// One thing that must be true.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) holds: bool,
    /// What was compared, or where it breaks.
    pub(super) detail: String,
}

fn check(name: &'static str, breaches: Vec<String>, otherwise: String) -> Check {
    if breaches.is_empty() {
        return Check { name, holds: true, detail: otherwise };
    }
    let mut detail = breaches.iter().take(EXAMPLES_MAX).cloned().collect::<Vec<_>>().join("; ");
    if breaches.len() > EXAMPLES_MAX {
        let _ = write!(detail, "; and {} more", breaches.len() - EXAMPLES_MAX);
    }
    Check { name, holds: false, detail }
}

/// All checks, in the order in which they are shown.
pub(super) fn all(shop: &Snapshot, in_flight: &[String]) -> Vec<Check> {
    vec![
        check("nothing is in flight", in_flight.to_vec(), "all queues are empty".into()),
        decided(shop),
        money(shop),
        payments(shop),
        shelves(shop),
        reservations(shop),
        points(shop),
        shipments(shop),
        journal(shop),
    ]
}

fn confirmed(shop: &Snapshot) -> impl Iterator<Item = &Order> {
    shop.orders.iter().filter(|order| order.status == "CONFIRMED")
}

fn decided(shop: &Snapshot) -> Check {
    let breaches = shop
        .orders
        .iter()
        .filter(|order| !matches!(order.status.as_str(), "CONFIRMED" | "CANCELLED"))
        .map(|order| format!("order {} is {}", order.id, order.status))
        .collect();
    let count = confirmed(shop).count();
    let otherwise = format!(
        "{} orders: {count} confirmed, {} cancelled",
        shop.orders.len(),
        shop.orders.len() - count
    );
    check("every order is confirmed or cancelled", breaches, otherwise)
}

fn money(shop: &Snapshot) -> Check {
    let mut net = BTreeMap::<&str, i64>::new();
    for entry in &shop.ledger {
        *net.entry(&entry.order).or_default() +=
            if entry.is_refund { -entry.cents } else { entry.cents };
    }
    let mut breaches = Vec::new();
    for order in &shop.orders {
        let paid = net.remove(order.id.as_str()).unwrap_or(0);
        let due = if order.status == "CONFIRMED" { order.total_cents } else { 0 };
        if paid != due {
            breaches
                .push(format!("order {} is {}: paid {paid}, due {due}", order.id, order.status));
        }
    }
    breaches
        .extend(net.keys().map(|order| format!("money of an order that is not there: {order}")));
    let total: i64 = confirmed(shop).map(|order| order.total_cents).sum();
    check("charges minus refunds equal confirmed totals", breaches, format!("{total} cents"))
}

fn payments(shop: &Snapshot) -> Check {
    let charged: BTreeSet<&str> =
        shop.payments.iter().filter(|p| p.status == "CHARGED").map(|p| p.order.as_str()).collect();
    let wanted: BTreeSet<&str> = confirmed(shop).map(|order| order.id.as_str()).collect();
    let mut breaches: Vec<_> =
        wanted.difference(&charged).map(|o| format!("{o} is confirmed and not charged")).collect();
    breaches
        .extend(charged.difference(&wanted).map(|o| format!("{o} is charged and not confirmed")));
    breaches.extend(
        shop.payments
            .iter()
            .filter(|payment| payment.status == "PENDING")
            .map(|payment| format!("the payment of {} is undecided", payment.order)),
    );
    check(
        "a payment is charged exactly for confirmed orders",
        breaches,
        format!("{} payments", shop.payments.len()),
    )
}

fn shelves(shop: &Snapshot) -> Check {
    let mut sold = BTreeMap::<&str, i64>::new();
    for (sku, quantity) in confirmed(shop).flat_map(|order| &order.lines) {
        *sold.entry(sku).or_default() += quantity;
    }
    let mut breaches = Vec::new();
    for article in &shop.stock {
        let there = article.on_hand + article.reserved + article.shipped;
        if there != article.put_in {
            breaches.push(format!("{}: put in {}, there {there}", article.sku, article.put_in));
        }
        if article.reserved != 0 {
            breaches.push(format!("{}: {} still reserved", article.sku, article.reserved));
        }
        let sold = sold.get(article.sku.as_str()).copied().unwrap_or(0);
        if article.shipped != sold {
            breaches.push(format!("{}: sold {sold}, shipped {}", article.sku, article.shipped));
        }
    }
    let put_in: i64 = shop.stock.iter().map(|article| article.put_in).sum();
    check("stock put in = on hand + reserved + shipped", breaches, format!("{put_in} pieces"))
}

fn reservations(shop: &Snapshot) -> Check {
    let status: BTreeMap<&str, &str> =
        shop.orders.iter().map(|order| (order.id.as_str(), order.status.as_str())).collect();
    let mut of = BTreeMap::<&str, i64>::new();
    let mut breaches = Vec::new();
    for reservation in &shop.reservations {
        let wanted = match status.get(reservation.order.as_str()) {
            Some(&"CONFIRMED") => "shipped",
            Some(&"CANCELLED") => "released",
            _ => "none",
        };
        if reservation.state != wanted {
            breaches.push(format!(
                "{} pieces of {} for {} are {} instead of {wanted}",
                reservation.quantity, reservation.sku, reservation.order, reservation.state
            ));
        }
        *of.entry(&reservation.order).or_default() += reservation.quantity;
    }
    for order in confirmed(shop) {
        let wanted: i64 = order.lines.iter().map(|(_, quantity)| quantity).sum();
        let got = of.get(order.id.as_str()).copied().unwrap_or(0);
        if wanted != got {
            breaches.push(format!("{}: {wanted} ordered, {got} set aside", order.id));
        }
    }
    check(
        "what was set aside was shipped or given back",
        breaches,
        format!("{} reservations", shop.reservations.len()),
    )
}

fn points(shop: &Snapshot) -> Check {
    let mut breaches = Vec::new();
    let mut awards: BTreeMap<&str, i64> =
        shop.awards.iter().map(|(order, _, points)| (order.as_str(), *points)).collect();
    for order in confirmed(shop) {
        let due = order.total_cents / 100;
        match awards.remove(order.id.as_str()) {
            Some(got) if got == due => {}
            got => breaches.push(format!("{}: {due} points due, got {got:?}", order.id)),
        }
    }
    breaches
        .extend(awards.keys().map(|order| format!("points for {order}, which is not confirmed")));
    let mut sums = BTreeMap::<&str, i64>::new();
    for (_, customer, points) in &shop.awards {
        *sums.entry(customer).or_default() += points;
    }
    for (customer, balance) in &shop.balances {
        let sum = sums.remove(customer.as_str()).unwrap_or(0);
        if sum != *balance {
            breaches.push(format!("{customer}: awards are {sum}, the balance is {balance}"));
        }
    }
    breaches.extend(sums.keys().map(|customer| format!("{customer} has awards and no balance")));
    check("points once per confirmed order", breaches, format!("{} awards", shop.awards.len()))
}

fn shipments(shop: &Snapshot) -> Check {
    let wanted: BTreeSet<&str> = confirmed(shop).map(|order| order.id.as_str()).collect();
    let got: BTreeSet<&str> = shop.shipments.iter().map(String::as_str).collect();
    let mut breaches: Vec<_> =
        wanted.difference(&got).map(|order| format!("{order} was not shipped")).collect();
    breaches
        .extend(got.difference(&wanted).map(|o| format!("{o} was shipped and is not confirmed")));
    check("a shipment once per confirmed order", breaches, format!("{} shipments", got.len()))
}

fn journal(shop: &Snapshot) -> Check {
    let known: BTreeMap<&str, &Order> =
        shop.orders.iter().map(|order| (order.id.as_str(), order)).collect();
    let mut breaches = Vec::new();
    for (key, id) in &shop.journal {
        match known.get(id.as_str()) {
            None => breaches.push(format!("{id} was accepted (key {key}) and is not there")),
            Some(order) if order.key.as_deref() != Some(key.as_str()) => {
                breaches.push(format!("{id} was accepted under {key}, kept under {:?}", order.key));
            }
            Some(_) => {}
        }
    }
    let mut keys = BTreeMap::<&str, u32>::new();
    for key in shop.orders.iter().filter_map(|order| order.key.as_deref()) {
        *keys.entry(key).or_default() += 1;
    }
    breaches.extend(
        keys.iter()
            .filter(|(_, count)| **count > 1)
            .map(|(key, count)| format!("{count} orders for the key {key}")),
    );
    let customers: BTreeSet<&str> =
        shop.orders.iter().map(|order| order.customer.as_str()).collect();
    let otherwise = format!(
        "{} accepted by customers' journals, {} customers",
        shop.journal.len(),
        customers.len()
    );
    check("accepted orders exist, once per idempotency key", breaches, otherwise)
}

/// The checks as a table for people.
pub(super) fn to_table(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    checks.iter().fold(String::new(), |mut table, check| {
        let mark = if check.holds { "ok    " } else { "BROKEN" };
        let _ = writeln!(table, "{mark}  {:width$}  {}", check.name, check.detail);
        table
    })
}

/// The checks for programs.
pub(super) fn to_json(checks: &[Check]) -> Value {
    let rows = checks
        .iter()
        .map(|check| json!({"check": check.name, "holds": check.holds, "detail": check.detail}));
    Value::Array(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shop with one confirmed order, in which everything holds.
    fn sound() -> Snapshot {
        Snapshot {
            orders: vec![Order {
                id: "o1".into(),
                customer: "c".into(),
                status: "CONFIRMED".into(),
                total_cents: 250,
                lines: vec![("cup".into(), 2)],
                key: Some("k1".into()),
            }],
            payments: vec![Payment { order: "o1".into(), status: "CHARGED".into() }],
            ledger: vec![Entry { order: "o1".into(), is_refund: false, cents: 250 }],
            stock: vec![Article {
                sku: "cup".into(),
                on_hand: 8,
                reserved: 0,
                shipped: 2,
                put_in: 10,
            }],
            reservations: vec![Reservation {
                order: "o1".into(),
                sku: "cup".into(),
                quantity: 2,
                state: "shipped".into(),
            }],
            awards: vec![("o1".into(), "c".into(), 2)],
            balances: vec![("c".into(), 2)],
            shipments: vec!["o1".into()],
            journal: vec![("k1".into(), "o1".into())],
        }
    }

    fn broken(change: impl FnOnce(&mut Snapshot)) -> Vec<&'static str> {
        let mut shop = sound();
        change(&mut shop);
        all(&shop, &[]).into_iter().filter(|check| !check.holds).map(|check| check.name).collect()
    }

    #[test]
    fn a_sound_shop_passes() {
        assert_eq!(broken(|_| {}), Vec::<&str>::new());
    }

    #[test]
    fn every_breach_is_found() {
        let found = |change: fn(&mut Snapshot), name: &str| {
            let names = broken(change);
            assert!(names.iter().any(|found| found.contains(name)), "{name}: {names:?}");
        };
        found(|shop| shop.orders[0].status = "PENDING".into(), "confirmed or cancelled");
        found(|shop| shop.ledger.clear(), "charges minus refunds");
        found(|shop| shop.ledger[0].order = "ghost".into(), "charges minus refunds");
        found(|shop| shop.payments[0].status = "REFUNDED".into(), "payment is charged");
        found(|shop| shop.stock[0].on_hand = 7, "stock put in");
        found(|shop| shop.stock[0].shipped = 1, "stock put in");
        found(|shop| shop.reservations[0].state = "released".into(), "set aside");
        found(|shop| shop.reservations.clear(), "set aside");
        found(|shop| shop.awards.clear(), "points");
        found(|shop| shop.balances[0].1 = 4, "points");
        found(|shop| shop.shipments.clear(), "shipment");
        found(|shop| shop.shipments.push("o2".into()), "shipment");
        found(|shop| shop.journal.push(("k2".into(), "o2".into())), "accepted orders");
        let in_flight = all(&sound(), &["outbox of orders: 1".into()]);
        assert!(!in_flight[0].holds);
    }
}
