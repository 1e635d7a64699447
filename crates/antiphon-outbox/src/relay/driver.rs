//! Does what the engine decides: store and broker calls, several at a time.

use antiphon_core::{Shutdown, Status, Timestamp};
use antiphon_messaging::{AnyBroker, Message, PublishError, PublishErrorKind, Receipt, Sent};
use antiphon_telemetry::{Span, SpanKind, Telemetry};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::Instant;

use super::engine::{Action, Burial, Engine, Part};
use super::lane::Reading;
use super::settings::RelaySettings;
use super::{OUTBOX, RESERVE};
use crate::metrics::RelayMetrics;
use crate::port::{Confirmation, Lease, OutboxRow, OutboxStore, Position, StoreError};

/// What came of an [`Action`].
enum Done {
    Tended { held: Vec<Lease>, asked_at: Instant, answer: Result<(Vec<Lease>, u32), StoreError> },
    Acquired { asked_at: Instant, answer: Result<Vec<Lease>, StoreError> },
    Released(Result<(), StoreError>),
    Read { readings: Vec<Reading>, count_max: u32, answer: Result<Vec<OutboxRow>, StoreError> },
    Published { parts: Vec<Part>, answers: Vec<Result<Receipt, PublishError>> },
    Confirmed { confirmations: Vec<Confirmation>, answer: Result<Vec<u32>, StoreError> },
    Buried { burial: Box<Burial>, answer: Result<(), StoreError> },
}

pub(super) struct Driver<S> {
    pub(super) store: S,
    pub(super) broker: AnyBroker,
    pub(super) settings: RelaySettings,
    pub(super) owner: String,
    pub(super) metrics: RelayMetrics,
    pub(super) telemetry: Telemetry,
}

impl<S: OutboxStore> Driver<S> {
    /// Runs until everything that was committed is published, or the drain time is over.
    pub(super) async fn run(&self, mut committed: watch::Receiver<()>, shutdown: &Shutdown) {
        let mut engine = Engine::new(self.settings.clone(), Instant::now());
        let mut actions = FuturesUnordered::new();
        let mut is_draining = false;
        let mut all_senders_gone = false;
        loop {
            while let Some(action) = engine.next(Instant::now()) {
                actions.push(self.perform(action));
            }
            let now = Instant::now();
            if engine.is_drained(now) {
                break;
            }
            tokio::select! {
                biased;
                Some(done) = actions.next() => self.take_in(&mut engine, done),
                changed = committed.changed(), if !is_draining && !all_senders_gone => {
                    all_senders_gone = changed.is_err();
                    engine.wake();
                }
                () = self.store.changed(), if !is_draining => engine.wake(),
                () = shutdown.draining(), if !is_draining => {
                    is_draining = true;
                    engine.drain(Instant::now());
                }
                () = almost_cut(shutdown), if is_draining => break,
                () = tokio::time::sleep_until(engine.wake_at(now)) => {}
            }
            self.record(&mut engine);
        }
        drop(actions);
        if let Err(error) = self.store.leave(OUTBOX, &self.owner).await {
            tracing::warn!(%error, "the lanes of the outbox are free only when their leases end");
        }
    }

    async fn perform(&self, action: Action) -> Done {
        let store = &self.store;
        let asked_at = Instant::now();
        match action {
            Action::Tend(held) => {
                let answer = self.tend(&held).await;
                Done::Tended { held, asked_at, answer }
            }
            Action::Acquire(count) => {
                let ttl = self.settings.lease_ttl;
                let lanes = antiphon_messaging::LANES;
                let answer = store.acquire(OUTBOX, lanes, count, &self.owner, ttl).await;
                Done::Acquired { asked_at, answer }
            }
            Action::Release(leases) => Done::Released(store.release(&leases).await),
            Action::Read { readings, count_max } => {
                let positions: Vec<Position> =
                    readings.iter().map(|reading| reading.position).collect();
                let answer = store.read(&positions, self.due_by(), count_max).await;
                Done::Read { readings, count_max, answer }
            }
            Action::Publish(call) => {
                let answers = self.publish(call.messages).await;
                Done::Published { parts: call.parts, answers }
            }
            Action::Confirm(confirmations) => {
                let answer = store.confirm(&confirmations).await;
                Done::Confirmed { confirmations, answer }
            }
            Action::Bury(burial) => {
                let answer = store.bury(&burial.lease, burial.seq, &burial.reason).await;
                Done::Buried { burial, answer }
            }
        }
    }

    async fn tend(&self, held: &[Lease]) -> Result<(Vec<Lease>, u32), StoreError> {
        let ttl = self.settings.lease_ttl;
        let renewed =
            if held.is_empty() { Vec::new() } else { self.store.renew(held, ttl).await? };
        let instances = self.store.instances(OUTBOX, &self.owner, ttl).await?;
        Ok((renewed, instances))
    }

    /// What the broker itself holds back until it is due may be handed to it early.
    fn due_by(&self) -> Timestamp {
        self.store.now() + self.broker.capabilities().publish_delay_max
    }

    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<Receipt, PublishError>> {
        let count = messages.len();
        let spans = self.spans(&messages);
        let call = self.broker.publish(messages);
        let answers = match tokio::time::timeout(self.settings.publish_timeout, call).await {
            Ok(answers) => answers,
            Err(_) => std::iter::repeat_with(|| Err(timed_out())).take(count).collect(),
        };
        for (index, mut span) in spans {
            if let Some(Err(error)) = answers.get(index) {
                span.fail(&Status::unavailable(error.to_string()));
            }
        }
        answers
    }

    /// One span per message whose trace is recorded, beside those of its consumers: all of them are
    /// below the work that emitted it.
    fn spans(&self, messages: &[Message]) -> Vec<(usize, Span)> {
        let mut spans = Vec::new();
        if !self.telemetry.records_spans() {
            return spans;
        }
        for (index, message) in messages.iter().enumerate() {
            let context = message.context(Timestamp::EPOCH);
            if !context.trace().sampled {
                continue;
            }
            let name = format!("publish {}", message.kind);
            let (_, mut span) = self.telemetry.span(SpanKind::Producer, &name, &context, &[]);
            span.set("messaging.operation.name", "publish");
            span.set("messaging.destination.name", message.topic.as_str());
            span.set("messaging.message.id", message.id.to_string());
            spans.push((index, span));
        }
        spans
    }

    fn take_in(&self, engine: &mut Engine, done: Done) {
        let now = Instant::now();
        let (action, result) = match done {
            Done::Tended { held, asked_at, answer } => {
                ("renew leases", engine.on_tended(&held, asked_at, answer, now))
            }
            Done::Acquired { asked_at, answer } => {
                ("acquire lanes", engine.on_acquired(asked_at, answer, now))
            }
            Done::Released(answer) => {
                engine.on_released();
                ("release lanes", answer)
            }
            Done::Read { readings, count_max, answer } => {
                ("read the outbox", engine.on_read(&readings, count_max, answer, now))
            }
            Done::Published { parts, answers } => {
                log_failures(&answers);
                engine.on_published(parts, &answers, now);
                return;
            }
            Done::Confirmed { confirmations, answer } => {
                ("remove published rows", engine.on_confirmed(&confirmations, answer, now))
            }
            Done::Buried { burial, answer } => {
                burial.message.context(self.store.now()).sync_scope(|| {
                    tracing::error!(
                        message_id = %burial.message.id,
                        kind = %burial.message.kind,
                        topic = %burial.message.topic,
                        reason = %burial.reason,
                        "the broker refuses a message for good; it is put aside"
                    );
                });
                ("bury a row", engine.on_buried(*burial, answer, now))
            }
        };
        if let Err(error) = result {
            tracing::warn!(%error, action, "the relay will try again");
        }
    }

    fn record(&self, engine: &mut Engine) {
        let counts = engine.take_counts();
        let metrics = &self.metrics;
        metrics.published.inc_by(counts.published);
        metrics.resent.inc_by(counts.resent);
        metrics.failed.inc_by(counts.failed);
        metrics.buried.inc_by(counts.buried);
        metrics.leases_lost.inc_by(counts.leases_lost);
        metrics.lanes.set(i64::try_from(engine.count_lanes()).unwrap_or(i64::MAX));
    }
}

/// Completes shortly before the cut, so that there is time to give the leases back.
async fn almost_cut(shutdown: &Shutdown) {
    match shutdown.drain_deadline() {
        Some(deadline) => {
            tokio::select! {
                () = tokio::time::sleep_until(deadline - RESERVE) => {}
                () = shutdown.cut() => {}
            }
        }
        None => shutdown.cut().await,
    }
}

fn timed_out() -> PublishError {
    PublishError {
        topic: "a batch".into(),
        kind: PublishErrorKind::Disconnected,
        sent: Sent::Maybe,
        source: Some("the broker did not answer in time".into()),
    }
}

/// One line per call, however many messages failed.
fn log_failures(answers: &[Result<Receipt, PublishError>]) {
    let count = answers.iter().filter(|answer| answer.is_err()).count();
    if let Some(Err(error)) = answers.iter().find(|answer| answer.is_err()) {
        tracing::warn!(%error, count, "messages were not confirmed and will be sent again");
    }
}
