//! What must hold when everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use antiphon_messaging::{Broker, DeadFilter};
use antiphon_outbox::{InboxStore, OutboxStore};
use antiphon_saga::{SagaFilter, SagaRow, SagaStore, State};

use crate::node::Outside;
use crate::shop::{STOCK, number};
use crate::world::Known;

/// What keeps a run from coming to rest.
pub(crate) async fn what_moves(outside: &Outside) -> String {
    let mut text = "it does not come to rest (I1, I8):".to_owned();
    for service in outside.services() {
        if let Ok((count, _)) = service.store.backlog().await
            && count > 0
        {
            text.push_str(&format!(" {count} messages wait in the outbox of {};", service.name));
        }
    }
    for saga in sagas(outside).await.iter().filter(|saga| !saga.state.is_ended()) {
        text.push_str(&format!(
            " {} is {}, wakes at {:?}, {};",
            saga.correlation,
            saga.state.name(),
            saga.wake_at,
            saga.progress
        ));
    }
    text
}

async fn sagas(outside: &Outside) -> Vec<SagaRow> {
    outside.orders.store.list(&SagaFilter::default(), u32::MAX).await.unwrap_or_default()
}

/// How often each effect took place, by order and effect, over all services.
fn effects(outside: &Outside) -> BTreeMap<(String, String), i64> {
    let mut effects = BTreeMap::new();
    for service in outside.services() {
        for (key, count) in service.store.rows("effects") {
            if let Some((order, what)) = key.split_once('/') {
                let place: &mut i64 =
                    effects.entry((order.to_owned(), what.to_owned())).or_default();
                *place += number(&count);
            }
        }
    }
    effects
}

/// Asks all questions.
///
/// # Errors
/// The first promise that was broken.
pub(crate) async fn everything(
    outside: &Outside,
    log: &BTreeMap<String, Known>,
) -> Result<(), String> {
    if let Some(what) = outside.faults.what_is_broken() {
        return Err(format!("{what} (I8)"));
    }
    let sagas = sagas(outside).await;
    let effects = effects(outside);
    clients_were_told_the_truth(&sagas, log)?;
    each_order_has_one_fate(&sagas, &effects)?;
    stock_is_conserved(outside)?;
    nothing_has_no_cause(&sagas, &effects)?;
    events_took_effect_in_order(outside, &sagas)?;
    traces_are_whole(outside)?;
    no_letter_is_dead(outside).await?;
    count_fates(outside, &sagas).await;
    Ok(())
}

/// I1: what was accepted has a saga, what was refused has none.
fn clients_were_told_the_truth(
    sagas: &[SagaRow],
    log: &BTreeMap<String, Known>,
) -> Result<(), String> {
    for (order, known) in log {
        let exists = sagas.iter().any(|saga| saga.correlation == *order);
        match (known, exists) {
            (Known::Accepted, false) => {
                return Err(format!("{order} was accepted and is lost (I1)"));
            }
            (Known::Absent, true) => return Err(format!("{order} was refused and exists (I3)")),
            _ => {}
        }
    }
    let correlations: BTreeSet<&str> = sagas.iter().map(|saga| &*saga.correlation).collect();
    if correlations.len() != sagas.len() {
        return Err("there are two sagas for one order (I1)".into());
    }
    Ok(())
}

/// I2, I4, I5: each effect as often as the fate of the order says.
fn each_order_has_one_fate(
    sagas: &[SagaRow],
    effects: &BTreeMap<(String, String), i64>,
) -> Result<(), String> {
    for saga in sagas {
        let order = &saga.correlation;
        let count = |what: &str| {
            effects.get(&(order.clone(), what.to_owned())).copied().unwrap_or_default()
        };
        let completed = saga.state == State::Completed;
        let once = i64::from(completed);
        let facts = [
            ("net reservations", count("reserve") - count("release"), once),
            ("net charges", count("charge") - count("refund"), once),
            ("confirmations", count("confirm"), once),
            ("shipments", count("ship"), once),
            ("awards of points", count("points"), once),
            ("cancellations", count("cancel"), 1 - once),
        ];
        for (what, found, expected) in facts {
            if found != expected {
                return Err(format!(
                    "{order} is {} with {found} {what}, not {expected} (I2); {}",
                    saga.state.name(),
                    saga.progress
                ));
            }
        }
        if let Some(what) = ["reserve", "release", "charge", "refund"]
            .into_iter()
            .find(|what| !(0..=1).contains(&count(what)))
        {
            return Err(format!("{what} took effect {} times for {order} (I5)", count(what)));
        }
        if completed && order.ends_with("declined") {
            return Err(format!("{order} was completed with a declined card (I2)"));
        }
    }
    Ok(())
}

/// I2: what was put in is on hand, set aside or shipped.
fn stock_is_conserved(outside: &Outside) -> Result<(), String> {
    let count = |key| outside.inventory.store.row("stock", key).map_or(0, |bytes| number(&bytes));
    let (on_hand, reserved, shipped) = (count("on-hand"), count("reserved"), count("shipped"));
    if on_hand < 0 || reserved != 0 || on_hand + shipped != STOCK {
        return Err(format!(
            "{STOCK} articles became {on_hand} on hand, {reserved} set aside, {shipped} shipped (I2)"
        ));
    }
    Ok(())
}

/// I3: no effect for an order that nobody placed.
fn nothing_has_no_cause(
    sagas: &[SagaRow],
    effects: &BTreeMap<(String, String), i64>,
) -> Result<(), String> {
    let orders: BTreeSet<&str> = sagas.iter().map(|saga| &*saga.correlation).collect();
    match effects.keys().find(|(order, _)| !orders.contains(&**order)) {
        Some((order, what)) => Err(format!("{what} took effect for {order}, which is not (I3)")),
        None => Ok(()),
    }
}

/// I6: the events of one key, once each and in the order of their commits.
fn events_took_effect_in_order(outside: &Outside, sagas: &[SagaRow]) -> Result<(), String> {
    let seen: BTreeMap<String, _> = outside.payments.store.rows("seen").into_iter().collect();
    for saga in sagas {
        let found = seen.get(&saga.correlation).map(|bytes| &bytes[..]).unwrap_or_default();
        if found != b"12" {
            return Err(format!(
                "the events of {} took effect as {:?}, not as 12 (I5, I6)",
                saga.correlation,
                String::from_utf8_lossy(found)
            ));
        }
    }
    match seen.keys().find(|order| sagas.iter().all(|saga| saga.correlation != **order)) {
        Some(order) => Err(format!("there is an event of {order}, which is not (I3)")),
        None => Ok(()),
    }
}

/// I10: all that happened for an order is in the trace of the call that placed it.
fn traces_are_whole(outside: &Outside) -> Result<(), String> {
    let orders: BTreeMap<String, _> = outside.orders.store.rows("orders").into_iter().collect();
    for service in outside.services() {
        for (key, trace) in service.store.rows("traces") {
            let order = key.split_once('/').map_or("", |(order, _)| order);
            if orders.get(order) != Some(&trace) {
                return Err(format!("{key} happened in another trace (I10)"));
            }
        }
    }
    Ok(())
}

/// I7: nothing was given up.
async fn no_letter_is_dead(outside: &Outside) -> Result<(), String> {
    let Some(letters) = outside.broker.dead_letters() else { return Ok(()) };
    let dead = letters.list(&DeadFilter::default(), None, 10).await.unwrap_or_default();
    if let Some(letter) = dead.first() {
        return Err(format!("a message is dead: {letter:?} (I7)"));
    }
    for service in outside.services() {
        if let Ok([buried, ..]) = service.store.buried(1).await.as_deref() {
            return Err(format!("a message was never published: {buried:?} (I7)"));
        }
    }
    Ok(())
}

async fn count_fates(outside: &Outside, sagas: &[SagaRow]) {
    let mut suppressed = 0;
    for service in outside.services() {
        let handled = service.store.handled().await.unwrap_or_default();
        suppressed += handled.iter().map(|count| count.duplicates).sum::<u64>();
    }
    let completed = sagas.iter().filter(|saga| saga.state == State::Completed).count() as u64;
    outside.faults.bite(|bites| {
        bites.duplicates_suppressed += suppressed;
        bites.completed += completed;
        bites.compensated += sagas.len() as u64 - completed;
    });
}
