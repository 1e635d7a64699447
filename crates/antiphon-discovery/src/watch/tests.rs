//! The driver, over a registry that says what it is told, in simulated time.

use std::collections::VecDeque;

use antiphon_core::BoxFuture;
use antiphon_telemetry::metrics::Exposition;
use tokio::time::advance;

use super::*;
use crate::Instance;

const SECOND: Duration = Duration::from_secs(1);

/// A registry of one name.
#[derive(Clone, Default)]
struct Registry(Arc<Mutex<Inner>>, Arc<Notify>);

#[derive(Default)]
struct Inner {
    ports: Vec<u16>,
    down: bool,
    /// Answers that were never asked for.
    news: VecDeque<()>,
    looks: usize,
}

struct Told {
    registry: Registry,
    again: bool,
}

impl Registry {
    fn watch(&self) -> Watch {
        let answers = Told { registry: self.clone(), again: true };
        Watch::start("test", Box::new(answers), Settings::default())
    }

    fn recorded(&self, telemetry: &Telemetry) -> Watch {
        let answers = Told { registry: self.clone(), again: true };
        let settings = Settings::default();
        Watch::launch("etcd:///test".into(), Box::new(answers), settings, Some(telemetry))
    }

    fn set(&self, ports: &[u16]) {
        let mut inner = self.0.lock();
        inner.ports = ports.to_vec();
        inner.news.push_back(());
        self.1.notify_one();
    }

    fn down(&self, down: bool) {
        self.0.lock().down = down;
        self.1.notify_one();
    }

    fn looks(&self) -> usize {
        self.0.lock().looks
    }
}

impl Answers for Told {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, RegistryError>> {
        Box::pin(async move {
            loop {
                {
                    let mut inner = self.registry.0.lock();
                    if inner.down {
                        self.again = true;
                        return Err(RegistryError::silent("the registry is down"));
                    }
                    if inner.news.pop_front().is_some() || self.again {
                        self.again = false;
                        inner.looks += 1;
                        let at = |port: &u16| format!("a:{port}").parse().unwrap();
                        return Ok(inner.ports.iter().map(at).map(Instance::new).collect());
                    }
                }
                self.registry.1.notified().await;
            }
        })
    }

    fn look_again(&mut self) {
        self.again = true;
    }
}

fn ports(snapshot: &Snapshot) -> Vec<u16> {
    snapshot.instances.iter().map(|instance| instance.address.port).collect()
}

/// Lets `time` pass in small steps, with everything that happens in it.
async fn pass(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        advance(SECOND / 10).await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn callers_see_sets_and_how_far_they_can_be_trusted() {
    let registry = Registry::default();
    let mut watch = registry.watch();
    assert!(!watch.snapshot().is_known());
    assert_eq!(ports(&watch.known().await), Vec::<u16>::new());
    registry.set(&[1, 2]);
    assert_eq!(ports(&watch.populated().await), [1, 2]);
    let mut other = watch.clone();
    registry.set(&[1, 2, 3]);
    assert_eq!(ports(&watch.changed().await), [1, 2, 3]);
    assert_eq!(ports(&other.changed().await), [1, 2, 3]);
    registry.down(true);
    pass(SECOND).await;
    let trust = watch.trust();
    assert!(trust.trouble.is_some_and(|words| words.contains("down")));
    assert!(trust.agreed.is_some() && !trust.doubting);
    registry.down(false);
    pass(20 * SECOND).await;
    assert!(watch.trust().trouble.is_none());
}

/// What the keeper's table says, with the driver, the waits and the looks: ten minutes without the
/// registry, which then has forgotten everything and learns it again.
#[tokio::test(start_paused = true)]
async fn a_registry_that_is_away_and_forgets_takes_nobody_away() {
    const ALL: [u16; 5] = [1, 2, 3, 4, 5];
    let registry = Registry::default();
    registry.set(&ALL);
    let mut watch = registry.watch();
    watch.populated().await;
    registry.down(true);
    for _ in 0..600 {
        pass(SECOND).await;
        assert_eq!(ports(&watch.snapshot()), ALL);
    }
    assert!(watch.trust().agreed.unwrap().elapsed() >= 600 * SECOND);
    registry.set(&[]);
    registry.down(false);
    for back in 0..=ALL.len() {
        registry.set(&ALL[..back]);
        for _ in 0..5 {
            pass(SECOND).await;
            assert_eq!(ports(&watch.snapshot()), ALL, "with {back} of them back");
        }
    }
    let trust = watch.trust();
    assert!(!trust.doubting && trust.trouble.is_none());
    assert_eq!(watch.snapshot().version, 1, "callers were never disturbed");
}

#[tokio::test(start_paused = true)]
async fn a_great_loss_is_confirmed_by_looking_again() {
    let registry = Registry::default();
    registry.set(&[1, 2, 3]);
    let mut watch = registry.watch();
    watch.populated().await;
    registry.set(&[3]);
    pass(SECOND).await;
    assert_eq!(ports(&watch.snapshot()), [1, 2, 3]);
    assert!(watch.trust().doubting);
    pass(2 * SECOND).await;
    assert_eq!(ports(&watch.snapshot()), [3]);
}

#[tokio::test(start_paused = true)]
async fn many_suspicions_are_few_questions() {
    let registry = Registry::default();
    registry.set(&[1]);
    let mut watch = registry.watch();
    watch.populated().await;
    let before = registry.looks();
    for _ in 0..100 {
        watch.suspect();
        pass(SECOND / 10).await;
    }
    let looks = registry.looks() - before;
    assert!((2..=3).contains(&looks), "{looks} in ten seconds");
}

/// Takes longer for each question than callers wait before the next look.
struct Slow {
    again: bool,
    fails: bool,
}

impl Answers for Slow {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, RegistryError>> {
        Box::pin(async move {
            if !self.again {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(7 * SECOND).await;
            if self.fails {
                return Err(RegistryError::silent("it hangs"));
            }
            self.again = false;
            Ok(vec![Instance::new("a:1".parse().unwrap())])
        })
    }

    fn look_again(&mut self) {
        self.again = true;
    }
}

#[tokio::test(start_paused = true)]
async fn suspicions_do_not_cut_a_slow_answer() {
    for fails in [false, true] {
        let slow = Slow { again: true, fails };
        let watch = Watch::start("test", Box::new(slow), Settings::default());
        let begun = Instant::now();
        let mut agreed = Vec::new();
        while begun.elapsed() < 60 * SECOND {
            watch.suspect();
            tokio::time::sleep(SECOND / 10).await;
            agreed.extend(watch.trust().agreed);
        }
        agreed.dedup();
        if fails {
            assert!(watch.trust().trouble.is_some_and(|words| words.contains("hangs")));
        } else {
            assert_eq!(ports(&watch.snapshot()), [1]);
            assert!(agreed.len() >= 6, "it answered {} times in a minute", agreed.len());
        }
    }
}

/// Each question is answered, and what follows it is cut.
struct Cut {
    cut: bool,
    questions: Arc<Mutex<Vec<Instant>>>,
}

impl Answers for Cut {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, RegistryError>> {
        Box::pin(async move {
            self.cut = !self.cut;
            if !self.cut {
                return Err(RegistryError::silent("cut"));
            }
            self.questions.lock().push(Instant::now());
            Ok(vec![Instance::new("a:1".parse().unwrap())])
        })
    }

    fn look_again(&mut self) {}
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_answers_and_is_cut_each_time_is_asked_less_and_less() {
    let questions = Arc::<Mutex<Vec<Instant>>>::default();
    let cut = Cut { cut: false, questions: Arc::clone(&questions) };
    let watch = Watch::start("test", Box::new(cut), Settings::default());
    tokio::time::sleep(60 * SECOND).await;
    let count = questions.lock().len();
    assert!((5..=20).contains(&count), "{count} questions in a minute");
    assert_eq!(ports(&watch.snapshot()), [1]);
}

#[tokio::test(start_paused = true)]
async fn an_unwatched_name_is_not_asked_for_any_more() {
    let registry = Registry::default();
    let mut watch = registry.watch();
    watch.known().await;
    let held = Arc::downgrade(&registry.0);
    drop((watch, registry));
    pass(SECOND).await;
    assert_eq!(held.strong_count(), 0);
}

/// The value of a metric of the one target.
fn value(telemetry: &Telemetry, name: &str) -> Option<f64> {
    let metrics = telemetry.metrics(Exposition::OpenMetrics);
    let begin = format!("{name}{{server_address=\"etcd:///test\"}} ");
    let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(&begin));
    let value = lines.next().map(|value| value.parse().unwrap());
    assert_eq!(lines.next(), None, "{name} is there twice");
    value
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_what_is_known_and_how_far_it_can_be_trusted() {
    let telemetry = Telemetry::new();
    let registry = Registry::default();
    registry.down(true);
    let mut watch = registry.recorded(&telemetry);
    pass(SECOND).await;
    let all = || {
        ["instances", "answers", "doubting", "changes_total"]
            .map(|name| value(&telemetry, &format!("discovery_{name}")).unwrap())
    };
    let age = || value(&telemetry, "discovery_agreed_age_seconds");
    let failures = || value(&telemetry, "discovery_failures_total").unwrap();
    assert_eq!((all(), age()), ([0.0, 0.0, 0.0, 0.0], None), "nothing is known yet");
    assert!(failures() >= 2.0);

    registry.set(&[1, 2, 3]);
    registry.down(false);
    watch.populated().await;
    let known_at = Instant::now();
    assert_eq!(all(), [3.0, 1.0, 0.0, 1.0]);
    registry.set(&[3]);
    pass(SECOND).await;
    assert_eq!(all(), [3.0, 1.0, 1.0, 1.0], "two are missed, and kept");
    let old = known_at.elapsed().as_secs_f64();
    assert!(age().is_some_and(|age| (old - 0.1..=old).contains(&age)), "{:?}", age());
    pass(2 * SECOND).await;
    assert_eq!(all(), [1.0, 1.0, 0.0, 2.0], "it stayed with that");

    // While settings change a target is watched twice.
    let before = failures();
    let other = registry.recorded(&telemetry);
    pass(SECOND).await;
    registry.down(true);
    pass(SECOND).await;
    assert_eq!(all(), [1.0, 0.0, 0.0, 3.0]);
    assert!(failures() > before);
    drop((watch, other));
    pass(SECOND).await;
    assert_eq!(value(&telemetry, "discovery_instances"), None, "nobody watches it");
}
