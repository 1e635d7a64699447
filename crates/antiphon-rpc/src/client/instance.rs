//! One instance of a target: the connections to it, and what is known of it.
//!
//! A task of its own makes the connections and makes them again; calls only take what is there. So a
//! call never waits for an instance that does not answer while another one does.

mod connection;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use antiphon_discovery as discovery;
use antiphon_resilience::balance::{Candidate, Load, Standing};
use antiphon_resilience::{Backoff, Health};
use futures_util::future::{Fuse, FusedFuture as _, FutureExt as _};
use hyper::client::conn::http2::SendRequest;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::ClientSettings;
use super::report::InstanceReport;
use connection::Connection;
pub(super) use connection::{CallBody, Lease};
pub(super) use state::State;
use state::{Action, Event, Way};

/// One instance.
#[derive(Debug)]
pub(super) struct Instance {
    address: String,
    weight: u32,
    priority: u16,
    zone: Option<String>,
    authority: http::uri::Authority,
    pub(super) load: Load,
    pub(super) health: Health,
    picked: AtomicU64,
    /// Whether it has answered a call since it was last connected to.
    answered: AtomicBool,
    connections: Mutex<Vec<Connection>>,
    /// How many times as long as the settings say new connections stay quiet before the server is
    /// asked whether it lives: twice as long each time that it minded (gRFC A8).
    patience: AtomicU32,
    seen: Mutex<Seen>,
    /// The last connection takes no more calls.
    lost: Notify,
    /// Another connection is wanted beside those that there are.
    crowded: Notify,
    /// There is one more connection: calls that wait for a stream look again.
    further: Notify,
}

/// What the task of the instance shows of itself.
#[derive(Debug)]
struct Seen {
    state: State,
    /// Why the last attempt to connect failed, until one succeeds.
    failure: Option<Arc<str>>,
}

/// What the task of an instance works with.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    pub(super) settings: Arc<ClientSettings>,
    /// Whether anybody calls the target: the way to an instance is kept as long as that is so.
    pub(super) wanted: watch::Receiver<bool>,
    /// Told of every change of a state.
    pub(super) changed: Arc<dyn Changed>,
}

/// Hears of changes.
pub(super) trait Changed: std::fmt::Debug + Send + Sync {
    /// An instance has another state. `failed`: it could not be connected to.
    fn changed(&self, failed: bool);
}

impl Instance {
    /// One that nobody has connected to. `None` when its address cannot be an authority of HTTP.
    pub(super) fn new(found: &discovery::Instance, now: Instant) -> Option<Self> {
        let address = found.address.to_string();
        Some(Self {
            authority: address.parse().ok()?,
            address,
            weight: found.weight,
            priority: found.priority,
            zone: found.zone.clone(),
            load: Load::new(&antiphon_resilience::balance::EwmaSettings::default(), now),
            health: Health::new(now),
            picked: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            connections: Mutex::default(),
            patience: AtomicU32::new(1),
            seen: Mutex::new(Seen { state: State::Idle, failure: None }),
            lost: Notify::new(),
            crowded: Notify::new(),
            further: Notify::new(),
        })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) const fn authority(&self) -> &http::uri::Authority {
        &self.authority
    }

    /// Those with a higher number get calls only when none with a lower one can take them.
    pub(super) const fn priority(&self) -> u16 {
        self.priority
    }

    pub(super) fn state(&self) -> State {
        self.seen.lock().state
    }

    /// Why it cannot be connected to, if that is so.
    pub(super) fn failure(&self) -> Option<Arc<str>> {
        self.seen.lock().failure.clone()
    }

    /// Whether it is the same in all that balancing goes by.
    pub(super) fn is(&self, found: &discovery::Instance) -> bool {
        self.weight == found.weight && self.zone == found.zone && self.priority == found.priority
    }

    /// A place on the connection with the fewest calls, and what a request is sent with, unless the call
    /// has to wait for [`Self::turn`]. `None` when the last connection has just been lost.
    pub(super) fn lease(&self) -> Option<(Lease, Option<SendRequest<CallBody>>)> {
        let mut connections = self.connections.lock();
        connections.retain(Connection::is_open);
        let least = connections.iter().min_by_key(|connection| connection.calls())?;
        let is_crowded = least.is_crowded();
        let lease = least.lease();
        drop(connections);
        if is_crowded {
            self.crowded.notify_one();
        }
        Some(lease)
    }

    /// Whether another connection is of use: there may be fewer, and those that there are are crowded.
    fn needs_another(&self, settings: &ClientSettings) -> bool {
        let connections = self.connections.lock();
        connections.len() < settings.connections_max.max(1)
            && connections.iter().all(Connection::is_crowded)
    }

    /// Waits for a stream of any connection, and gives what a request is sent with; `None` when the last
    /// connection has been lost.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue.
    pub(super) async fn turn(&self, lease: &mut Lease) -> Option<SendRequest<CallBody>> {
        loop {
            let further = self.further.notified();
            let (other, sender) = self.lease()?;
            *lease = other;
            if sender.is_some() {
                return sender;
            }
            tokio::select! {
                has_stream = lease.wait() => if has_stream {
                    let connections = self.connections.lock();
                    let mut open = connections.iter().filter(|connection| connection.is_open());
                    if let Some(sender) = open.find_map(|connection| connection.sender_of(lease)) {
                        return Some(sender);
                    }
                },
                () = further => {}
            }
        }
    }

    /// How many connections are open.
    pub(super) fn connections(&self) -> usize {
        self.connections.lock().len()
    }

    /// Keeps the way to the instance until `gone` resolves. Calls under way go on after that, on
    /// connections that close with the last of them.
    pub(super) async fn keep(
        self: Arc<Self>,
        around: Surroundings,
        gone: impl Future<Output = ()>,
    ) {
        let mut gone = std::pin::pin!(gone);
        let mut way = Way::new();
        let mut wanted = around.wanted.clone();
        let mut event = None;
        loop {
            let action = match event {
                None => Action::Rest,
                Some(event) => way.step(event, &Backoff::CONNECT, fastrand::f64()),
            };
            self.show(way.state(), &around);
            event = Some(tokio::select! {
                biased;
                () = &mut gone, if action != Action::End => Event::Gone,
                event = self.act(action, &around, &mut wanted) => match event {
                    Some(event) => event,
                    None => break,
                },
            });
        }
        self.connections.lock().clear();
    }

    /// Does what is to be done, and says what has happened; `None` at the end.
    async fn act(
        self: &Arc<Self>,
        action: Action,
        around: &Surroundings,
        wanted: &mut watch::Receiver<bool>,
    ) -> Option<Event> {
        match action {
            Action::Rest => Some(match wanted.wait_for(|wanted| *wanted).await {
                Ok(_) => Event::Wanted,
                Err(_) => Event::Gone,
            }),
            Action::Connect => Some(match self.connect(&around.settings).await {
                Ok(()) => Event::Connected,
                Err(failure) => {
                    tracing::debug!(server.address = self.address, %failure, "cannot connect");
                    self.seen.lock().failure = Some(failure.into());
                    Event::Failed
                }
            }),
            Action::Watch => Some(self.watch(&around.settings, wanted).await),
            Action::Wait(time) => {
                tokio::time::sleep(time).await;
                Some(Event::Waited)
            }
            Action::End => None,
        }
    }

    /// Makes one more connection.
    async fn connect(self: &Arc<Self>, settings: &ClientSettings) -> Result<(), String> {
        let patience = self.patience.load(Relaxed);
        let (connection, ended) = connection::connect(&self.address, settings, patience).await?;
        self.connections.lock().push(connection);
        self.further.notify_waiters();
        let instance = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = ended.await {
                tracing::debug!(server.address = instance.address, %error, "a connection ended");
                if connection::was_disturbed(&error) {
                    instance.patience.fetch_max(patience.saturating_mul(2), Relaxed);
                }
            }
            let mut connections = instance.connections.lock();
            connections.retain(Connection::is_open);
            if connections.is_empty() {
                instance.lost.notify_one();
            }
        });
        Ok(())
    }

    /// Waits until the last connection is lost, or the target is no longer called; makes others where
    /// those that there are become crowded.
    async fn watch(
        self: &Arc<Self>,
        settings: &ClientSettings,
        wanted: &mut watch::Receiver<bool>,
    ) -> Event {
        let since = Instant::now();
        let mut making = std::pin::pin!(Fuse::terminated());
        let (mut failures, mut not_before) = (0_u32, since);
        loop {
            tokio::select! {
                () = self.lost.notified() => {
                    if self.connections() == 0 {
                        let answered = self.answered.load(Relaxed);
                        return Event::Lost { after: since.elapsed(), answered };
                    }
                }
                // Every call says so that finds it crowded: what is not heeded now is heard again.
                () = self.crowded.notified(), if making.is_terminated() => {
                    if Instant::now() >= not_before && self.needs_another(settings) {
                        making.set(self.connect(settings).fuse());
                    }
                }
                made = &mut making => match made {
                    Ok(()) => failures = 0,
                    Err(failure) => {
                        tracing::debug!(server.address = self.address, %failure, "no further connection");
                        failures = failures.saturating_add(1);
                        let wait = Backoff::CONNECT.wait(failures, fastrand::f64());
                        not_before = Instant::now() + wait;
                    }
                },
                unwanted = wanted.wait_for(|wanted| !*wanted) => {
                    drop(unwanted);
                    self.connections.lock().clear();
                    return Event::Unused;
                }
            }
        }
    }

    /// Makes known to those who pick whether it may be picked: that follows from its state, and from
    /// whether it was set aside.
    pub(super) fn stand(&self, now: Instant) {
        // Under the lock until it is known: or who comes second could make known what was before.
        let seen = self.seen.lock();
        let standing = match seen.state {
            State::Ready if self.health.in_service() => Standing::Ready,
            State::Ready => Standing::Ejected,
            _ => Standing::Away,
        };
        self.load.set_standing(standing, now);
        drop(seen);
    }

    /// A call is given to it.
    pub(super) fn count_pick(&self) {
        self.picked.fetch_add(1, Relaxed);
    }

    /// It has answered a call, with whatever.
    pub(super) fn has_answered(&self) {
        // Nearly always it is known already, and a line of the cache need not change hands.
        if !self.answered.load(Relaxed) {
            self.answered.store(true, Relaxed);
        }
    }

    /// How it stands.
    pub(super) fn report(&self, now: Instant) -> InstanceReport {
        let seen = self.seen.lock();
        InstanceReport {
            address: self.address.clone(),
            zone: self.zone.clone(),
            weight: self.weight,
            state: seen.state.name(),
            set_aside: !self.health.in_service(),
            connections: self.connections(),
            in_flight: self.load.in_flight(),
            picked: self.picked.load(Relaxed),
            latency_seconds: self.load.latency(now).as_secs_f64(),
            failure: seen.failure.as_deref().map(str::to_owned),
        }
    }

    /// Makes a state known.
    fn show(&self, state: State, around: &Surroundings) {
        let mut seen = self.seen.lock();
        let before = std::mem::replace(&mut seen.state, state);
        if state == State::Ready {
            seen.failure = None;
        }
        drop(seen);
        if state == State::Ready && before != State::Ready {
            self.answered.store(false, Relaxed);
            self.health.renew();
        }
        self.stand(Instant::now());
        if state != before {
            around.changed.changed(state == State::BackingOff);
        }
    }
}

impl Candidate for Instance {
    fn load(&self) -> &Load {
        &self.load
    }

    fn id(&self) -> &str {
        &self.address
    }

    fn weight(&self) -> u32 {
        self.weight
    }

    fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }
}
