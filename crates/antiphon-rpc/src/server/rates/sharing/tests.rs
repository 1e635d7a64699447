//! Instances over one store, in virtual time.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use antiphon_core::BoxFuture;
use antiphon_resilience::RateSettings;
use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::Exposition;
use tokio::task::JoinSet;
use tracing::field::Field;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};

use super::*;

const MS: Duration = Duration::from_millis(1);
const TIMEOUT: Duration = Duration::from_millis(20);
const HERE: Client<'_> = Client::Address(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

/// A store in memory, a round trip of two milliseconds away.
#[derive(Default)]
struct Memory {
    used_up: Mutex<HashMap<Vec<u8>, u64>>,
    origin: Mutex<Option<Instant>>,
    asked: Mutex<Vec<(String, u32)>>,
    is_silent: AtomicBool,
    fails: AtomicBool,
    panics: AtomicBool,
}

impl Memory {
    fn asked(&self) -> Vec<(String, u32)> {
        std::mem::take(&mut self.asked.lock())
    }
}

impl RateStore for Memory {
    fn take<'a>(
        &'a self,
        key: &'a [u8],
        rate: RateSettings,
        wanted: u32,
    ) -> BoxFuture<'a, Result<Taken, BoxError>> {
        self.asked.lock().push((String::from_utf8_lossy(key).into_owned(), wanted));
        Box::pin(async move {
            tokio::time::sleep(MS).await;
            if self.is_silent.load(SeqCst) {
                std::future::pending::<()>().await;
            }
            assert!(!self.panics.load(SeqCst), "a store that breaks");
            if self.fails.load(SeqCst) {
                return Err("no connection".into());
            }
            let origin = *self.origin.lock().get_or_insert_with(Instant::now);
            let now = u64::try_from(origin.elapsed().as_nanos()).unwrap();
            let taken = {
                let mut used_up = self.used_up.lock();
                let used_up = used_up.entry(key.to_vec()).or_default();
                let (then, taken) = rate.take(*used_up, now, wanted);
                *used_up = then;
                taken
            };
            tokio::time::sleep(MS).await;
            Ok(taken)
        })
    }
}

/// One instance's limit over a store.
struct Instance {
    rate: Arc<SharedRate>,
    telemetry: Telemetry,
}

impl Instance {
    fn new(memory: &Arc<Memory>, rule: RateRule) -> Self {
        let telemetry = Telemetry::new();
        let sharing = RateSharing::new(Arc::<Memory>::clone(memory), TIMEOUT);
        let now = Instant::now();
        let store = Store::new(&sharing, &ServerMetrics::new(&telemetry), now);
        let rate = Arc::new(SharedRate::new("t.v1.Echo", rule, Arc::new(store), now));
        Self { rate, telemetry }
    }

    fn check(&self, client: Client<'_>) -> Checked {
        self.rate.check(client, Instant::now())
    }

    async fn call(&self, client: Client<'_>) -> Result<(), Duration> {
        match self.check(client) {
            Checked::In => Ok(()),
            Checked::Refused(after) => Err(after),
            Checked::Waits(waiting) => waiting.decided().await,
        }
    }

    fn shows(&self, line: &str) {
        let metrics = self.telemetry.metrics(Exposition::OpenMetrics);
        assert!(metrics.contains(&format!("{line}\n")), "{line}\n{metrics}");
    }
}

fn rule(per_second: f64, burst: u32, per_client: bool) -> RateRule {
    RateRule { rate: RateSettings { per_second, burst }, per_client, shared: true }
}

/// Calls to all instances in turn, all at once: how many are let in.
async fn at_once(instances: &[&Instance], calls: usize) -> usize {
    let mut all = JoinSet::new();
    for n in 0..calls {
        let rate = Arc::clone(&instances[n % instances.len()].rate);
        all.spawn(async move {
            match rate.check(HERE, Instant::now()) {
                Checked::In => true,
                Checked::Refused(_) => false,
                Checked::Waits(waiting) => waiting.decided().await.is_ok(),
            }
        });
    }
    all.join_all().await.into_iter().filter(|is_in| *is_in).count()
}

#[tokio::test(start_paused = true)]
async fn instances_let_in_together_what_the_limit_says() {
    let memory = Arc::new(Memory::default());
    let [one, two] = [(); 2].map(|()| Instance::new(&memory, rule(10.0, 30, false)));
    assert_eq!(at_once(&[&one, &two], 100).await, 30);
    assert!(memory.asked().len() <= 6, "calls that come together ask together");
    // Above the limit the store is left in peace.
    assert_eq!(at_once(&[&one, &two], 1_000).await, 0);
    assert_eq!(memory.asked(), []);
    tokio::time::sleep(MS * 1_001).await;
    assert_eq!(at_once(&[&one, &two], 100).await, 10);
    one.shows("rpc_server_rates_alone 0");
    one.shows("rpc_server_rate_store_asked_total{outcome=\"failed\"} 0");
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_the_store_and_is_told_when_to_come_again() {
    let memory = Arc::new(Memory::default());
    let instance = Instance::new(&memory, rule(10.0, 1, false));
    let begun = Instant::now();
    assert_eq!(instance.call(HERE).await, Ok(()));
    assert_eq!(begun.elapsed(), 2 * MS);
    let after = instance.call(HERE).await.unwrap_err();
    assert!(after > 90 * MS && after <= 100 * MS, "{after:?}");
    assert!(matches!(instance.check(HERE), Checked::Refused(_)), "now it is known");
    tokio::time::sleep(after).await;
    assert_eq!(instance.call(HERE).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn each_client_has_a_key_of_its_own() {
    let memory = Arc::new(Memory::default());
    let [one, two] = [(); 2].map(|()| Instance::new(&memory, rule(0.1, 1, true)));
    for client in [HERE, Client::Named(b"a"), Client::Named(b"127.0.0.1")] {
        assert_eq!(one.call(client).await, Ok(()), "{client:?}");
        assert!(two.call(client).await.is_err(), "{client:?}");
    }
    let mut keys: Vec<_> = memory.asked().into_iter().map(|(key, _)| key).collect();
    keys.dedup();
    let expected = [":address:127.0.0.1", ":client:a", ":client:127.0.0.1"];
    assert_eq!(keys, expected.map(|end| format!("t.v1.Echo{end}")));
}

#[tokio::test(start_paused = true)]
async fn a_silent_store_costs_three_waits_and_then_nothing() {
    let memory = Arc::new(Memory::default());
    let instance = Instance::new(&memory, rule(100.0, 50, false));
    memory.is_silent.store(true, SeqCst);
    let begun = Instant::now();
    // Decided by the limit of the instance itself.
    for _ in 0..50 {
        assert_eq!(instance.call(HERE).await, Ok(()));
    }
    assert_eq!(begun.elapsed(), 3 * TIMEOUT);
    instance.shows("rpc_server_rates_alone 1");
    instance.shows("rpc_server_rate_store_asked_total{outcome=\"failed\"} 3");
    let let_in = at_once(&[&instance], 100).await;
    assert!(let_in < 10, "{let_in}");
    // Nobody waits for the questions that find out whether it is back.
    memory.asked();
    for _ in 0..10 {
        tokio::time::sleep(100 * MS).await;
        assert!(!matches!(instance.check(HERE), Checked::Waits(_)));
    }
    assert!((1..=2).contains(&memory.asked().len()));
}

/// What a test's thread writes to the log.
struct Lines(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: LayerContext<'_, S>) {
        let mut line = format!("{}", event.metadata().level());
        event.record(&mut |field: &Field, value: &dyn fmt::Debug| {
            line.push_str(&format!(" {field}={value:?}"));
        });
        self.0.lock().push(line);
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_says_once_that_the_store_is_away_and_once_that_it_is_back() {
    let lines = Arc::new(Mutex::default());
    let log = tracing_subscriber::registry().with(Lines(Arc::clone(&lines)));
    let _log = tracing::subscriber::set_default(log);
    let memory = Arc::new(Memory::default());
    let instance = Instance::new(&memory, rule(10.0, 20, false));
    for fails in [true, false] {
        memory.fails.store(fails, SeqCst);
        for _ in 0..40 {
            _ = instance.call(HERE).await;
            tokio::time::sleep(50 * MS).await;
        }
    }
    let said = lines.lock().clone();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with("WARN") && said[0].contains("error=no connection"), "{said:?}");
    assert!(said[0].contains("is away: this instance keeps them alone"), "{said:?}");
    assert!(said[1].starts_with("INFO") && said[1].contains("is back"), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_back_is_used_again() {
    let memory = Arc::new(Memory::default());
    let [one, two] = [(); 2].map(|()| Instance::new(&memory, rule(0.1, 20, false)));
    memory.fails.store(true, SeqCst);
    assert_eq!(at_once(&[&one], 100).await, 20, "each by itself");
    assert_eq!(at_once(&[&two], 100).await, 20);
    for _ in 0..3 {
        assert!(one.call(HERE).await.is_err() && two.call(HERE).await.is_err());
    }
    one.shows("rpc_server_rates_alone 1");
    memory.fails.store(false, SeqCst);
    tokio::time::sleep(600 * MS).await;
    assert!(one.call(HERE).await.is_err() && two.call(HERE).await.is_err(), "nobody waits");
    tokio::time::sleep(10 * MS).await;
    one.shows("rpc_server_rates_alone 0");
    // The store knows of nothing that was let in without it.
    let let_in = at_once(&[&one, &two], 100).await;
    assert!((18..=20).contains(&let_in), "{let_in}: two questions found out that it is back");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_nobody_waiting() {
    let memory = Arc::new(Memory::default());
    let instance = Instance::new(&memory, rule(0.1, 5, false));
    let Checked::Waits(first) = instance.check(HERE) else { panic!("nothing is known yet") };
    let Checked::Waits(second) = instance.check(HERE) else { panic!("nothing is known yet") };
    drop(first);
    assert_eq!(second.decided().await, Ok(()));
    assert_eq!(memory.asked().len(), 1);
    // What was taken for the one that went is there for the next.
    assert_eq!(at_once(&[&instance], 10).await, 4);
}

#[tokio::test(start_paused = true)]
async fn what_was_granted_is_kept_for_who_waited_however_busy_its_thread_is() {
    let memory = Arc::new(Memory::default());
    let instance = Instance::new(&memory, rule(0.1, 3, false));
    let waiting: Vec<_> = (0..4)
        .map(|_| match instance.check(HERE) {
            Checked::Waits(waiting) => waiting,
            _ => panic!("nothing is known yet"),
        })
        .collect();
    // The answer came long ago when anybody looks at it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut let_in = Vec::new();
    for one in waiting {
        let_in.push(one.decided().await.is_ok());
    }
    assert_eq!(let_in, [true, true, true, false], "those that came first");
}

#[test]
fn a_runtime_that_ends_takes_no_thread_along() {
    let memory = Arc::new(Memory::default());
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (ended, other) = (runtime(), runtime());
    let handle = ended.handle().clone();
    let instance = handle.block_on(async { Instance::new(&memory, rule(0.1, 1, false)) });
    drop(ended);
    // The question cannot be asked any more.
    let entered = handle.enter();
    let Checked::Waits(waiting) = instance.check(HERE) else { panic!("nothing is known yet") };
    drop(entered);
    assert_eq!(other.block_on(waiting.decided()), Ok(()), "by the limit of the instance");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_breaks_is_done_without() {
    let memory = Arc::new(Memory::default());
    let instance = Instance::new(&memory, rule(0.1, 5, false));
    memory.panics.store(true, SeqCst);
    let begun = Instant::now();
    assert_eq!(at_once(&[&instance], 10).await, 5);
    assert!(begun.elapsed() < TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_too_long_is_limited_by_each_instance_alone() {
    let memory = Arc::new(Memory::default());
    let instance = Instance::new(&memory, rule(0.1, 2, true));
    let client = Client::Named(&[b'x'; CLIENT_BYTES_MAX + 1]);
    assert!(instance.call(client).await.is_ok() && instance.call(client).await.is_ok());
    assert!(instance.call(client).await.is_err());
    assert_eq!(memory.asked(), []);
    // It does not matter where there are no names.
    let [one, two] = [(); 2].map(|()| Instance::new(&memory, rule(0.1, 2, false)));
    assert!(one.call(client).await.is_ok() && two.call(client).await.is_ok());
    assert!(one.call(client).await.is_err() && two.call(HERE).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn made_up_clients_take_no_memory() {
    let memory = Arc::new(Memory::default());
    let mut instance = Instance::new(&memory, rule(10.0, 2, true));
    Arc::get_mut(&mut instance.rate).unwrap().keys_per_shard = 5;
    let kept = || instance.rate.shards.iter().map(|shard| shard.lock().keys.len()).sum::<usize>();
    for n in 0..1_000_u32 {
        // Those for whom there is no room are limited by the instance alone.
        _ = instance.call(Client::Named(&n.to_le_bytes())).await;
        assert!(kept() <= 5 * SHARDS);
    }
    assert!(memory.asked().len() >= 5 * SHARDS);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Room is made when somebody needs it.
    for n in 0..100_u32 {
        assert_eq!(instance.call(Client::Named(&n.to_be_bytes())).await, Ok(()));
    }
    assert!(memory.asked().len() >= 60, "those from before are forgotten");
}
