//! What every registry must do: one case per rule of the ports in `antiphon-discovery`, against a real
//! server.
//!
//! An adapter writes a [`RegistryHarness`] and one line,
//! [`registry_conformance!`](crate::registry_conformance).

pub mod faults;
pub mod instances;
pub mod names;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use antiphon_core::{Clock, MessageId};
use antiphon_discovery::{
    Answers, Instance, Registrar, Registration, RegistrationSettings, Resolver,
};
use tokio::time::timeout;

use crate::services::Private;

/// How long a case waits for what must happen. Sessions and leases have to run out in it.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long leases last where they shall not run out.
pub const LEASE: Duration = Duration::from_secs(30);

/// Knows an adapter and its server.
pub trait RegistryHarness: 'static {
    /// What is tested.
    type Registry: Resolver + Registrar;
    /// A server of one case.
    type Server: RegistryServer;

    /// The shortest lease that is of use, for cases in which it runs out.
    const LEASE_SHORT: Duration;

    /// Where a server is that all cases share.
    fn shared() -> String;

    /// Starts a server for one case, which may treat it as it likes.
    fn start() -> impl Future<Output = Self::Server> + Send;

    /// A handle with connections of its own, as another process would have it. It need not be
    /// connected yet.
    fn open(url: &str, lease: Duration) -> Self::Registry;
}

/// A server that can be treated badly.
pub trait RegistryServer: Send + Sync + 'static {
    /// Where it is.
    fn url(&self) -> String;

    /// Ends it, in order.
    fn stop(&self) -> impl Future<Output = ()> + Send;

    /// Ends it as a power failure would, and removes its data.
    fn forget(&self) -> impl Future<Output = ()> + Send;

    /// Starts it again at the same address, with the data that there is.
    fn start_again(&self) -> impl Future<Output = ()> + Send;

    /// Stops it where it is: connections stay open, and nothing answers.
    fn pause(&self) -> impl Future<Output = ()> + Send;

    /// Lets it go on.
    fn resume(&self) -> impl Future<Output = ()> + Send;
}

impl RegistryServer for Private {
    fn url(&self) -> String {
        Self::url(self)
    }

    async fn stop(&self) {
        Self::stop(self).await.expect("it stops");
    }

    async fn forget(&self) {
        self.kill().await.expect("it is killed");
        std::fs::remove_dir_all(self.instance().data()).expect("its data is removed");
    }

    async fn start_again(&self) {
        Self::start_again(self).await.expect("it starts");
    }

    async fn pause(&self) {
        Self::pause(self).await.expect("it is paused");
    }

    async fn resume(&self) {
        Self::resume(self).await.expect("it goes on");
    }
}

/// Makes a test of every case: `registry_conformance!(Harness)`. The test crate needs tokio with
/// `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! registry_conformance {
    ($harness:ty) => {
        $crate::registry_conformance!(@module instances, $harness, [
            an_instance_is_seen_while_it_is_registered,
            a_watcher_sees_who_comes_and_who_goes,
            everything_about_an_instance_arrives_unchanged,
            a_draining_instance_is_seen_as_such,
            looking_again_is_answered_though_nothing_changed,
            a_new_process_at_an_address_takes_the_place_of_the_old_one,
            dropping_a_registration_removes_it,
        ]);
        $crate::registry_conformance!(@module names, $harness, [
            services_are_kept_apart,
            odd_names_are_names,
            a_name_that_nobody_has_has_nobody,
        ]);
        $crate::registry_conformance!(@module faults, $harness, [
            who_dies_is_gone_when_the_lease_is_over,
            who_is_cut_off_comes_back_by_itself,
            a_registry_that_is_stopped_and_started_takes_nobody_away,
            a_registry_that_is_killed_and_has_forgotten_everything_takes_nobody_away,
            a_registry_that_hangs_longer_than_the_lease_gets_everybody_back,
            a_registry_that_is_away_is_an_error_and_not_nobody,
        ]);
    };
    (@module $module:ident, $harness:ty, [$($case:ident),* $(,)?]) => {
        mod $module {
            #[allow(unused_imports, reason = "a harness may be named by a path of its own")]
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let case = $crate::conformance::registry::$module::$case::<$harness>();
                    // A server that is not there would be waited for without end.
                    let within = std::time::Duration::from_secs(180);
                    tokio::time::timeout(within, case).await.expect("it ends");
                }
            )*
        }
    };
}

/// A service name that nobody else uses.
#[must_use]
pub fn unique(name: &str) -> String {
    format!("{name}-{}", MessageId::new(Clock::system().now()))
}

/// An instance at `host:port`.
#[must_use]
pub fn instance(address: &str) -> Instance {
    Instance::new(address.parse().expect("an address"))
}

/// Registers an instance and waits until the registry has it.
pub async fn register(
    registrar: &dyn Registrar,
    service: &str,
    instance: Instance,
) -> Registration {
    let settings = RegistrationSettings::default();
    let registration = Registration::start(registrar, service, instance, settings);
    let held = timeout(PATIENCE, registration.held()).await;
    assert!(held.is_ok(), "it is not registered: {:?}", registration.standing());
    registration
}

/// What the registry says, undisturbed by the keeper.
pub struct Seen(Box<dyn Answers>);

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen").finish_non_exhaustive()
    }
}

impl Seen {
    /// Watches a name.
    pub fn new(resolver: &dyn Resolver, service: &str) -> Self {
        Self(resolver.watch(service))
    }

    /// The next answer. Errors are tries that failed: the next one follows after a moment.
    pub async fn next(&mut self) -> Vec<Instance> {
        let next = timeout(PATIENCE, async {
            loop {
                match self.0.next().await {
                    Ok(instances) => return instances,
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        next.await.expect("the registry answers")
    }

    /// Makes the next answer a fresh one.
    pub fn look_again(&mut self) {
        self.0.look_again();
    }

    /// Waits until exactly these addresses are said, and yields the instances by address.
    pub async fn until(&mut self, addresses: &[&str]) -> Vec<Instance> {
        let wanted: BTreeSet<String> = addresses.iter().map(|one| (*one).to_owned()).collect();
        let mut last = BTreeSet::new();
        let met = timeout(PATIENCE, async {
            loop {
                let mut instances = self.next().await;
                last = instances.iter().map(|instance| instance.address.to_string()).collect();
                if last == wanted {
                    instances.sort_by(|a, b| a.address.cmp(&b.address));
                    return instances;
                }
            }
        });
        let met = met.await;
        assert!(met.is_ok(), "it never says {wanted:?}; what it said last is {last:?}");
        met.unwrap_or_default()
    }
}
