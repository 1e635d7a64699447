//! Acts on what the pure parts decide: one driver per subscription, one task, no task per message.
//!
//! A turn of the loop asks the source for as many messages as there are credits, starts what may
//! start, takes in what has ended, and settles all of it in one go. A handler that is done at its
//! first poll costs no queueing at all.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use antiphon_core::{BoxFuture, Retry, Shutdown};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::away::AwayKeys;
use super::credits::Credits;
use super::executor::{Executor, Item};
use super::held::{Held, Kinds, ignored};
use super::ladder::{Circumstances, Ladder, Verdict};
use super::parking::{self, Parked};
use super::pipeline::{Pipeline, Ran};
use crate::any_broker::AnyBroker;
use crate::envelope;
use crate::fail::Fail;
use crate::metrics::GroupMetrics;
use crate::port::{
    DeadReason, Delivery, Fetched, Settled, Settlement, Settling, Source, settle_all,
};

/// How long the broker may take to confirm the last settlements after everything was cut.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// How a group works.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) ordered: bool,
    pub(crate) concurrency: usize,
    pub(crate) batch_max: usize,
    pub(crate) credits: usize,
    pub(crate) ladder: Ladder,
    /// Where messages are parked that the broker cannot keep.
    pub(crate) parking: Option<AnyBroker>,
    /// Whether the broker keeps dead letters itself.
    pub(crate) buries: bool,
}

/// Why a subscription ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The drain is done.
    Drained,
    /// The source is gone.
    Lost {
        reason: String,
        /// Whether it had worked: something came in.
        worked: bool,
    },
}

/// What one turn of the loop brought.
enum Turn {
    Fetched(Fetched),
    MoreCredits,
    Drain,
}

/// See the module.
pub(crate) struct Driver {
    pipeline: Arc<Pipeline>,
    rules: Rules,
    metrics: GroupMetrics,
    kinds: Kinds,
    executor: Executor<Held>,
    away: AwayKeys,
    running: FuturesUnordered<BoxFuture<'static, Ran>>,
    /// Deliveries that wait here for their next try, by when it is due.
    waiting: BTreeMap<(Instant, u64), Held>,
    waited: u64,
    /// What the next [`Self::flush`] settles.
    settlements: Vec<(Delivery, Settlement)>,
    settling: FuturesUnordered<BoxFuture<'static, (u32, Settled)>>,
    credits: Credits,
    /// Since when handlers have met nothing but an outage.
    outage_since: Option<Instant>,
    draining: bool,
    worked: bool,
}

impl Driver {
    pub(crate) fn new(pipeline: Arc<Pipeline>, rules: Rules, metrics: GroupMetrics) -> Self {
        Self {
            executor: Executor::new(rules.ordered, rules.concurrency),
            credits: Credits::new(rules.credits),
            pipeline,
            rules,
            metrics,
            kinds: Kinds::default(),
            away: AwayKeys::new(),
            running: FuturesUnordered::new(),
            waiting: BTreeMap::new(),
            waited: 0,
            settlements: Vec::new(),
            settling: FuturesUnordered::new(),
            outage_since: None,
            draining: false,
            worked: false,
        }
    }

    /// Consumes until the source ends or the drain is done.
    ///
    /// When the source is lost, what still runs is cancelled: all of it comes again, and must not
    /// run twice at the same time.
    pub(crate) async fn run(mut self, mut source: Box<dyn Source>, shutdown: &Shutdown) -> End {
        let mut draining = pin!(shutdown.draining());
        loop {
            tokio::task::coop::consume_budget().await;
            match self.turn(&mut *source, draining.as_mut()).await {
                Turn::Fetched(Fetched::Deliveries(deliveries)) => self.take_in(deliveries).await,
                Turn::Fetched(Fetched::Revoked { lanes, done }) => self.revoke(lanes, done),
                Turn::Fetched(Fetched::Lost(reason)) => {
                    self.metrics.lost.inc();
                    return End::Lost { reason, worked: self.worked };
                }
                Turn::MoreCredits => {}
                Turn::Drain => {
                    self.drain(source, shutdown).await;
                    return End::Drained;
                }
            }
        }
    }

    /// Waits for something to fetch, and meanwhile gets on with what is held. The fetch is begun
    /// anew only when that is worth it: some sources start a query each time.
    async fn turn(
        &mut self,
        source: &mut dyn Source,
        mut draining: Pin<&mut impl Future<Output = ()>>,
    ) -> Turn {
        let asked = self.credits.left();
        let mut fetch = source.fetch(asked);
        loop {
            tokio::select! {
                biased;
                () = draining.as_mut() => return Turn::Drain,
                () = self.progress() => {
                    let left = self.credits.left();
                    let idle = asked == 0 && left > 0 && self.executor.is_idle();
                    if idle || left >= asked + self.credits.worthwhile() {
                        return Turn::MoreCredits;
                    }
                }
                fetched = &mut fetch => return Turn::Fetched(fetched),
            }
        }
    }

    /// Waits until something that is held can go on, and lets it.
    ///
    /// # Cancel safety
    /// Safe: all waiting is done before anything is changed.
    async fn progress(&mut self) {
        let due = self.waiting.first_key_value().map(|((due, _), _)| *due);
        tokio::select! {
            biased;
            Some(ran) = self.running.next(), if !self.running.is_empty() => self.ran(ran),
            Some((lane, settled)) = self.settling.next(), if !self.settling.is_empty() => {
                self.settled(lane, settled);
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            else => std::future::pending().await,
        }
        while let Some(Some(ran)) = self.running.next().now_or_never() {
            self.ran(ran);
        }
        while let Some(Some((lane, settled))) = self.settling.next().now_or_never() {
            self.settled(lane, settled);
        }
        self.resume_due();
        self.start().await;
        self.flush();
    }

    async fn take_in(&mut self, deliveries: Vec<Delivery>) {
        self.worked = true;
        let now = Instant::now();
        for mut delivery in deliveries {
            self.credits.take(delivery.lane);
            parking::unwrap(&mut delivery);
            let message = &delivery.message;
            let kind = self.kinds.get(&message.kind, &*self.pipeline.handler, &self.metrics);
            kind.metrics.consumed.inc();
            if let Some(after) = self.away.holds(message, now) {
                // Released, it would come again at once, if the broker does not know of the wait.
                self.settlements.push((delivery, Settlement::Retry { after, attempts: 0 }));
            } else if let Some(defect) = envelope::defect(message) {
                let error = format!("the envelope does not read: {defect}");
                let reason = DeadReason { code: "decode", error, attempts: 0 };
                self.bury(Held::new(delivery, kind), reason);
            } else if kind.known {
                self.executor.push(Held::new(delivery, kind));
            } else {
                ignored(&self.metrics.ignored, &self.pipeline.group, message);
                self.settlements.push((delivery, Settlement::Ack));
            }
        }
        self.start().await;
        self.flush();
    }

    /// Starts what may start. Nothing here waits: a run is polled once, and kept if it is not done.
    async fn start(&mut self) {
        while let Some(mut batch) = self.executor.start(self.rules.batch_max) {
            self.bury_expired(&mut batch);
            if batch.is_empty() {
                self.executor.ended();
                continue;
            }
            let mut run = Arc::clone(&self.pipeline).run(batch);
            match futures_util::poll!(&mut run) {
                Poll::Ready(ran) => self.ran(ran),
                Poll::Pending => self.running.push(run),
            }
        }
    }

    /// Takes out of a batch what nobody waits for any more.
    fn bury_expired(&mut self, batch: &mut Vec<Held>) {
        let deadline = |held: &Held| held.delivery.message.deadline();
        if batch.iter().all(|held| deadline(held).is_none()) {
            return;
        }
        let now = self.pipeline.clock.now();
        for held in std::mem::take(batch) {
            if deadline(&held).is_some_and(|deadline| deadline <= now) {
                let error = "the sender's deadline had passed".to_owned();
                let attempts = held.tries.attempt() - 1;
                let (group, message) = (&*self.pipeline.group, &held.delivery.message);
                tracing::warn!(group, kind = message.kind, id = %message.id, error, "message expired");
                self.bury(held, DeadReason { code: "expired", error, attempts });
            } else {
                batch.push(held);
            }
        }
    }

    fn ran(&mut self, ran: Ran) {
        self.executor.ended();
        let outcomes = match ran.outcomes {
            Ok(outcomes) => outcomes,
            Err(why) if ran.batch.len() > 1 => return self.part(ran.batch, &why),
            Err(why) => vec![Err(Fail::retry(why))],
        };
        for (held, outcome) in ran.batch.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => {
                    self.outage_since = None;
                    held.kind.metrics.acked(ran.took);
                    self.executor.free(&held.delivery.message);
                    self.settlements.push((held.delivery, Settlement::Ack));
                }
                Err(fail) => self.failed(held, &fail, ran.took),
            }
        }
    }

    /// A batch came to nothing as a whole. One of its messages may be to blame and the others not:
    /// nothing is counted, and each is tried by itself.
    fn part(&mut self, batch: Vec<Held>, why: &str) {
        let count = batch.len();
        tracing::warn!(group = &*self.pipeline.group, count, why, "batch not handled");
        for mut held in batch.into_iter().rev() {
            held.alone = true;
            if self.draining {
                self.release_with_followers(held);
            } else {
                self.executor.resume(held);
            }
        }
    }

    fn failed(&mut self, mut held: Held, fail: &Fail, took: Duration) {
        let now = Instant::now();
        let attempt = held.tries.attempt();
        held.tries = held.tries.failed(fail.hint());
        let elapsed = held.since.map_or(Duration::ZERO, |since| now - since);
        let outage = match fail.hint() {
            Retry::Outage => now - *self.outage_since.get_or_insert(now),
            _ => Duration::ZERO,
        };
        let circumstances =
            Circumstances { elapsed, outage, draining: self.draining, jitter: fastrand::f64() };
        let verdict = self.rules.ladder.decide(held.tries, fail, circumstances);
        let message = &held.delivery.message;
        message.context(self.pipeline.clock.now()).sync_scope(|| {
            tracing::warn!(
                group = &*self.pipeline.group,
                kind = %message.kind,
                id = %message.id,
                key = %message.key,
                attempt,
                error = %fail,
                next = ?verdict,
                "message not handled"
            );
        });
        let metrics = &held.kind.metrics;
        match verdict {
            Verdict::Here(wait) => {
                metrics.retried(took);
                metrics.retries_here.inc();
                self.waited += 1;
                self.waiting.insert((now + wait, self.waited), held);
            }
            Verdict::Broker(after) => {
                metrics.retried(took);
                metrics.retries_broker.inc();
                self.send_back(held, now, after);
            }
            Verdict::Park(wait) => {
                metrics.retried(took);
                metrics.retries_parked.inc();
                self.park(held, Parked::Waiting(wait));
            }
            Verdict::Release => {
                metrics.retried(took);
                self.release_with_followers(held);
            }
            Verdict::Dead(reason) => {
                metrics.died(took);
                self.bury(held, reason);
            }
        }
    }

    /// Lets the broker wait with a message, and with all that follows it.
    fn send_back(&mut self, held: Held, now: Instant, after: Duration) {
        if self.rules.ordered {
            self.away.note(&held.delivery.message, now, after);
        }
        let followers = self.executor.give_up(&held.delivery.message);
        let attempts = held.tries.counted;
        self.settlements.push((held.delivery, Settlement::Retry { after, attempts }));
        self.release(followers);
    }

    fn release_with_followers(&mut self, held: Held) {
        let followers = self.executor.give_up(&held.delivery.message);
        self.release([held]);
        self.release(followers);
    }

    fn release(&mut self, items: impl IntoIterator<Item = Held>) {
        for held in items {
            // Attempts that were made here are lost otherwise.
            let settlement = match held.tries.counted {
                0 => Settlement::Release,
                attempts => Settlement::Retry { after: Duration::ZERO, attempts },
            };
            self.settlements.push((held.delivery, settlement));
        }
    }

    fn bury(&mut self, held: Held, reason: DeadReason) {
        self.metrics.dead(&held.kind.label, reason.code);
        if self.rules.buries {
            self.executor.free(&held.delivery.message);
            self.settlements.push((held.delivery, Settlement::Dead(reason)));
        } else {
            self.park(held, Parked::Dead(reason));
        }
    }

    /// Gives a message to the parking broker, and acknowledges it when that has it. Without an
    /// answer it comes again from its own broker.
    fn park(&mut self, held: Held, parked: Parked) {
        self.executor.free(&held.delivery.message);
        let Some(broker) = self.rules.parking.clone() else {
            self.release([held]);
            return;
        };
        let attempts = held.tries.attempt() - 1;
        let group = Arc::clone(&self.pipeline.group);
        let now = self.pipeline.clock.now();
        let lane = held.delivery.lane;
        let settled = parking::settle(broker, group, held.delivery, attempts, parked, now);
        self.settling.push(Box::pin(settled.map(move |settled| (lane, settled))));
    }

    /// Settles what has ended since the last time.
    fn flush(&mut self) {
        if !self.settlements.is_empty() {
            self.settle();
        }
        self.metrics.in_flight.set(count(self.credits.held()));
        self.metrics.credits.set(count(self.credits.left()));
        self.metrics.parked.set(count(self.waiting.len() + self.away.len()));
    }

    fn settle(&mut self) {
        let batch = std::mem::take(&mut self.settlements);
        let lanes: Vec<u32> = batch.iter().map(|(delivery, _)| delivery.lane).collect();
        for (lane, settling) in lanes.into_iter().zip(settle_all(batch)) {
            match settling {
                Settling::Done(settled) => self.settled(lane, settled),
                Settling::Wait(answer) => {
                    self.settling.push(Box::pin(answer.map(move |settled| (lane, settled))));
                }
            }
        }
    }

    fn settled(&mut self, lane: u32, settled: Settled) {
        if settled == Settled::Stale {
            self.metrics.stale.inc();
        }
        self.credits.give(lane);
    }

    fn resume_due(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(entry) = self.waiting.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let held = entry.remove();
            self.executor.resume(held);
        }
    }

    /// Gives back what has not started of these lanes; what runs is settled when it ends.
    fn revoke(&mut self, lanes: Vec<u32>, done: oneshot::Sender<()>) {
        self.give_back(|held| lanes.contains(&held.delivery.lane));
        self.credits.revoke(lanes, done);
    }

    /// Gives back what has not started, or waits for another try.
    fn give_back(&mut self, which: impl Fn(&Held) -> bool) {
        let queued = self.executor.take(&which);
        let waiting: Vec<Held> =
            self.waiting.extract_if(.., |_, held| which(held)).map(|(_, held)| held).collect();
        for held in &waiting {
            self.executor.free(held.message());
        }
        self.release(waiting);
        self.release(queued);
        self.flush();
    }

    /// Finishes what runs and gives back the rest. After the cut, what still runs is dropped at its
    /// await point, which gives it back as well.
    async fn drain(&mut self, source: Box<dyn Source>, shutdown: &Shutdown) {
        self.draining = true;
        let mut leave = source.close();
        self.give_back(|_| true);
        let finish = async {
            while !self.running.is_empty() || !self.settling.is_empty() {
                self.progress().await;
            }
            (&mut leave).await;
        };
        let cut = tokio::select! {
            biased;
            () = finish => false,
            () = shutdown.cut() => true,
        };
        if cut {
            let count = self.running.len();
            tracing::warn!(group = &*self.pipeline.group, count, "handlers cut off by the end");
            self.running.clear();
            let _ = tokio::time::timeout(LEAVE_WITHIN, leave).await;
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        for gauge in [&self.metrics.in_flight, &self.metrics.credits, &self.metrics.parked] {
            gauge.set(0);
        }
    }
}

/// A gauge's value.
fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
