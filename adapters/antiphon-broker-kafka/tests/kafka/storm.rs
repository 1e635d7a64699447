//! A rebalance storm: members come and go all the time under load.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use antiphon_messaging::{Broker, Fetched, Settled, Settlement};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, timeout};

use crate::common::{Tidy, message, open, send, settings, subscription, text, topology, unique};

const MESSAGES: usize = 6_000;
const KEYS: usize = 60;

/// What was handled.
#[derive(Debug, Default)]
struct Seen {
    /// By key: the highest number, and every number.
    keys: BTreeMap<String, (usize, BTreeSet<usize>)>,
    copies: usize,
    /// Copies of what was acknowledged, and the acknowledgement was not too late.
    copies_of_settled: usize,
    settled: BTreeSet<usize>,
    distinct: usize,
}

impl Seen {
    fn note(&mut self, key: &str, n: usize) {
        let (highest, all) = self.keys.entry(key.to_owned()).or_default();
        if all.insert(n) {
            assert!(all.len() == 1 || n > *highest, "{key}: {n} came first after {highest}");
            *highest = n;
            self.distinct += 1;
        } else {
            self.copies += 1;
            self.copies_of_settled += usize::from(self.settled.contains(&n));
        }
    }
}

/// A member for a while; then it leaves in order, or is dropped.
async fn member(broker: Tidy, name: String, seen: Arc<Mutex<Seen>>, lives: Duration, polite: bool) {
    let mut source = broker.subscribe(subscription(&name, true)).await.expect("joined");
    let end = Instant::now() + lives;
    while let Ok(fetched) = tokio::time::timeout_at(end, source.fetch(32)).await {
        let deliveries = match fetched {
            Fetched::Deliveries(deliveries) => deliveries,
            Fetched::Revoked { .. } => continue,
            Fetched::Lost(_) => return,
        };
        for delivery in deliveries {
            let n = text(&delivery).parse().expect("a number");
            seen.lock().note(&delivery.message.key, n);
            if delivery.settle(Settlement::Ack).outcome().await != Settled::Stale {
                seen.lock().settled.insert(n);
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    if polite {
        let _ = timeout(Duration::from_secs(10), source.close()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_and_nothing_is_lost_or_overtakes() {
    let broker = Tidy::new(open(settings()).await);
    let name = unique("storm");
    broker.declare(&topology(&name, true)).await.expect("declared");
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let publish = async {
        for batch in 0..MESSAGES / 100 {
            let numbers = batch * 100..(batch + 1) * 100;
            let messages = numbers
                .map(|n| message(&name, &format!("key-{}", n % KEYS), &n.to_string()))
                .collect();
            send(&broker, messages).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let mut members = JoinSet::new();
    let mut joined = 0_u64;
    let mut join = |members: &mut JoinSet<()>| {
        joined += 1;
        let lives = Duration::from_millis(1_000 + joined * 377 % 2_000);
        let polite = !joined.is_multiple_of(3);
        members.spawn(member(broker.clone(), name.clone(), Arc::clone(&seen), lives, polite));
        joined
    };
    let churn = async {
        let give_up = Instant::now() + Duration::from_secs(90);
        while seen.lock().distinct < MESSAGES {
            assert!(Instant::now() < give_up, "not handled in time: {}", seen.lock().distinct);
            while let Some(ended) = members.try_join_next() {
                ended.expect("no member panics");
            }
            if members.len() < 3 {
                join(&mut members);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        join(&mut members)
    };
    let ((), joined) = tokio::join!(publish, churn);
    members.shutdown().await;
    let seen = seen.lock();
    assert!(joined > 5, "members came and went: {joined}");
    assert_eq!(seen.distinct, MESSAGES);
    assert_eq!(seen.keys.len(), KEYS);
    assert_eq!(
        seen.copies_of_settled, 0,
        "{} copies in all; what was acknowledged in time does not come again",
        seen.copies
    );
}
