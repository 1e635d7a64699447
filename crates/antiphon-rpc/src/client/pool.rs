//! The instances of one target: who they are, which of them takes the next call.
//!
//! A task watches discovery and keeps the set; each instance has a task that keeps the way to it. A
//! call looks at one immutable roster and waits only where nobody is ready and somebody may soon be.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use antiphon_discovery::{self as discovery, Snapshot, Trust, Watch};
use antiphon_resilience::balance::{self, PickInput, Roster, Standing};
use antiphon_resilience::ejection::Probe;
use antiphon_resilience::{Ejector, Verdict};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::ClientSettings;
use super::calling::Calling;
use super::error::{CallError, FailedAttempt};
use super::instance::{Changed, Instance, State, Surroundings};
use super::metrics::Metrics;

/// Those that can be picked, with the tasks behind them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    settings: Arc<ClientSettings>,
    /// What makes this client differ from others, for its subset.
    client: String,
    /// Where connections live; calls come from any runtime.
    runtime: Handle,
    watch: Mutex<Watch>,
    /// Whether the tasks run: the first call starts them.
    runs: AtomicBool,
    /// Whether discovery has answered.
    known: AtomicBool,
    roster: ArcSwap<Roster<Arc<Instance>>>,
    members: Mutex<Members>,
    /// The priority of those that are picked from; [`NOBODY`] while none is ready.
    level: AtomicU32,
    calling: Calling,
    /// Something is different: whoever waits looks again.
    changed: Notify,
    ejector: Ejector,
    /// How many are set aside: none is the rule, and then a pick need not look for one to try.
    ejected: AtomicUsize,
    metrics: Metrics,
}

/// What a call asks of a pick.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// What consistent hashing goes by.
    pub(super) key: Option<u64>,
    /// Calls to the target that are under way.
    pub(super) in_flight: u32,
    /// Whether to wait where no instance can be connected to.
    pub(super) patient: bool,
    /// Whether the call is made again elsewhere when this attempt fails.
    pub(super) repeatable: bool,
}

/// Who takes a call.
#[derive(Debug)]
pub(super) struct Picked {
    pub(super) instance: Arc<Instance>,
    /// The call tries whether one that was set aside works again.
    pub(super) probe: Option<Probe>,
}

/// How often a call looks whether discovery has failed, before it has ever answered.
const LOOK: Duration = Duration::from_millis(20);
/// So long an instance that was set aside waits for a call that is made again elsewhere if it fails,
/// before it is tried by one that is not.
const PROBE_HEAD_START: Duration = Duration::from_secs(1);
/// No priority: those of instances are smaller.
const NOBODY: u32 = u32::MAX;

/// The lowest priority of which an instance is ready.
fn level(members: &Members) -> u32 {
    let ready = members.0.values().filter(|member| member.instance.state() == State::Ready);
    ready.map(|member| u32::from(member.instance.priority())).min().unwrap_or(NOBODY)
}

#[derive(Default)]
struct Members(BTreeMap<String, Member>);

struct Member {
    instance: Arc<Instance>,
    /// Its task ends when this is dropped.
    _present: watch::Sender<()>,
}

impl Pool {
    /// Nothing is connected before the first call.
    pub(super) fn new(
        watch: Watch,
        settings: Arc<ClientSettings>,
        runtime: Handle,
        metrics: Metrics,
    ) -> Self {
        let now = Instant::now();
        let roster = Roster::new(Vec::new(), settings.balance.clone(), now, fastrand::u64(..));
        Self(Arc::new(Shared {
            ejector: Ejector::new(settings.ejection),
            settings,
            client: format!("{:016x}", fastrand::u64(..)),
            runtime,
            watch: Mutex::new(watch),
            runs: AtomicBool::new(false),
            known: AtomicBool::new(false),
            roster: ArcSwap::from_pointee(roster),
            members: Mutex::default(),
            level: AtomicU32::new(NOBODY),
            calling: Calling::new(),
            changed: Notify::new(),
            ejected: AtomicUsize::new(0),
            metrics,
        }))
    }

    /// An instance that is ready, other than `tried` where that is possible.
    fn pick(&self, tried: &[Arc<Instance>], wanted: &Wanted) -> Option<Picked> {
        let now = Instant::now();
        let roster = self.0.roster.load();
        // A call tries one of them at most, and with its first attempt: else it could use up all that
        // it has on instances that fail, while others work.
        if tried.is_empty()
            && self.0.ejected.load(Ordering::Relaxed) > 0
            && let Some(probing) = self.0.probe(&roster, wanted, now)
        {
            return Some(probing);
        }
        let input = PickInput {
            tried,
            key: wanted.key,
            in_flight: Some(wanted.in_flight),
            ..PickInput::new(now, fastrand::u64(..))
        };
        let instance = Arc::clone(roster.pick(&input)?);
        Some(Picked { instance, probe: None })
    }

    /// As [`Self::pick`]; where nobody is ready, waits as long as somebody is about to be, or in any
    /// case if `patient`. The caller bounds the wait by its deadline.
    ///
    /// # Errors
    /// Nobody is ready, and what is known about each.
    pub(super) async fn pick_ready(
        &self,
        tried: &[Arc<Instance>],
        wanted: &Wanted,
    ) -> Result<Picked, CallError> {
        self.0.calling.note();
        if let Some(picked) = self.pick(tried, wanted) {
            return Ok(picked);
        }
        self.start();
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            // One that waits calls as long as it does.
            self.0.calling.note();
            if let Some(picked) = self.pick(tried, wanted) {
                return Ok(picked);
            }
            if !wanted.patient
                && let Some(error) = self.0.hopeless()
            {
                return Err(error);
            }
            if self.0.known.load(Ordering::Acquire) {
                changed.await;
            } else {
                // Nobody tells that the registry cannot be asked.
                let _ = tokio::time::timeout(LOOK, changed).await;
            }
        }
    }

    /// Nothing was sent to whom was picked: the next call may try it.
    pub(super) fn give_back(&self, mut picked: Picked) {
        self.judge(&mut picked, Verdict::Neutral, Instant::now());
    }

    /// Takes in how an attempt ended: who fails too often is set aside, and whoever was tried with
    /// success comes back.
    pub(super) fn judge(&self, picked: &mut Picked, verdict: Verdict, now: Instant) {
        let Shared { ejector, .. } = &*self.0;
        let Picked { instance, probe } = picked;
        if let Some(probe) = probe.take() {
            if ejector.end_probe(&instance.health, probe, verdict, now, fastrand::f64()) {
                tracing::info!(server.address = instance.address(), "an instance works again");
                instance.stand(now);
                self.0.refresh();
            }
        } else if ejector.record(&instance.health, verdict) {
            let roster = self.0.roster.load();
            let all = roster.candidates().iter().map(|one| &one.health);
            if ejector.try_eject(&instance.health, all, now, fastrand::f64()) {
                self.0.set_aside(instance, now, "it failed several calls in a row");
                self.0.refresh();
            }
        }
    }

    pub(super) fn instances(&self) -> Vec<Arc<Instance>> {
        self.0.members.lock().0.values().map(|member| Arc::clone(&member.instance)).collect()
    }

    /// How far the set can be trusted.
    pub(super) fn trust(&self) -> Trust {
        self.0.watch.lock().trust()
    }

    fn start(&self) {
        if self.0.runs.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = Arc::downgrade(&self.0);
        let mut watch = self.0.watch.lock().clone();
        let every = self.0.ejector.settings().sweep_interval;
        let idle = self.0.settings.idle_timeout.max(Duration::from_millis(1));
        self.0.runtime.spawn(async move {
            // Here, for a timer belongs to the runtime that it is made on, and the caller's may end.
            let mut sweep = tokio::time::interval(every);
            let mut look = tokio::time::interval(idle);
            // Looks that were missed say nothing about calls.
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            look.tick().await;
            loop {
                let due = tokio::select! {
                    snapshot = watch.changed() => Due::Snapshot(snapshot),
                    _ = sweep.tick() => Due::Sweep,
                    _ = look.tick() => Due::Look,
                };
                let Some(shared) = shared.upgrade() else { break };
                match due {
                    Due::Snapshot(snapshot) => shared.keep(&snapshot),
                    Due::Sweep => shared.sweep(),
                    Due::Look => shared.look(),
                }
            }
        });
    }
}

/// What the task of a pool is to do.
enum Due {
    /// Discovery tells of another set.
    Snapshot(Snapshot),
    /// Instances are to be compared.
    Sweep,
    /// It is to be looked whether anybody calls.
    Look,
}

impl Shared {
    /// Looks whether anybody calls. A call under way does.
    fn look(&self) {
        let is_busy = |member: &Member| member.instance.load.in_flight() > 0;
        if self.members.lock().0.values().any(is_busy) {
            self.calling.note();
        }
        self.calling.look();
    }

    /// An instance that was set aside and that this call is to try.
    fn probe(
        &self,
        roster: &Roster<Arc<Instance>>,
        wanted: &Wanted,
        now: Instant,
    ) -> Option<Picked> {
        let head_start = if wanted.repeatable { Duration::ZERO } else { PROBE_HEAD_START };
        roster.candidates().iter().find_map(|instance| {
            let is_aside = instance.load.standing() == Standing::Ejected;
            let probe =
                is_aside.then(|| self.ejector.try_probe(&instance.health, now, head_start))??;
            Some(Picked { instance: Arc::clone(instance), probe: Some(probe) })
        })
    }

    /// Takes over a new set: those that stay keep their connections and what is known of them.
    fn keep(self: &Arc<Self>, snapshot: &Snapshot) {
        let now = Instant::now();
        let wanted = self.wanted_of(snapshot);
        let mut members = self.members.lock();
        let Members(known) = &mut *members;
        let mut kept = BTreeMap::new();
        for found in wanted {
            let address = found.address.to_string();
            let member = match known.remove(&address) {
                Some(member) if member.instance.is(found) => Some(member),
                _ => self.begin(found, now),
            };
            if let Some(member) = member {
                kept.insert(address, member);
            }
        }
        // The others leave: their tasks end, and their calls.
        *known = kept;
        self.call_up(&members, now);
        self.count_ejected(&members);
        drop(members);
        self.known.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Those of a set that this client connects to.
    fn wanted_of<'a>(&self, snapshot: &'a Snapshot) -> Vec<&'a discovery::Instance> {
        let serving = |one: &&discovery::Instance| one.state == discovery::State::Serving;
        let found: Vec<_> = snapshot.instances.iter().filter(serving).collect();
        let size = self.settings.subset_size.unwrap_or(usize::MAX);
        let ids: Vec<String> = found.iter().map(|found| found.address.to_string()).collect();
        let chosen = balance::subset(&ids, &self.client, size);
        chosen.into_iter().map(|at| found[at]).collect()
    }

    fn begin(self: &Arc<Self>, found: &discovery::Instance, now: Instant) -> Option<Member> {
        let Some(instance) = Instance::new(found, now).map(Arc::new) else {
            tracing::warn!(server.address = %found.address, "no such address can be called");
            return None;
        };
        let (present, mut left) = watch::channel(());
        let around = Surroundings {
            settings: Arc::clone(&self.settings),
            wanted: self.calling.subscribe(),
            changed: Arc::new(Told(Arc::downgrade(self))),
        };
        let gone = async move { while left.changed().await.is_ok() {} };
        self.runtime.spawn(Arc::clone(&instance).keep(around, gone));
        Some(Member { instance, _present: present })
    }

    /// Takes in that the standing of an instance is another.
    fn refresh(&self) {
        let now = Instant::now();
        let members = self.members.lock();
        if self.level.load(Ordering::Relaxed) == level(&members) {
            self.roster.rcu(|roster| roster.refreshed(now, fastrand::u64(..)));
        } else {
            self.call_up(&members, now);
        }
        self.count_ejected(&members);
        drop(members);
        self.changed.notify_waiters();
    }

    /// Makes a new roster, of the instances with the lowest number of which any is ready, or of all
    /// where none is.
    fn call_up(&self, members: &Members, now: Instant) {
        let level = level(members);
        let all = members.0.values().map(|member| &member.instance);
        let called = all.filter(|one| level == NOBODY || u32::from(one.priority()) == level);
        let called: Vec<_> = called.cloned().collect();
        let roster = Roster::new(called, self.settings.balance.clone(), now, fastrand::u64(..));
        self.roster.store(Arc::new(roster));
        self.level.store(level, Ordering::Relaxed);
    }

    /// Counts who of the roster is set aside; under the lock of the members, or one that counted before
    /// a change could store that after it.
    fn count_ejected(&self, _: &Members) {
        let roster = self.roster.load();
        let out = roster.candidates().iter().filter(|one| !one.health.in_service()).count();
        self.ejected.store(out, Ordering::Relaxed);
    }

    /// Compares the instances with each other.
    fn sweep(&self) {
        let now = Instant::now();
        let roster = self.roster.load();
        let all = || roster.candidates().iter().map(|one| &one.health);
        if self.ejector.sweep(all(), now, fastrand::f64) == 0 {
            return;
        }
        for instance in roster.candidates() {
            if !instance.health.in_service() && instance.load.standing() == Standing::Ready {
                self.set_aside(instance, now, "it fails far more calls than the others");
            }
        }
        self.refresh();
    }

    fn set_aside(&self, instance: &Instance, now: Instant, reason: &str) {
        tracing::warn!(server.address = instance.address(), reason, "an instance is set aside");
        instance.stand(now);
        self.metrics.ejected();
    }

    /// Why it makes no sense to wait: there is nobody, or nobody can be connected to.
    fn hopeless(&self) -> Option<CallError> {
        if !self.known.load(Ordering::Acquire) {
            let cause = self.watch.lock().trust().trouble?.to_string();
            let registry =
                FailedAttempt { instance: "discovery".into(), took: Duration::ZERO, cause };
            return Some(CallError {
                target: String::new(),
                problem: "its instances are not known",
                attempts: vec![registry],
            });
        }
        let members = self.members.lock();
        let mut causes = Vec::new();
        for member in members.0.values() {
            match member.instance.state() {
                State::BackingOff => {
                    let cause = member.instance.failure();
                    let cause = cause.as_deref().unwrap_or("it ended the connection at once");
                    causes.push(FailedAttempt {
                        instance: member.instance.address().to_owned(),
                        took: Duration::ZERO,
                        cause: cause.to_owned(),
                    });
                }
                // One that is ready was not when it was looked for.
                State::Idle | State::Connecting | State::Ready => return None,
                State::Draining => {}
            }
        }
        let problem =
            if causes.is_empty() { "it has no instances" } else { "no instance can be reached" };
        Some(CallError { target: String::new(), problem, attempts: causes })
    }
}

/// Whom the tasks of instances tell of changes: nobody once the pool is gone.
#[derive(Debug)]
struct Told(Weak<Shared>);

impl Changed for Told {
    fn changed(&self, failed: bool) {
        if let Some(shared) = self.0.upgrade() {
            shared.refresh();
            if failed {
                shared.watch.lock().suspect();
            }
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("roster", &self.roster.load().candidates())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
