//! Carries out what the keeper decides: asks a registry, and shows callers the set that is kept.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use antiphon_core::{Retry, RetryPolicy, retry};
use antiphon_telemetry::Telemetry;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::keeper::{Input, Known, Settings};
use crate::metrics::{self, Counted};
use crate::{Answers, RegistryError, Snapshot};

/// The waits between tries of a registry that does not answer.
const BACKOFF: RetryPolicy =
    RetryPolicy::exponential(Duration::from_millis(100), Duration::from_secs(10));
/// Failures that are less apart than this are one outage, whatever was answered in between: a registry
/// that answers each question and then cuts what follows must not be asked at the rate of the first wait.
const CALM: Duration = Duration::from_secs(30);

/// The instances of one target, kept up to date in the background for as long as somebody has one of
/// these. Cheap to clone; clones see the same set.
#[derive(Clone, Debug)]
pub struct Watch {
    snapshots: watch::Receiver<Snapshot>,
    shared: Arc<Shared>,
}

/// What the driver and those who watch share, besides the sets.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Rung when a caller suspects that the set is out of date.
    asked: Notify,
    trust: Mutex<Trust>,
    /// How many instances callers have.
    instances: AtomicUsize,
}

impl Shared {
    pub(crate) fn trust(&self) -> Trust {
        self.trust.lock().clone()
    }

    pub(crate) fn instances(&self) -> usize {
        self.instances.load(Relaxed)
    }
}

/// How far what callers have can be trusted.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// When the registry last agreed with it; `None` before its first answer. Its age is what
    /// operators watch.
    pub agreed: Option<Instant>,
    /// Whether callers have instances that the registry does not name any more.
    pub doubting: bool,
    /// Why the last try failed, if it did.
    pub trouble: Option<Arc<str>>,
}

impl Watch {
    /// Watches on the runtime that is current here. `name` is for the logs.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start(name: impl Into<String>, answers: Box<dyn Answers>, settings: Settings) -> Self {
        Self::launch(name.into(), answers, settings, None)
    }

    /// The same; what is known, and how the registry answers, is shown in the metrics.
    pub(crate) fn launch(
        name: String,
        answers: Box<dyn Answers>,
        settings: Settings,
        telemetry: Option<&Telemetry>,
    ) -> Self {
        let (sender, snapshots) = watch::channel(Snapshot::unknown());
        let shared = Arc::new(Shared {
            asked: Notify::new(),
            trust: Mutex::new(Trust::default()),
            instances: AtomicUsize::new(0),
        });
        let counted = telemetry.map(|telemetry| metrics::watched(telemetry, &name, &shared));
        let driver = Driver {
            name,
            counted: counted.unwrap_or_default(),
            settings,
            known: Known::nothing(),
            sender,
            shared: Arc::clone(&shared),
            fresh: true,
            failures: 0,
            outage: None,
        };
        tokio::spawn(driver.run(answers));
        Self { snapshots, shared }
    }

    /// What is known now. Takes no lock that anybody holds for long.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshots.borrow().clone()
    }

    /// Waits for another set than the one that this watch saw last, and yields it.
    ///
    /// # Cancel safety
    /// Safe: a set that was not yielded is yielded by the next call.
    pub async fn changed(&mut self) -> Snapshot {
        if self.snapshots.changed().await.is_err() {
            // Only when the runtime ends: nothing changes any more.
            std::future::pending::<()>().await;
        }
        self.snapshots.borrow_and_update().clone()
    }

    /// Waits until the registry has answered once, and yields what is known then, be it nobody.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost.
    pub async fn known(&mut self) -> Snapshot {
        if self.snapshots.wait_for(Snapshot::is_known).await.is_err() {
            std::future::pending::<()>().await;
        }
        self.snapshots.borrow_and_update().clone()
    }

    /// Waits until there is somebody to call, and yields all of them.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost.
    pub async fn populated(&mut self) -> Snapshot {
        if self.snapshots.wait_for(|known| !known.instances.is_empty()).await.is_err() {
            std::future::pending::<()>().await;
        }
        self.snapshots.borrow_and_update().clone()
    }

    /// Says that the set seems out of date: an instance could not be connected to, for example. The
    /// registry is asked again, at most once in five seconds however often this is called, and not
    /// while it takes its time to tell everything anyway.
    pub fn suspect(&self) {
        self.shared.asked.notify_one();
    }

    /// How far the set can be trusted.
    #[must_use]
    pub fn trust(&self) -> Trust {
        self.shared.trust()
    }
}

struct Driver {
    name: String,
    counted: Counted,
    settings: Settings,
    known: Known,
    sender: watch::Sender<Snapshot>,
    shared: Arc<Shared>,
    /// Whether the question that is running, or comes next, asks afresh: it is what a look would be.
    fresh: bool,
    /// Of the current outage, or the last one.
    failures: u32,
    outage: Option<Outage>,
}

/// What is known of an outage.
#[derive(Clone, Copy, Debug)]
struct Outage {
    last: Instant,
    /// Whether it was said that it is over.
    over: bool,
}

/// What ends a wait.
enum Woken {
    Answer(Result<Vec<crate::Instance>, RegistryError>),
    Look,
    Unwatched,
}

impl Driver {
    async fn run(mut self, mut answers: Box<dyn Answers>) {
        let mut wake = None;
        let mut not_before = Instant::now();
        loop {
            match self.wait(&mut *answers, not_before, &mut wake).await {
                Woken::Unwatched => return,
                Woken::Look => {
                    answers.look_again();
                    self.fresh = true;
                    not_before = Instant::now();
                }
                Woken::Answer(Ok(instances)) => {
                    self.fresh = false;
                    self.recovered();
                    wake = self.step(Input::Answer(instances)).1;
                    not_before = Instant::now();
                }
                Woken::Answer(Err(error)) => {
                    self.fresh = true;
                    wake = self.step(Input::Failed).1;
                    not_before = Instant::now() + self.failed(&error);
                }
            }
        }
    }

    /// Waits for the next answer; questions of callers meanwhile do not disturb it, unless it is time
    /// to look again. A registry that takes its time is not cut for that: it would never answer.
    async fn wait(
        &mut self,
        answers: &mut dyn Answers,
        not_before: Instant,
        wake: &mut Option<Instant>,
    ) -> Woken {
        let mut next = pin!(async {
            sleep_until(not_before).await;
            answers.next().await
        });
        let shared = Arc::clone(&self.shared);
        let sender = self.sender.clone();
        loop {
            let tick = async {
                match *wake {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let input = tokio::select! {
                biased;
                () = sender.closed() => return Woken::Unwatched,
                answer = &mut next => return Woken::Answer(answer),
                () = shared.asked.notified() => Input::Asked,
                () = tick => Input::Tick,
            };
            let (look, at) = self.step(input);
            *wake = at;
            if look && !self.fresh {
                return Woken::Look;
            }
        }
    }

    /// One step of the keeper; whether to look again, and when to come back.
    fn step(&mut self, input: Input) -> (bool, Option<Instant>) {
        let doubted = self.known.is_doubting();
        let decision = self.settings.step(&mut self.known, input, Instant::now());
        if let Some(snapshot) = decision.publish {
            let (version, instances) = (snapshot.version, snapshot.instances.len());
            tracing::debug!(target = self.name, version, instances, "instances changed");
            self.shared.instances.store(instances, Relaxed);
            self.counted.changes.inc();
            self.sender.send_replace(snapshot);
        }
        let doubting = self.known.is_doubting();
        if doubting && !doubted {
            tracing::warn!(
                target = self.name,
                instances = self.known.snapshot().instances.len(),
                "the registry has lost instances at once, or all of them; callers keep them until it \
                 has said so for long enough"
            );
        }
        let mut trust = self.shared.trust.lock();
        trust.agreed = self.known.agreed();
        trust.doubting = doubting;
        (decision.look, decision.wake)
    }

    fn recovered(&mut self) {
        if let Some(outage) = self.outage.as_mut().filter(|outage| !outage.over) {
            outage.over = true;
            tracing::info!(
                target = self.name,
                failures = self.failures,
                "the registry answers again"
            );
        }
        self.shared.trust.lock().trouble = None;
    }

    /// Remembers a failure; how long to wait.
    fn failed(&mut self, error: &RegistryError) -> Duration {
        let words = error.chain();
        let now = Instant::now();
        let over = match self.outage {
            Some(outage) if now < outage.last + CALM => outage.over,
            _ => {
                self.failures = 0;
                false
            }
        };
        self.outage = Some(Outage { last: now, over });
        self.failures = self.failures.saturating_add(1);
        self.counted.failures.inc();
        let instances = self.known.snapshot().instances.len();
        // Once per outage: what goes on is told by the age of the set.
        if error.is_refused() && self.failures == 1 {
            tracing::error!(
                target = self.name,
                error = words,
                instances,
                "the instances cannot be told; callers keep those that were known"
            );
        } else if self.failures == 1 {
            tracing::warn!(
                target = self.name,
                error = words,
                instances,
                "the registry does not answer; callers keep the instances that were known"
            );
        } else {
            tracing::debug!(target = self.name, error = words, "the registry does not answer");
        }
        self.shared.trust.lock().trouble = Some(words.into());
        match BACKOFF.decide(self.failures, Retry::Outage, fastrand::f64()) {
            retry::Decision::RetryAfter(wait) => wait,
            retry::Decision::GiveUp => BACKOFF.delay_max,
        }
    }
}

#[cfg(test)]
mod tests;
