//! Keeps an instance registered until it is told not to.
//!
//! Whatever happens to the registry — its lease runs out, its session expires, it is restarted without
//! its data — the entry is written again, with growing waits, for as long as the [`Registration`]
//! lives.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Retry, RetryPolicy, retry};
use antiphon_telemetry::Telemetry;
use antiphon_telemetry::metrics::Counter;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{Entry, Held, Instance, Registrar, RegistryError, State, metrics};

/// How a registration goes on after trouble, and how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistrationSettings {
    /// The wait after the first failure. It doubles with each.
    pub retry_delay_initial: Duration,
    /// The longest wait between two tries. What is held for longer is well: when it is lost then, it is
    /// written again at once.
    pub retry_delay_max: Duration,
    /// How long deregistering may take, with all tries; the lease ends by itself after that.
    pub deregister_timeout: Duration,
}

impl Default for RegistrationSettings {
    fn default() -> Self {
        Self {
            retry_delay_initial: Duration::from_millis(100),
            retry_delay_max: Duration::from_secs(5),
            deregister_timeout: Duration::from_secs(3),
        }
    }
}

impl RegistrationSettings {
    /// How long to wait after so many failures in a row.
    fn wait_after(&self, failures: u32) -> Duration {
        let policy = RetryPolicy::exponential(self.retry_delay_initial, self.retry_delay_max);
        match policy.decide(failures, Retry::Outage, fastrand::f64()) {
            retry::Decision::RetryAfter(wait) => wait,
            retry::Decision::GiveUp => policy.delay_max,
        }
    }
}

/// How a registration is.
#[derive(Clone, Debug)]
pub enum Standing {
    /// Others cannot see the instance, as far as is known; it is being written.
    Missing {
        /// Why the last try failed, if there was one.
        trouble: Option<Arc<RegistryError>>,
    },
    /// Others can see the instance.
    Held,
    /// It was removed, or the time for that is over; nothing is done any more.
    Over {
        /// Why it could not be removed, if it could not. Its lease ends by itself.
        trouble: Option<Arc<RegistryError>>,
    },
}

/// One instance that is kept registered. Dropping it removes the instance in the background.
#[derive(Debug)]
pub struct Registration {
    wanted: watch::Sender<Wanted>,
    standing: watch::Receiver<Standing>,
}

#[derive(Clone, Debug)]
struct Wanted {
    instance: Instance,
    gone: bool,
}

impl Registration {
    /// Registers an instance of `service`, on the runtime that is current here. Returns at once:
    /// [`Self::held`] tells when others can see it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start(
        registrar: &dyn Registrar,
        service: &str,
        instance: Instance,
        settings: RegistrationSettings,
    ) -> Self {
        Self::launch(registrar, service, instance, settings, None)
    }

    /// The same; the metrics of `telemetry` show how it is.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start_recorded(
        registrar: &dyn Registrar,
        service: &str,
        instance: Instance,
        settings: RegistrationSettings,
        telemetry: &Telemetry,
    ) -> Self {
        Self::launch(registrar, service, instance, settings, Some(telemetry))
    }

    fn launch(
        registrar: &dyn Registrar,
        service: &str,
        instance: Instance,
        settings: RegistrationSettings,
        telemetry: Option<&Telemetry>,
    ) -> Self {
        let (wanted, wanted_receiver) = watch::channel(Wanted { instance, gone: false });
        let (sender, standing) = watch::channel(Standing::Missing { trouble: None });
        let failed = telemetry
            .map(|telemetry| metrics::registered(telemetry, service, standing.clone()))
            .unwrap_or_default();
        let driver = Driver {
            failed,
            service: service.to_owned(),
            entry: registrar.entry(service),
            wanted: wanted_receiver,
            held: Held(sender),
            settings,
            failures: 0,
        };
        tokio::spawn(driver.run());
        Self { wanted, standing }
    }

    /// How it is.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Waits until others can see the instance.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost.
    pub async fn held(&self) {
        self.wait_for(|standing| matches!(standing, Standing::Held)).await;
    }

    /// Follows how it is.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Changes what others see. The address must stay: another address is another registration.
    pub fn update(&self, change: impl FnOnce(&mut Instance)) {
        self.wanted.send_if_modified(|wanted| {
            let before = wanted.instance.clone();
            change(&mut wanted.instance);
            wanted.instance.address = before.address.clone();
            wanted.instance != before
        });
    }

    /// Tells others that the instance takes nothing new and will be gone soon.
    pub fn drain(&self) {
        self.update(|instance| instance.state = State::Draining);
    }

    /// Removes the instance from the registry and waits until that is done, or until
    /// [`RegistrationSettings::deregister_timeout`] has passed. Calling it again changes nothing.
    ///
    /// # Errors
    /// It could not be removed in time; its lease ends by itself.
    ///
    /// # Cancel safety
    /// It goes on in the background.
    pub async fn deregister(&self) -> Result<(), Arc<RegistryError>> {
        self.wanted.send_if_modified(|wanted| !std::mem::replace(&mut wanted.gone, true));
        match self.wait_for(|standing| matches!(standing, Standing::Over { .. })).await {
            Some(Standing::Over { trouble: Some(trouble) }) => Err(trouble),
            _ => Ok(()),
        }
    }

    async fn wait_for(&self, wanted: impl FnMut(&Standing) -> bool) -> Option<Standing> {
        let mut standing = self.standing.clone();
        // An error means that the runtime is ending.
        standing.wait_for(wanted).await.ok().map(|standing| standing.clone())
    }
}

struct Driver {
    /// Counts for the metrics.
    failed: Counter,
    service: String,
    entry: Box<dyn Entry>,
    wanted: watch::Receiver<Wanted>,
    held: Held,
    settings: RegistrationSettings,
    failures: u32,
}

impl Driver {
    async fn run(mut self) {
        let mut not_before = Instant::now();
        loop {
            let Wanted { instance, gone } = self.wanted.borrow_and_update().clone();
            if gone {
                break;
            }
            let begun = Instant::now().max(not_before);
            let over = {
                let mut over = pin!(async {
                    sleep_until(not_before).await;
                    self.entry.hold(&instance, &self.held).await
                });
                tokio::select! {
                    biased;
                    changed = self.wanted.changed() => match changed {
                        Ok(()) => None,
                        // Dropped.
                        Err(_) => break,
                    },
                    error = &mut over => Some(error),
                }
            };
            not_before = Instant::now();
            // What others see may be changed at once, also in the middle of an outage.
            if let Some(error) = over {
                not_before += self.failed(&instance, error, begun.elapsed());
            }
        }
        self.end().await;
    }

    /// Remembers a failure after the entry was written and held for `lasted`; how long to wait.
    fn failed(&mut self, instance: &Instance, error: RegistryError, lasted: Duration) -> Duration {
        let was_held = matches!(*self.held.0.borrow(), Standing::Held);
        self.failed.inc();
        // What is taken away again and again, as by another process, is not written in a circle.
        let was_well = was_held && lasted > self.settings.retry_delay_max;
        self.failures = if was_well { 1 } else { self.failures.saturating_add(1) };
        let (service, address, words) = (&self.service, &instance.address, error.chain());
        if error.is_refused() && self.failures == 1 {
            tracing::error!(service, %address, error = words, "the instance cannot be registered");
        } else if self.failures == 1 {
            tracing::warn!(
                service,
                %address,
                error = words,
                "the instance is not registered any more, or not yet; it is being registered again"
            );
        } else {
            tracing::debug!(service, %address, error = words, "the instance is not registered");
        }
        let lost = matches!(error, RegistryError::Lost { .. });
        self.held.0.send_replace(Standing::Missing { trouble: Some(Arc::new(error)) });
        if lost && was_held && self.failures == 1 {
            return Duration::ZERO;
        }
        self.settings.wait_after(self.failures)
    }

    async fn end(mut self) {
        let trouble = self.remove().await.err();
        if let Some(error) = &trouble {
            tracing::warn!(
                service = self.service,
                error = error.chain(),
                "the instance stays registered until its lease ends"
            );
        }
        self.held.0.send_replace(Standing::Over { trouble: trouble.map(Arc::new) });
    }

    /// Removes the instance, with as many tries as there is time for.
    async fn remove(&mut self) -> Result<(), RegistryError> {
        let limit = self.settings.deregister_timeout;
        let mut last = None;
        let removed = timeout(limit, async {
            let mut failures = 0;
            loop {
                match self.entry.remove().await {
                    Err(error) if !error.is_refused() => {
                        let (service, words) = (&self.service, error.chain());
                        tracing::debug!(service, error = words, "not deregistered yet");
                        last = Some(error);
                    }
                    done => return done,
                }
                failures += 1;
                sleep(self.settings.wait_after(failures)).await;
            }
        });
        removed.await.unwrap_or_else(|_| {
            let context = format!(
                "{} could not be deregistered within {limit:?}; its lease ends by itself",
                self.service
            );
            Err(match last {
                Some(error) => RegistryError::away(context, error),
                None => RegistryError::silent(context),
            })
        })
    }
}

#[cfg(test)]
mod tests;
