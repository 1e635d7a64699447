//! A message that cannot be handled, from its death to its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::support::{GROUP, Orders, System, message, run};

const MESSAGES: usize = 10_000;
const KEYS: usize = 100;
/// The poison is in the middle, with messages of its key on both sides.
const POISON_AT: usize = 5_050;
const PATIENCE: Duration = Duration::from_secs(120);

async fn next(handled: &mut mpsc::UnboundedReceiver<(String, String)>) -> (String, String) {
    let next = tokio::time::timeout(PATIENCE, handled.recv()).await;
    next.expect("messages are handled in time").expect("the consumer lives")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_among_ten_thousand_dies_alone_and_is_redriven_once() {
    let system = System::start().await;
    let (sender, mut handled) = mpsc::unbounded_channel();
    let broken = Arc::new(AtomicBool::new(true));
    let orders = Orders { broken: Arc::clone(&broken), handled: sender };
    let (handle, worker) = run(system.consumer(orders));

    for from in (0..MESSAGES).step_by(1_000) {
        let body = |n: usize| if n == POISON_AT { "poison".to_owned() } else { n.to_string() };
        let batch = (from..from + 1_000).map(|n| message(n % KEYS, &body(n))).collect();
        assert!(system.broker.publish(batch).await.iter().all(Result::is_ok));
    }
    let mut last = BTreeMap::new();
    for _ in 0..MESSAGES - 1 {
        let (key, body) = next(&mut handled).await;
        let number: i64 = body.parse().unwrap();
        let before = last.insert(key.clone(), number).unwrap_or(-1);
        assert!(before < number, "{key}: {number} after {before}");
    }

    let listed = loop {
        let listed = system.says(&["--json", "dead", "list", "--group", GROUP]);
        if listed.contains("cannot digest this") {
            break listed;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(listed.contains("\"reason\": \"attempts\""), "{listed}");
    assert!(listed.contains("\"attempts\": 4"), "{listed}");
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    let id = listed[0]["id"].as_str().unwrap();
    let shown = system.says(&["dead", "show", GROUP, id]);
    assert!(shown.contains("correlationid") && shown.contains("after 4 attempts"), "{shown}");

    let dry = system.says(&["dead", "redrive", "--group", GROUP, "--dry-run"]);
    assert!(dry.contains("1 would be given back"), "{dry}");
    assert!(handled.try_recv().is_err(), "a dry run gives nothing back");

    broken.store(false, Ordering::Release);
    let redriven = system.says(&["dead", "redrive", "--group", GROUP]);
    assert!(redriven.contains("1 of 1 given back"), "{redriven}");
    assert_eq!(next(&mut handled).await.1, "poison");
    let left = system.says(&["dead", "list"]);
    assert!(left.contains("There are no such dead letters"), "{left}");
    let again = system.run(&["dead", "redrive", "--group", GROUP, "--id", id]);
    let error = crate::support::text(&again.stderr);
    assert!(!again.status.success() && error.contains("has no dead letter"), "{error}");

    handle.drain(Duration::from_secs(10));
    worker.await.unwrap().unwrap();
    assert!(handled.recv().await.is_none(), "it is handled once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_are_discarded_only_when_it_is_said_twice() {
    let system = System::start().await;
    let (sender, _handled) = mpsc::unbounded_channel();
    let orders = Orders { broken: Arc::new(AtomicBool::new(true)), handled: sender };
    let (handle, worker) = run(system.consumer(orders));
    let batch = (0..3).map(|n| message(n, "poison")).collect();
    assert!(system.broker.publish(batch).await.iter().all(Result::is_ok));
    loop {
        let listed = system.says(&["--json", "dead", "list"]);
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        if listed.as_array().map(Vec::len) == Some(3) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let asked = system.says(&["dead", "discard", "--group", GROUP]);
    assert!(asked.contains("3 would be forgotten"), "{asked}");
    let filtered = system.says(&["dead", "discard", "--key", "customer-1", "--yes"]);
    assert!(filtered.contains("1 forgotten"), "{filtered}");
    let done = system.says(&["dead", "discard", "--yes"]);
    assert!(done.contains("2 forgotten"), "{done}");
    let groups = system.says(&["groups"]);
    assert!(groups.contains(GROUP), "{groups}");
    handle.drain(Duration::from_secs(10));
    worker.await.unwrap().unwrap();
}
