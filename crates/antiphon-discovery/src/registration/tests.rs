//! The driver, over a registrar that does what it is told, in simulated time.

use antiphon_core::BoxFuture;
use antiphon_telemetry::metrics::Exposition;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A registrar that holds one instance.
#[derive(Clone, Default)]
struct Desk(Arc<Mutex<Inner>>, Arc<Notify>);

#[derive(Default)]
struct Inner {
    written: Option<Instance>,
    writes: usize,
    removes: usize,
    /// How many removals fail from now on, and whether they are refused.
    failing: usize,
    refused: bool,
    down: bool,
    hangs: bool,
    /// Somebody else removes what is written at once.
    taken: bool,
}

impl Desk {
    fn start(&self) -> Registration {
        let instance = Instance::new("a:1".parse().unwrap());
        Registration::start(self, "orders", instance, RegistrationSettings::default())
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.0.lock());
        self.1.notify_waiters();
    }

    fn written(&self) -> Option<Instance> {
        self.0.lock().written.clone()
    }
}

impl Registrar for Desk {
    fn entry(&self, _service: &str) -> Box<dyn Entry> {
        Box::new(self.clone())
    }
}

impl Entry for Desk {
    fn hold<'a>(
        &'a mut self,
        instance: &'a Instance,
        held: &'a Held,
    ) -> BoxFuture<'a, RegistryError> {
        Box::pin(async move {
            {
                let mut inner = self.0.lock();
                if inner.down {
                    return RegistryError::silent("down");
                }
                inner.written = Some(instance.clone());
                inner.writes += 1;
            }
            held.yes();
            if self.0.lock().taken {
                return RegistryError::lost("taken");
            }
            loop {
                self.1.notified().await;
                let inner = self.0.lock();
                if inner.down {
                    return RegistryError::silent("down");
                }
                if inner.written.is_none() {
                    return RegistryError::lost("forgotten");
                }
            }
        })
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            if self.0.lock().hangs {
                std::future::pending::<()>().await;
            }
            let mut inner = self.0.lock();
            inner.removes += 1;
            if inner.refused {
                return Err(RegistryError::invalid("no rights"));
            }
            if inner.failing > 0 {
                inner.failing -= 1;
                return Err(RegistryError::silent("no leader"));
            }
            inner.written = None;
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_registry_forgets_is_written_again_at_once() {
    let desk = Desk::default();
    let registration = desk.start();
    registration.held().await;
    desk.change(|inner| inner.written = None);
    sleep(SECOND / 100).await;
    assert!(matches!(registration.standing(), Standing::Held));
    assert!(desk.written().is_some());
    assert_eq!(desk.0.lock().writes, 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_away_each_time_is_written_less_and_less_often() {
    let desk = Desk::default();
    desk.change(|inner| inner.taken = true);
    let registration = desk.start();
    sleep(60 * SECOND).await;
    let writes = desk.0.lock().writes;
    assert!((8..=45).contains(&writes), "{writes} writes in a minute");
    desk.change(|inner| inner.taken = false);
    sleep(60 * SECOND).await;
    // Once it was well for a while it is as before.
    let begun = Instant::now();
    let mut standing = registration.follow();
    standing.mark_unchanged();
    desk.change(|inner| inner.written = None);
    standing.changed().await.unwrap();
    registration.held().await;
    assert!(begun.elapsed() < SECOND / 10, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_ten_minutes_is_outlived_with_growing_waits() {
    let desk = Desk::default();
    let registration = desk.start();
    registration.held().await;
    desk.change(|inner| {
        inner.down = true;
        inner.written = None;
    });
    sleep(600 * SECOND).await;
    assert!(matches!(registration.standing(), Standing::Missing { trouble: Some(_) }));
    desk.change(|inner| inner.down = false);
    let begun = Instant::now();
    registration.held().await;
    assert!(begun.elapsed() <= RegistrationSettings::default().retry_delay_max);
    assert_eq!(desk.0.lock().writes, 2);
}

#[tokio::test(start_paused = true)]
async fn what_others_see_can_be_changed_but_not_the_address() {
    let desk = Desk::default();
    let registration = desk.start();
    registration.held().await;
    registration.update(|instance| {
        instance.weight = 5;
        instance.address = "b:2".parse().unwrap();
    });
    registration.drain();
    sleep(SECOND).await;
    let written = desk.written().unwrap();
    assert_eq!((written.weight, written.state), (5, State::Draining));
    assert_eq!(written.address.to_string(), "a:1");
    let writes = desk.0.lock().writes;
    registration.drain();
    sleep(SECOND).await;
    assert_eq!(desk.0.lock().writes, writes, "nothing changed, nothing is written");
}

#[tokio::test(start_paused = true)]
async fn deregistering_is_done_once_and_can_be_asked_for_again() {
    let desk = Desk::default();
    let registration = desk.start();
    registration.held().await;
    let (first, second) = tokio::join!(registration.deregister(), registration.deregister());
    assert!(first.is_ok() && second.is_ok());
    registration.deregister().await.unwrap();
    assert_eq!((desk.written(), desk.0.lock().removes), (None, 1));
    registration.update(|instance| instance.weight = 9);
    sleep(SECOND).await;
    assert_eq!(desk.written(), None, "it stays removed");
}

#[tokio::test(start_paused = true)]
async fn deregistering_takes_three_seconds_at_most() {
    let desk = Desk::default();
    let registration = desk.start();
    registration.held().await;
    desk.change(|inner| inner.hangs = true);
    let begun = Instant::now();
    let error = registration.deregister().await.unwrap_err();
    assert_eq!(begun.elapsed(), RegistrationSettings::default().deregister_timeout);
    assert!(error.to_string().contains("its lease ends by itself"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn deregistering_is_tried_as_often_as_there_is_time() {
    let desk = Desk::default();
    let registration = desk.start();
    registration.held().await;
    desk.change(|inner| inner.failing = 2);
    let begun = Instant::now();
    registration.deregister().await.unwrap();
    assert_eq!((desk.written(), desk.0.lock().removes), (None, 3));
    // Waits of 100 and of 200 ms, each with its jitter.
    assert!(begun.elapsed() <= SECOND * 3 / 10 + SECOND / 100, "{:?}", begun.elapsed());

    let registration = desk.start();
    registration.held().await;
    desk.change(|inner| inner.failing = usize::MAX);
    let begun = Instant::now();
    let error = registration.deregister().await.unwrap_err();
    assert_eq!(begun.elapsed(), RegistrationSettings::default().deregister_timeout);
    assert!(error.chain().contains("its lease ends by itself: no leader"), "{}", error.chain());
}

#[tokio::test(start_paused = true)]
async fn deregistering_that_is_refused_is_not_tried_again() {
    let desk = Desk::default();
    let registration = desk.start();
    registration.held().await;
    desk.change(|inner| inner.refused = true);
    assert!(registration.deregister().await.unwrap_err().is_refused());
    assert_eq!(desk.0.lock().removes, 1);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_registration_removes_the_instance() {
    let desk = Desk::default();
    let registration = desk.start();
    registration.held().await;
    drop(registration);
    sleep(SECOND).await;
    assert_eq!((desk.written(), desk.0.lock().removes), (None, 1));
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_whether_others_can_find_the_instance() {
    let (desk, telemetry) = (Desk::default(), Telemetry::new());
    let count = |what: &str| {
        let metrics = telemetry.metrics(Exposition::OpenMetrics);
        let line = metrics.lines().find_map(|line| line.strip_prefix(what).map(str::to_owned));
        line.map(|value| value.trim().parse::<f64>().unwrap())
    };
    let states = || {
        ["held", "missing"].map(|state| {
            count(&format!("discovery_registrations{{service=\"orders\",state=\"{state}\"}}"))
        })
    };
    let failures = || count("discovery_registration_failures_total{service=\"orders\"}").unwrap();
    let instance = Instance::new("a:1".parse().unwrap());
    let settings = RegistrationSettings::default();
    let registration =
        Registration::start_recorded(&desk, "orders", instance, settings, &telemetry);
    assert_eq!(states(), [Some(0.0), Some(1.0)]);
    registration.held().await;
    assert_eq!((states(), failures()), ([Some(1.0), Some(0.0)], 0.0));
    desk.change(|inner| inner.down = true);
    sleep(SECOND).await;
    assert_eq!(states(), [Some(0.0), Some(1.0)]);
    assert!(failures() >= 2.0, "{}", failures());
    desk.change(|inner| inner.down = false);
    registration.held().await;
    assert_eq!(states(), [Some(1.0), Some(0.0)]);
    registration.deregister().await.unwrap();
    assert_eq!(states(), [None, None], "it is over");
}
