//! The engine against a broker that does what the test says, in paused time.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use antiphon_core::{BoxFuture, Clock, Context, RetryPolicy};
use antiphon_messaging::{
    AnyBroker, Consumer, Fail, Fetched, Handler, Incoming, Messaging, Settlement,
};
use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::Exposition;
use parking_lot::Mutex;
use support::{KIND, Running, Script, With, able, message, run};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};

const SECOND: Duration = Duration::from_secs(1);

fn group() -> Consumer {
    Consumer::group("tested")
}

/// Handlers wait at the gate until it opens.
fn gated(gate: &watch::Sender<bool>) -> impl Handler {
    let open = gate.subscribe();
    With(move |_| {
        let mut open = open.clone();
        async move {
            let _ = open.wait_for(|open| *open).await;
            Ok(())
        }
    })
}

fn failing(fail: impl Fn() -> Fail + Send + Sync + 'static) -> impl Handler {
    With(move |_| std::future::ready(Err(fail())))
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn short_retries_are_made_here_and_the_broker_is_told_how_many() {
    let script = Script::new(able());
    let running = run(&script, group().handler(failing(|| Fail::retry("no"))));
    let begun = Instant::now();
    script.deliver(&[(1, "k")]).await;
    let settled = script.settled(1).await;
    let [(1, Settlement::Retry { after, attempts: 3 })] = settled.as_slice() else {
        panic!("{settled:?}")
    };
    assert!(*after >= Duration::from_millis(200), "{after:?}");
    assert!((150..=320).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    running.drain().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_not_counted_and_a_long_wait_goes_to_the_broker_at_once() {
    let script = Script::new(able());
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    let running = run(
        &script,
        group().handler(failing(move || match count.fetch_add(1, Ordering::SeqCst) {
            0..3 => Fail::defer("database away"),
            _ => Fail::retry_after(60 * SECOND, "later"),
        })),
    );
    script.deliver(&[(1, "k")]).await;
    let settled = script.settled(1).await;
    assert!(matches!(settled[..], [(1, Settlement::Retry { attempts: 0, .. })]), "{settled:?}");
    script.deliver(&[(2, "k")]).await;
    let settled = script.settled(1).await;
    let retry = Settlement::Retry { after: 60 * SECOND, attempts: 1 };
    assert_eq!(settled, [(2, retry)]);
    running.drain().await;
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_waiting_message_goes_back_also_when_it_comes_late() {
    let script = Script::new(able());
    let handler = With(|incoming: Incoming| async move {
        match incoming.message.key.as_str() {
            "bad" => Err(Fail::retry_after(60 * SECOND, "later")),
            _ => Ok(()),
        }
    });
    let running = run(&script, group().handler(handler).ordered());
    script.deliver(&[(1, "bad"), (2, "bad"), (3, "good"), (4, "bad")]).await;
    let settled = script.settled(4).await;
    let bad: Vec<_> = settled.iter().filter(|(token, _)| *token != 3).cloned().collect();
    let retry = Settlement::Retry { after: 60 * SECOND, attempts: 1 };
    assert_eq!(bad, [(1, retry), (2, Settlement::Release), (4, Settlement::Release)]);
    assert!(settled.contains(&(3, Settlement::Ack)));
    script.deliver(&[(5, "bad")]).await;
    // Not released: a broker that does not know of the wait would hand it out again at once.
    let wait = Settlement::Retry { after: 60 * SECOND, attempts: 0 };
    assert_eq!(script.settled(1).await, [(5, wait)]);
    tokio::time::sleep(60 * SECOND).await;
    script.deliver(&[(6, "bad")]).await;
    assert!(matches!(script.settled(1).await[..], [(6, Settlement::Retry { .. })]));
    running.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_and_a_time_out_are_failures_like_others() {
    let script = Script::new(able());
    let handler = With(|incoming: Incoming| async move {
        match incoming.message.key.as_str() {
            "panics" => panic!("boom"),
            "hangs" => std::future::pending().await,
            _ => Ok(()),
        }
    });
    let policy = RetryPolicy::none();
    let running = run(&script, group().handler(handler).retry(policy).timeout(2 * SECOND));
    script.deliver(&[(1, "panics"), (2, "hangs"), (3, "fine")]).await;
    let mut settled = script.settled(3).await;
    settled.sort_by_key(|(token, _)| *token);
    let [(_, Settlement::Dead(panicked)), (_, Settlement::Dead(hung)), (_, Settlement::Ack)] =
        &settled[..]
    else {
        panic!("{settled:?}")
    };
    assert!(panicked.error.contains("panicked: boom"), "{panicked:?}");
    assert!(hung.error.contains("longer than 2s"), "{hung:?}");
    assert_eq!((hung.code, hung.attempts), ("attempts", 1));
    running.drain().await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_command_is_dead_without_being_tried() {
    let script = Script::new(able());
    let tried = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&tried);
    let handler = With(move |_| {
        flag.store(true, Ordering::SeqCst);
        std::future::ready(Ok(()))
    });
    let running = run(&script, group().handler(handler));
    let mut late = message("k");
    let wall = Clock::system().now();
    late.inject_deadline(&Context::root().with_deadline(Instant::now()), wall);
    script.feed(Fetched::Deliveries(vec![script.delivery(1, late, 3, 0)])).await;
    let settled = script.settled(1).await;
    let [(1, Settlement::Dead(reason))] = &settled[..] else { panic!("{settled:?}") };
    assert_eq!((reason.code, reason.attempts), ("expired", 2));
    assert!(!tried.load(Ordering::SeqCst));
    running.drain().await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_kind_is_acknowledged_without_the_handler() {
    let script = Script::new(able());
    let running = run(&script, group().handler(failing(|| Fail::permanent("must not run"))));
    let mut other = message("k");
    other.kind = "test.v2.Unheard".into();
    script.feed(Fetched::Deliveries(vec![script.delivery(1, other, 1, 0)])).await;
    assert_eq!(script.settled(1).await, [(1, Settlement::Ack)]);
    running.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_source_cancels_what_runs_and_is_joined_anew() {
    let script = Script::new(able());
    let (gate, _) = watch::channel(false);
    let running = run(&script, group().handler(gated(&gate)));
    script.deliver(&[(1, "a"), (2, "b")]).await;
    settle().await;
    assert!(script.nothing_settled());
    script.refuse_next(true);
    script.feed(Fetched::Lost("connection reset".into())).await;
    settle().await;
    let released = script.settled(2).await;
    assert!(released.iter().all(|(_, settlement)| *settlement == Settlement::Release));
    assert!(!running.health.is_ready());
    script.subscribed().await;
    settle().await;
    assert_eq!(script.subscriptions(), 2);
    assert!(running.health.is_ready(), "{:?}", running.health.parts());
    gate.send_replace(true);
    script.deliver(&[(3, "a")]).await;
    assert_eq!(script.settled(1).await, [(3, Settlement::Ack)]);
    running.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_ends_the_consumer_with_its_reason() {
    let script = Script::new(able());
    script.refuse_next(false);
    let Running { task, shutdown: _shutdown, .. } =
        run(&script, group().handler(failing(|| Fail::retry("never"))));
    let error = task.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the broker says no");
}

#[tokio::test(start_paused = true)]
async fn revoked_lanes_are_given_back_when_their_handlers_have_ended() {
    let script = Script::new(able());
    let (gate, _) = watch::channel(false);
    let running = run(&script, group().handler(gated(&gate)).ordered().concurrency(2));
    let deliveries = [(1, "a", 3), (2, "a", 3), (3, "b", 4), (4, "c", 3), (5, "d", 4)]
        .into_iter()
        .map(|(token, key, lane)| script.delivery(token, message(key), 1, lane));
    script.feed(Fetched::Deliveries(deliveries.collect())).await;
    settle().await;
    let (done, mut given_back) = oneshot::channel();
    script.feed(Fetched::Revoked { lanes: vec![3, 9], done }).await;
    let released = script.settled(2).await;
    assert_eq!(released, [(4, Settlement::Release), (2, Settlement::Release)]);
    assert!(timeout(SECOND, &mut given_back).await.is_err(), "a handler of lane 3 still runs");
    gate.send_replace(true);
    assert!(timeout(SECOND, given_back).await.unwrap().is_err(), "the sender is dropped");
    let mut acked = script.settled(3).await;
    acked.sort_by_key(|(token, _)| *token);
    let acked: Vec<u64> = acked.into_iter().map(|(token, _)| token).collect();
    assert_eq!(acked, [1, 3, 5]);
    running.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_cut_releases_what_still_runs() {
    let script = Script::new(able());
    let (gate, _) = watch::channel(false);
    let running = run(&script, group().handler(gated(&gate)).concurrency(1));
    script.deliver(&[(1, "a"), (2, "b")]).await;
    settle().await;
    let begun = Instant::now();
    running.shutdown.drain(3 * SECOND);
    assert_eq!(script.settled(1).await, [(2, Settlement::Release)]);
    running.task.await.unwrap().unwrap();
    assert_eq!(begun.elapsed(), 3 * SECOND);
    assert_eq!(script.settled(1).await, [(1, Settlement::Release)]);
}

#[tokio::test(start_paused = true)]
async fn credits_are_never_exceeded_and_come_back() {
    let script = Script::new(able());
    let (gate, _) = watch::channel(false);
    let running = run(&script, group().handler(gated(&gate)).concurrency(2).credits(4));
    script.deliver(&[(1, "a"), (2, "b"), (3, "c")]).await;
    script.deliver(&[(4, "d")]).await;
    settle().await;
    assert_eq!(script.credits_asked(), [4, 1, 0]);
    gate.send_replace(true);
    script.settled(4).await;
    settle().await;
    assert_eq!(script.credits_asked().last(), Some(&4));
    running.drain().await;
}

#[tokio::test(start_paused = true)]
async fn one_free_credit_is_used_while_other_handlers_are_stuck() {
    let script = Script::new(able());
    let handler = With(|incoming: Incoming| async move {
        if incoming.message.key == "stuck" {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(SECOND).await;
        Ok(())
    });
    let running = run(&script, group().handler(handler).concurrency(8).credits(8));
    let stuck: Vec<(u64, &str)> = (1..8).map(|token| (token, "stuck")).collect();
    script.deliver(&stuck).await;
    script.deliver(&[(8, "fine")]).await;
    script.settled(1).await;
    settle().await;
    assert_eq!(script.credits_asked(), [8, 1, 0, 1]);
    running.shutdown.cut();
    running.task.await.unwrap().unwrap();
}

/// Writes down what it gets, whole batches at a time.
struct Batches(Arc<Mutex<Vec<Vec<String>>>>);

impl Handler for Batches {
    fn handles(&self, kind: &str) -> bool {
        kind == KIND
    }

    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>> {
        Box::pin(async {
            self.0.lock().push(vec![incoming.message.key.clone()]);
            Ok(())
        })
    }

    fn handle_batch<'a>(&'a self, batch: &'a [Incoming]) -> BoxFuture<'a, Vec<Result<(), Fail>>> {
        Box::pin(async {
            self.0.lock().push(batch.iter().map(|one| one.message.key.clone()).collect());
            let outcome = |one: &Incoming| match one.message.key.as_str() {
                "bad" => Err(Fail::permanent("bad")),
                _ => Ok(()),
            };
            batch.iter().map(outcome).collect()
        })
    }
}

#[tokio::test(start_paused = true)]
async fn batches_have_different_keys_and_each_message_its_own_outcome() {
    let script = Script::new(able());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let handler = Batches(Arc::clone(&seen));
    let running = run(&script, group().handler(handler).ordered().batch(3).concurrency(1));
    script.deliver(&[(1, "a"), (2, "a"), (3, "bad"), (4, "b"), (5, "c")]).await;
    let mut settled = script.settled(5).await;
    settled.sort_by_key(|(token, _)| *token);
    let dead: Vec<u64> = settled
        .iter()
        .filter(|(_, settlement)| matches!(settlement, Settlement::Dead(_)))
        .map(|(token, _)| *token)
        .collect();
    assert_eq!(dead, [3]);
    assert_eq!(*seen.lock(), [vec!["a", "bad", "b"], vec!["c", "a"]]);
    running.drain().await;
}

/// Panics over any batch with `bad` in it.
struct Touchy(Arc<Mutex<Vec<String>>>);

impl Handler for Touchy {
    fn handles(&self, kind: &str) -> bool {
        kind == KIND
    }

    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>> {
        Box::pin(async {
            let key = &incoming.message.key;
            assert_ne!(key, "bad", "panics every time");
            self.0.lock().push(format!("{key} at attempt {}", incoming.attempt));
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn one_bad_message_does_not_take_its_batch_along() {
    let script = Script::new(able());
    let handled = Arc::new(Mutex::new(Vec::new()));
    let consumer = group()
        .handler(Touchy(Arc::clone(&handled)))
        .batch(8)
        .concurrency(1)
        .retry(RetryPolicy::none());
    let running = run(&script, consumer);
    script.deliver(&[(1, "a"), (2, "bad"), (3, "b")]).await;
    let mut settled = script.settled(3).await;
    settled.sort_by_key(|(token, _)| *token);
    let [(_, Settlement::Ack), (_, Settlement::Dead(reason)), (_, Settlement::Ack)] = &settled[..]
    else {
        panic!("{settled:?}")
    };
    assert_eq!(reason.attempts, 1);
    // What was done before the panic is done again, as always when a handler fails.
    assert_eq!(*handled.lock(), ["a at attempt 1", "a at attempt 1", "b at attempt 1"]);
    running.drain().await;
}

#[tokio::test(start_paused = true)]
async fn middleware_stands_in_the_order_in_which_it_was_added() {
    struct Named(&'static str, Arc<dyn Handler>, Arc<Mutex<Vec<&'static str>>>);
    impl Handler for Named {
        fn handles(&self, kind: &str) -> bool {
            self.1.handles(kind)
        }
        fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>> {
            self.2.lock().push(self.0);
            self.1.handle(incoming)
        }
    }
    let script = Script::new(able());
    let passed: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let named = |name| {
        let passed = Arc::clone(&passed);
        move |inner| -> Arc<dyn Handler> { Arc::new(Named(name, inner, Arc::clone(&passed))) }
    };
    let handler = With(|_| std::future::ready(Ok(())));
    let consumer = group().middleware(named("outer")).middleware(named("inner")).handler(handler);
    let running = run(&script, consumer);
    script.deliver(&[(1, "k")]).await;
    script.settled(1).await;
    assert_eq!(*passed.lock(), ["outer", "inner"]);
    running.drain().await;
}

#[tokio::test(start_paused = true)]
async fn the_senders_context_is_current_in_the_handler() {
    let script = Script::new(able());
    let sender = Context::root().with_correlation_id("order-7");
    let seen: Arc<Mutex<Option<Context>>> = Arc::default();
    let slot = Arc::clone(&seen);
    let handler = With(move |_| {
        let slot = Arc::clone(&slot);
        async move {
            *slot.lock() = Some(Context::current());
            Ok(())
        }
    });
    let running = run(&script, group().handler(handler).timeout(5 * SECOND));
    let mut sent = message("k");
    sent.inject(&sender);
    let id = sent.id.to_string();
    script.feed(Fetched::Deliveries(vec![script.delivery(1, sent, 1, 0)])).await;
    script.settled(1).await;
    let context = seen.lock().take().unwrap();
    assert_eq!(context.trace().trace_id, sender.trace().trace_id);
    assert_eq!(context.correlation_id(), "order-7");
    assert_eq!(context.causation_id(), Some(id.as_str()));
    assert!(context.remaining().unwrap() <= 5 * SECOND);
    running.drain().await;
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_counted_by_group_and_kind() {
    let script = Script::new(able());
    let handler = With(|incoming: Incoming| async move {
        match incoming.message.key.as_str() {
            "dead" => Err(Fail::permanent("no").with_code("decode")),
            "retry" => Err(Fail::retry_after(60 * SECOND, "later")),
            _ => Ok(()),
        }
    });
    let running = run(&script, group().handler(handler));
    script.deliver(&[(1, "a"), (2, "dead"), (3, "retry"), (4, "b")]).await;
    let mut other = message("k");
    other.kind = "anything.at.All".into();
    script.feed(Fetched::Deliveries(vec![script.delivery(5, other, 1, 0)])).await;
    script.settled(5).await;
    let text = running.telemetry.metrics(Exposition::Prometheus);
    for line in [
        r#"messaging_client_consumed_messages_total{group="tested",kind="test.v1.Happened"} 4"#,
        r#"messaging_client_consumed_messages_total{group="tested",kind="other"} 1"#,
        r#"messaging_process_duration_seconds_count{group="tested",kind="test.v1.Happened",outcome="ack"} 2"#,
        r#"messaging_retries_total{group="tested",kind="test.v1.Happened",place="broker"} 1"#,
        r#"messaging_dead_letters_total{group="tested",kind="test.v1.Happened",code="decode"} 1"#,
        r#"messaging_ignored_messages_total{group="tested"} 1"#,
        r#"messaging_in_flight_messages{group="tested"} 0"#,
    ] {
        assert!(text.contains(line), "no {line} in:\n{text}");
    }
    running.drain().await;
}

#[test]
fn what_cannot_work_is_refused_with_the_reason() {
    let build = |capabilities, consumer: Consumer| {
        let broker = AnyBroker::new(Script::new(capabilities));
        let messaging = Messaging::new(broker, Telemetry::new(), antiphon_core::Health::new());
        consumer.build(&messaging).unwrap_err().to_string()
    };
    let handled = || group().handler(With(|_| std::future::ready(Ok(()))));
    assert!(build(able(), group().topic("t")).contains("no handler"));
    assert!(build(able(), handled()).contains("no topic"));
    assert!(build(able(), handled().topic("t").concurrency(0)).contains("at least 1"));
    let mut unordered = able();
    unordered.ordered = false;
    assert!(build(unordered, handled().topic("t").ordered()).contains("order of keys"));
    let mut forgetful = able();
    forgetful.dead_letters = false;
    assert!(build(forgetful, handled().topic("t")).contains("parking broker"));
}
