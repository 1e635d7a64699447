//! Instances that come, change and go.

use std::time::Duration;

use antiphon_discovery::State;
use tokio::time::timeout;

use super::{LEASE, PATIENCE, RegistryHarness, Seen, instance, register, unique};

/// `Answers` 1, `Registration::deregister`.
pub async fn an_instance_is_seen_while_it_is_registered<H: RegistryHarness>() {
    let url = H::shared();
    let (here, there) = (H::open(&url, LEASE), H::open(&url, LEASE));
    let service = unique("seen");
    let registration = register(&here, &service, instance("10.0.0.1:80")).await;
    let mut seen = Seen::new(&there, &service);
    let first = seen.next().await;
    assert_eq!(first, [instance("10.0.0.1:80")], "what is held is in the first answer");
    registration.deregister().await.expect("it is removed");
    seen.until(&[]).await;
    registration.deregister().await.expect("removing it again is no mistake");
    assert!(Seen::new(&there, &service).next().await.is_empty());
}

/// `Answers` 1 and 2: additions and removals, each as the whole set.
pub async fn a_watcher_sees_who_comes_and_who_goes<H: RegistryHarness>() {
    let url = H::shared();
    let service = unique("changes");
    let watcher = H::open(&url, LEASE);
    let mut seen = Seen::new(&watcher, &service);
    assert!(seen.next().await.is_empty());
    let (one, two) = (H::open(&url, LEASE), H::open(&url, LEASE));
    let first = register(&one, &service, instance("10.0.0.1:80")).await;
    seen.until(&["10.0.0.1:80"]).await;
    let second = register(&two, &service, instance("10.0.0.2:80")).await;
    // One process may have several instances.
    let third = register(&two, &service, instance("10.0.0.2:81")).await;
    seen.until(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.2:81"]).await;
    first.deregister().await.expect("it is removed");
    seen.until(&["10.0.0.2:80", "10.0.0.2:81"]).await;
    second.deregister().await.expect("it is removed");
    third.deregister().await.expect("it is removed");
    seen.until(&[]).await;
}

/// Address, weight, priority, zone, metadata and state arrive as they were written.
pub async fn everything_about_an_instance_arrives_unchanged<H: RegistryHarness>() {
    let url = H::shared();
    let service = unique("round-trip");
    let registry = H::open(&url, LEASE);
    let mut full = instance("[2001:db8::1]:65535");
    full.weight = 250;
    full.priority = 3;
    full.zone = Some("eu-central-1a".to_owned());
    full.metadata.insert("version".to_owned(), "1.2.3 \"x\" ü".to_owned());
    full.metadata.insert("empty".to_owned(), String::new());
    full.state = State::Draining;
    let named = instance("orders-7.internal:443");
    let one = register(&registry, &service, full.clone()).await;
    let two = register(&registry, &service, named.clone()).await;
    let watcher = H::open(&url, LEASE);
    let mut seen = Seen::new(&watcher, &service);
    let instances = seen.until(&["[2001:db8::1]:65535", "orders-7.internal:443"]).await;
    assert_eq!(instances, [full, named]);
    one.deregister().await.expect("it is removed");
    two.deregister().await.expect("it is removed");
}

/// `Entry::hold` with another instance: others see the change, and no gap before it.
pub async fn a_draining_instance_is_seen_as_such<H: RegistryHarness>() {
    let url = H::shared();
    let service = unique("draining");
    let (here, there) = (H::open(&url, LEASE), H::open(&url, LEASE));
    let registration = register(&here, &service, instance("10.0.0.1:80")).await;
    let mut seen = Seen::new(&there, &service);
    seen.until(&["10.0.0.1:80"]).await;
    registration.drain();
    let drained = timeout(PATIENCE, async {
        loop {
            let instances = seen.next().await;
            assert_eq!(instances.len(), 1, "a change is no removal");
            if instances[0].state == State::Draining {
                return;
            }
        }
    });
    drained.await.expect("the change is seen");
    registration.deregister().await.expect("it is removed");
    seen.until(&[]).await;
}

/// `Answers::look_again`.
pub async fn looking_again_is_answered_though_nothing_changed<H: RegistryHarness>() {
    let url = H::shared();
    let service = unique("again");
    let registry = H::open(&url, LEASE);
    let registration = register(&registry, &service, instance("10.0.0.1:80")).await;
    let mut seen = Seen::new(&registry, &service);
    seen.until(&["10.0.0.1:80"]).await;
    for _ in 0..3 {
        seen.look_again();
        assert_eq!(seen.next().await, [instance("10.0.0.1:80")]);
    }
    registration.deregister().await.expect("it is removed");
    seen.until(&[]).await;
}

/// `Entry` 1: a process that was restarted at its address before its old lease was over is not taken
/// away by the end of that lease.
pub async fn a_new_process_at_an_address_takes_the_place_of_the_old_one<H: RegistryHarness>() {
    let url = H::shared();
    let service = unique("restarted");
    let (old, new) = (H::open(&url, H::LEASE_SHORT), H::open(&url, LEASE));
    // Held, and then left alone as by a process that was killed.
    let mut entry = antiphon_discovery::Registrar::entry(&old, &service);
    let (held, written) = antiphon_discovery::Held::new();
    let old_instance = instance("10.0.0.1:80");
    {
        let hold = entry.hold(&old_instance, &held);
        let written = async { timeout(PATIENCE, written.yes()).await };
        tokio::select! {
            error = hold => panic!("it is not held: {error}"),
            written = written => written.expect("it is written"),
        }
    }
    let mut changed = instance("10.0.0.1:80");
    changed.weight = 9;
    let registration = register(&new, &service, changed.clone()).await;
    let mut seen = Seen::new(&new, &service);
    let end = tokio::time::Instant::now() + 3 * H::LEASE_SHORT;
    while let Ok(instances) = tokio::time::timeout_at(end, seen.next()).await {
        assert_eq!(instances, [changed.clone()], "it must not vanish with the old lease");
    }
    seen.look_again();
    assert_eq!(seen.next().await, [changed]);
    // Nor is it the old one's to remove, if the registry can tell them apart.
    let _ = timeout(Duration::from_secs(5), entry.remove()).await;
    seen.look_again();
    assert_eq!(seen.next().await.len(), 1, "the old process removed the new one");
    registration.deregister().await.expect("it is removed");
    seen.until(&[]).await;
}

/// `Registration` that is dropped, as at the end of a program that forgot to deregister.
pub async fn dropping_a_registration_removes_it<H: RegistryHarness>() {
    let url = H::shared();
    let service = unique("dropped");
    let registry = H::open(&url, LEASE);
    let registration = register(&registry, &service, instance("10.0.0.1:80")).await;
    let mut seen = Seen::new(&registry, &service);
    seen.until(&["10.0.0.1:80"]).await;
    let begun = tokio::time::Instant::now();
    drop(registration);
    seen.until(&[]).await;
    assert!(begun.elapsed() < LEASE, "it was removed, and did not run out");
}
