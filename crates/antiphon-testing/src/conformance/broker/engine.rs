//! The consumer engine on the broker: what users see.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use antiphon_core::{BoxFuture, Component, Health, RetryPolicy, Shutdown, ShutdownHandle};
use antiphon_messaging::{Consumer, DeadFilter, Fail, Handler, Incoming, Messaging};
use antiphon_telemetry::Telemetry;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{BrokerHarness, KIND, PATIENCE, QUIET, Site};

/// A handler made of a function.
struct With<F>(F);

impl<F, Fut> Handler for With<F>
where
    F: Fn(Incoming) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Fail>> + Send + 'static,
{
    fn handles(&self, kind: &str) -> bool {
        kind == KIND
    }

    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>> {
        Box::pin((self.0)(incoming.clone()))
    }
}

/// A consumer at work.
struct Running {
    shutdown: ShutdownHandle,
    task: JoinHandle<()>,
}

impl Running {
    async fn drain(self, within: Duration) {
        self.shutdown.drain(within);
        let ended = timeout(PATIENCE, self.task).await.expect("the consumer ends");
        ended.expect("the consumer does not panic");
    }
}

fn run(site: &Site, consumer: Consumer) -> Running {
    let mut messaging = Messaging::new(site.broker.clone(), Telemetry::new(), Health::new());
    messaging.parking = site.parking.clone();
    let worker = consumer.topic(&site.topic).build(&messaging).expect("the consumer fits");
    let (shutdown, drains): (_, Shutdown) = ShutdownHandle::new();
    let task = tokio::spawn(async move {
        worker.run(drains).await.expect("the consumer ends well");
    });
    Running { shutdown, task }
}

fn quick() -> RetryPolicy {
    RetryPolicy::exponential(Duration::from_millis(5), Duration::from_millis(50)).attempts(50)
}

fn text(incoming: &Incoming) -> String {
    String::from_utf8_lossy(&incoming.message.body).into_owned()
}

/// 16 keys, eight consumers, one try in twenty fails: per key the order holds, no two handlers of a
/// key overlap, and everything is handled.
pub async fn keys_stay_in_order_with_eight_consumers_and_failures(harness: &impl BrokerHarness) {
    const COUNT: usize = 640;
    let site = Site::with_ordered_groups(harness, &["all"]).await;
    if !site.broker.capabilities().ordered {
        return;
    }
    let (handled, mut results) = mpsc::unbounded_channel::<(String, usize)>();
    let busy: Arc<[AtomicUsize; 16]> = Arc::default();
    let tries = Arc::new(AtomicUsize::new(0));
    let consumers: Vec<Running> = (0..8)
        .map(|_| {
            let (handled, busy, tries) = (handled.clone(), Arc::clone(&busy), Arc::clone(&tries));
            let handler = With(move |incoming: Incoming| {
                let (handled, busy) = (handled.clone(), Arc::clone(&busy));
                let failing = tries.fetch_add(1, Ordering::Relaxed) % 20 == 7;
                async move {
                    let n: usize = text(&incoming).parse().unwrap_or(usize::MAX);
                    let others = busy[n % 16].fetch_add(1, Ordering::SeqCst);
                    assert_eq!(others, 0, "two handlers of key {} at once", n % 16);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    busy[n % 16].fetch_sub(1, Ordering::SeqCst);
                    if failing {
                        return Err(Fail::retry("one in twenty"));
                    }
                    let _ = handled.send((incoming.message.key.clone(), n));
                    Ok(())
                }
            });
            run(&site, Consumer::group(site.group("all")).handler(handler).ordered().retry(quick()))
        })
        .collect();
    for batch in 0..COUNT / 64 {
        let numbers = batch * 64..(batch + 1) * 64;
        let messages =
            numbers.map(|n| site.message(&format!("key-{}", n % 16), &n.to_string())).collect();
        site.send(messages).await;
    }
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..COUNT {
        let next = timeout(PATIENCE, results.recv()).await.expect("all are handled in time");
        let (key, n) = next.expect("consumers go on");
        if let Some(before) = last.insert(key.clone(), n) {
            assert_eq!(n, before + 16, "{key}: {n} after {before}");
        }
    }
    assert!(tries.load(Ordering::Relaxed) > COUNT, "some tries failed");
    for consumer in consumers {
        consumer.drain(PATIENCE).await;
    }
    assert!(results.try_recv().is_err(), "nothing is handled twice without a reason");
}

/// Waits until this many handlers have started: joining a group takes some brokers a while.
async fn until(started: &AtomicUsize, count: usize) {
    let all = async {
        while started.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, all).await.expect("the handlers start in time");
}

/// Handlers that never end hold as many messages as there are credits; the rest stays with the
/// broker, for others.
pub async fn stuck_handlers_hold_no_more_than_the_credits(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    site.publish_numbered(100).await;
    let started = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&started);
    let stuck = With(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::pending()
    });
    let consumer = Consumer::group(site.group("all")).handler(stuck).concurrency(3).credits(10);
    let running = run(&site, consumer);
    until(&started, 3).await;
    tokio::time::sleep(QUIET).await;
    assert_eq!(started.load(Ordering::Relaxed), 3, "as many run as may");
    let mut other = site.join("all", false).await;
    if harness.members_own_lanes() {
        // Everything but what waits in the lanes that stay with the stuck member.
        let mut texts = other.handle(1).await;
        texts.extend(other.handle_all().await);
        assert_eq!(started.load(Ordering::Relaxed), 3, "as many run as may");
        running.drain(Duration::from_millis(100)).await;
        texts.extend(other.handle(100 - texts.len()).await);
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), 100, "nothing is lost, and what was cut off comes again");
        return;
    }
    assert_eq!(other.handle(90).await.len(), 90);
    other.stays_quiet().await;
    running.drain(Duration::from_millis(100)).await;
    assert_eq!(other.handle(10).await.len(), 10, "what was cut off comes again");
}

/// Draining gives back at once what has not started, and finishes what has.
pub async fn a_drain_gives_back_what_has_not_started(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    site.publish_numbered(20).await;
    let (finish, finishing) = tokio::sync::watch::channel(false);
    let started = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&started);
    let slow = With(move |_| {
        let mut finishing = finishing.clone();
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            let _ = finishing.wait_for(|finish| *finish).await;
            Ok(())
        }
    });
    let running = run(&site, Consumer::group(site.group("all")).handler(slow).concurrency(2));
    until(&started, 2).await;
    running.shutdown.drain(PATIENCE);
    let mut other = site.join("all", false).await;
    let early = if harness.members_own_lanes() {
        // What shares a lane with a running handler waits for it.
        other.handle_all().await.len()
    } else {
        other.handle(18).await.len()
    };
    let least = usize::from(!harness.lanes_leave_together());
    assert!((least..=18).contains(&early), "{early} of what had not started are given back");
    assert!(!running.task.is_finished(), "two handlers still run");
    finish.send_replace(true);
    timeout(PATIENCE, running.task).await.expect("the drain ends").expect("and well");
    assert_eq!(other.handle(18 - early).await.len(), 18 - early, "the others come as well");
    other.stays_quiet().await;
}

/// One key fails all the time; the others are handled as if it were not there, and nothing of the
/// key is handled before the failing message.
pub async fn a_poisoned_key_does_not_stop_the_others(harness: &impl BrokerHarness) {
    let site = Site::with_ordered_groups(harness, &["all"]).await;
    let capabilities = site.broker.capabilities();
    if !capabilities.ordered {
        return;
    }
    let (handled, mut results) = mpsc::unbounded_channel::<String>();
    let handler = With(move |incoming: Incoming| {
        let handled = handled.clone();
        async move {
            if text(&incoming) == "poison" {
                return Err(Fail::retry("always"));
            }
            let _ = handled.send(incoming.message.key.clone());
            Ok(())
        }
    });
    let policy =
        RetryPolicy::exponential(Duration::from_secs(3), Duration::from_secs(60)).attempts(9);
    let consumer = Consumer::group(site.group("all")).handler(handler).ordered().retry(policy);
    // With fewer credits than followers, a key that is held here would stop everything.
    let waits_there = capabilities.holds_keys
        && capabilities.counts_attempts
        && !capabilities.retry_delay_max.is_zero();
    let credits = if waits_there { 8 } else { 64 };
    let running = run(&site, consumer.concurrency(4).credits(credits));
    site.publish(&[("bad", "poison")]).await;
    for _ in 0..20 {
        site.publish(&[("bad", "behind"), ("good", "fine")]).await;
    }
    for _ in 0..20 {
        // Some of the tries are made where the message is, for two seconds at most.
        let key = timeout(Duration::from_secs(4), results.recv()).await;
        assert_eq!(key.expect("the other key goes on").as_deref(), Some("good"));
    }
    assert!(timeout(QUIET, results.recv()).await.is_err(), "the poisoned key waits");
    running.drain(Duration::from_millis(200)).await;
}

/// The policy's number of attempts is exact, however they are divided between tries here and at the
/// broker; then the message is a dead letter that says so.
pub async fn retries_end_in_a_dead_letter_after_the_last_attempt(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    if !site.broker.capabilities().counts_attempts && site.parking.is_none() {
        return;
    }
    let (tried, mut attempts) = mpsc::unbounded_channel::<u32>();
    let handler = With(move |incoming: Incoming| {
        let _ = tried.send(incoming.attempt);
        std::future::ready(Err(Fail::retry("no luck")))
    });
    let policy =
        RetryPolicy::exponential(Duration::from_millis(10), Duration::from_millis(50)).attempts(8);
    let consumer = Consumer::group(site.group("all")).handler(handler).retry(policy);
    let running = run(&site, consumer);
    let sent = site.publish(&[("k", "hopeless")]).await.remove(0);
    for attempt in 1..=8 {
        let next = timeout(PATIENCE, attempts.recv()).await.expect("the next attempt comes");
        assert_eq!(next, Some(attempt));
    }
    assert!(timeout(QUIET, attempts.recv()).await.is_err(), "there is no ninth attempt");
    let keeper = site.parking.as_ref().unwrap_or(&site.broker);
    if let Some(letters) = keeper.dead_letters() {
        let filter = DeadFilter::group(site.group("all"));
        let kept = letters.list(&filter, None, 10).await.expect("the list is read");
        assert_eq!(kept.len(), 1);
        let death = kept[0].deaths.last().expect("a death");
        assert_eq!((kept[0].message.id, death.code.as_str()), (sent.id, "attempts"));
        assert_eq!((death.attempts, death.error.as_str()), (8, "no luck"));
    }
    running.drain(PATIENCE).await;
}
