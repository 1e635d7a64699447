//! Processes that die, and registries that do.

use std::time::Duration;

use antiphon_discovery::{Registration, Snapshot, Standing, Watch, keeper};
use tokio::time::{Instant, timeout};

use super::{LEASE, PATIENCE, RegistryHarness, RegistryServer, Seen, instance, register, unique};
use crate::proxy::{Faults, Proxy, Way};

/// Everything is lost, and nobody is told.
const BLACK_HOLE: Way = Way {
    latency: Duration::ZERO,
    bytes_per_second: None,
    hold: false,
    swallow: true,
    cut_after: None,
};
/// Who is registered at a private server.
const ALL: [&str; 3] = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];

/// `Entry` 2: without a sign of life an instance is gone after the time of its lease, and not before
/// long.
pub async fn who_dies_is_gone_when_the_lease_is_over<H: RegistryHarness>() {
    let url = H::shared();
    let proxy = Proxy::in_front_of(&url).await.expect("a proxy");
    let service = unique("dies");
    let (dies, lives) = (H::open(proxy.url(), H::LEASE_SHORT), H::open(&url, LEASE));
    let dead = register(&dies, &service, instance("10.0.0.1:80")).await;
    let living = register(&lives, &service, instance("10.0.0.2:80")).await;
    let mut seen = Seen::new(&lives, &service);
    seen.until(&["10.0.0.1:80", "10.0.0.2:80"]).await;
    let begun = Instant::now();
    proxy.set(Faults { refuse: true, ..Faults::both(BLACK_HOLE) });
    seen.until(&["10.0.0.2:80"]).await;
    let limit = 6 * H::LEASE_SHORT + Duration::from_secs(10);
    assert!(begun.elapsed() < limit, "it took {:?}", begun.elapsed());
    assert!(proxy.counts().bites() > 0, "nothing was lost");
    // It knows by itself that others may not see it any more.
    let mut standing = dead.follow();
    let missing = standing.wait_for(|standing| matches!(standing, Standing::Missing { .. }));
    timeout(PATIENCE, missing).await.expect("in time").expect("it is kept");
    living.deregister().await.expect("it is removed");
}

/// As above, and then the network works again.
pub async fn who_is_cut_off_comes_back_by_itself<H: RegistryHarness>() {
    let url = H::shared();
    let proxy = Proxy::in_front_of(&url).await.expect("a proxy");
    let service = unique("cut-off");
    let (cut, other) = (H::open(proxy.url(), H::LEASE_SHORT), H::open(&url, LEASE));
    let registration = register(&cut, &service, instance("10.0.0.1:80")).await;
    let mut near = Seen::new(&cut, &service);
    let mut seen = Seen::new(&other, &service);
    near.until(&["10.0.0.1:80"]).await;
    seen.until(&["10.0.0.1:80"]).await;
    proxy.set(Faults { refuse: true, ..Faults::both(BLACK_HOLE) });
    seen.until(&[]).await;
    let late = register(&other, &service, instance("10.0.0.2:80")).await;
    proxy.heal();
    seen.until(&["10.0.0.1:80", "10.0.0.2:80"]).await;
    // A watch that was cut off has missed nothing either.
    near.until(&["10.0.0.1:80", "10.0.0.2:80"]).await;
    registration.deregister().await.expect("it is removed");
    late.deregister().await.expect("it is removed");
}

/// A server of its own with three instances, and a caller.
struct Site<H: RegistryHarness> {
    server: H::Server,
    service: String,
    registrations: Vec<Registration>,
    /// Keeps connections open.
    _registries: Vec<H::Registry>,
    watch: Watch,
}

impl<H: RegistryHarness> Site<H> {
    /// Long enough not to run out because the machine of the test is busy.
    const LEASE: Duration = H::LEASE_SHORT.saturating_mul(3);

    async fn start() -> Self {
        let server = H::start().await;
        let service = unique("site");
        let (mut registries, mut registrations) = (Vec::new(), Vec::new());
        for address in ALL {
            let registry = H::open(&server.url(), Self::LEASE);
            registrations.push(register(&registry, &service, instance(address)).await);
            registries.push(registry);
        }
        let registry = H::open(&server.url(), Self::LEASE);
        let answers = antiphon_discovery::Resolver::watch(&registry, &service);
        registries.push(registry);
        let mut watch = Watch::start("site", answers, keeper::Settings::default());
        let full = async { while watch.changed().await.instances.len() < ALL.len() {} };
        timeout(PATIENCE, full).await.expect("all are seen");
        Self { server, service, registrations, _registries: registries, watch }
    }

    /// Waits until everybody is registered again; at no time may the caller have fewer than `least`.
    async fn recovers(&mut self, least: usize) {
        let mut watch = self.watch.clone();
        let all_back = async {
            let registry = H::open(&self.server.url(), Self::LEASE);
            Seen::new(&registry, &self.service).until(&ALL).await;
            for registration in &self.registrations {
                registration.held().await;
            }
        };
        let complain = |snapshot: &Snapshot| {
            let seen: Vec<String> =
                snapshot.instances.iter().map(|one| one.address.to_string()).collect();
            assert!(seen.len() >= least, "the caller has only {seen:?}");
        };
        complain(&watch.snapshot());
        let watched = async {
            loop {
                complain(&watch.changed().await);
            }
        };
        tokio::select! {
            () = watched => {}
            back = timeout(PATIENCE, all_back) => back.expect("everybody registers again"),
        }
        // The watch has found its way back, too: it hears of what happens from now on.
        self.registrations[0].drain();
        let mut watch = self.watch.clone();
        let heard = async {
            loop {
                let state = watch.snapshot().instances[0].state;
                if state == antiphon_discovery::State::Draining {
                    return;
                }
                watch.changed().await;
            }
        };
        timeout(PATIENCE, heard).await.expect("the watch hears of changes again");
    }
}

/// The server is stopped in order and started again with its data.
pub async fn a_registry_that_is_stopped_and_started_takes_nobody_away<H: RegistryHarness>() {
    let mut site = Site::<H>::start().await;
    site.server.stop().await;
    await_trouble(&site.watch).await;
    site.server.start_again().await;
    site.recovers(ALL.len()).await;
}

/// The server is killed, loses its data, and starts again.
pub async fn a_registry_that_is_killed_and_has_forgotten_everything_takes_nobody_away<
    H: RegistryHarness,
>() {
    let mut site = Site::<H>::start().await;
    site.server.forget().await;
    await_trouble(&site.watch).await;
    site.server.start_again().await;
    site.recovers(ALL.len()).await;
}

/// The server neither answers nor closes connections until every lease must have run out.
pub async fn a_registry_that_hangs_longer_than_the_lease_gets_everybody_back<H: RegistryHarness>() {
    let mut site = Site::<H>::start().await;
    site.server.pause().await;
    for registration in &site.registrations {
        let mut standing = registration.follow();
        let missing = standing.wait_for(|standing| matches!(standing, Standing::Missing { .. }));
        timeout(PATIENCE, missing).await.expect("it knows in time").expect("it is kept");
    }
    site.server.resume().await;
    // Its connections are open, and what has run out is told as in any other hour, one by one: less
    // than half of them may be gone for a moment.
    site.recovers(ALL.len() - 1).await;
}

/// `Answers` 4: no answer is an error, soon, and never an empty set.
pub async fn a_registry_that_is_away_is_an_error_and_not_nobody<H: RegistryHarness>() {
    let url = H::shared();
    let proxy = Proxy::in_front_of(&url).await.expect("a proxy");
    proxy.set(Faults { refuse: true, ..Faults::default() });
    let registry = H::open(proxy.url(), LEASE);
    let mut answers = antiphon_discovery::Resolver::watch(&registry, &unique("away"));
    let said = timeout(PATIENCE, answers.next()).await.expect("soon");
    assert!(said.is_err(), "{said:?}");
    let settings = antiphon_discovery::RegistrationSettings::default();
    let registration =
        Registration::start(&registry, &unique("away"), instance("10.0.0.1:80"), settings);
    let begun = Instant::now();
    let _ = timeout(PATIENCE, registration.deregister()).await.expect("its time is bounded");
    assert!(begun.elapsed() < 2 * settings.deregister_timeout, "{:?}", begun.elapsed());
}

async fn await_trouble(watch: &Watch) {
    let trouble = async {
        while watch.trust().trouble.is_none() {
            // There is nothing to wait for: trouble is no other set.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, trouble).await.expect("the caller's side notices");
}
