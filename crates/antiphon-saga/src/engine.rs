//! Advances sagas: one input, one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::Context;
use antiphon_messaging::{Fail, Incoming};
use antiphon_outbox::{CommitError, Database, InboxEntry, InboxStore, OutboxStore, StoreError, Tx};
use antiphon_telemetry::{SpanKind, Telemetry};

use crate::SagaId;
use crate::batch::Handled;
use crate::decide::{Input, Outcome};
use crate::instance::Instance;
use crate::machine::{Arrival, Known, Machine, TurnError, Turned};
use crate::metrics::Metrics;
use crate::port::{SagaRow, SagaStore};
use crate::wire::{self, Coordinates};

/// The stable word for a saga that another program has to advance.
pub(crate) const NO_DEFINITION: &str = "no-definition";

/// For how long a saga is left alone that cannot be advanced here.
const POSTPONED: Duration = Duration::from_secs(60);

/// The definitions of one service and where their sagas are kept.
pub(crate) struct Engine<S: OutboxStore> {
    pub(crate) database: Database<S>,
    pub(crate) machines: BTreeMap<(&'static str, u32), Arc<dyn Machine<S>>>,
    /// The group that replies come to, which is also what the inbox calls the coordinator.
    pub(crate) group: String,
    pub(crate) metrics: Metrics,
    pub(crate) telemetry: Telemetry,
}

/// Sagas that were started by a version of the definition that this process does not know.
#[derive(Debug, thiserror::Error)]
#[error(
    "sagas are running that this program has no definition of: {}; register these versions, \
     or let the program that has them finish the sagas first",
    .0.join(", ")
)]
pub struct UnknownDefinitions(pub(crate) Vec<String>);

impl<S: SagaStore + OutboxStore + InboxStore> Engine<S> {
    /// The names of the types, once each.
    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        let mut kinds: Vec<_> = self.machines.keys().map(|(kind, _)| *kind).collect();
        kinds.dedup();
        kinds
    }

    pub(crate) fn machine(&self, row: &SagaRow) -> Option<&Arc<dyn Machine<S>>> {
        let mut machines = self.machines.values();
        machines.find(|machine| machine.kind() == row.kind && machine.version() == row.version)
    }

    /// Which sagas there are that nobody here can advance.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) async fn unknown(&self) -> Result<Option<UnknownDefinitions>, StoreError> {
        let known = |kind: &str, version| {
            self.machines.keys().any(|(known, number)| *known == kind && *number == version)
        };
        let live = self.database.store().live().await?;
        let unknown = live.into_iter().filter(|live| !known(&live.kind, live.version));
        let unknown: Vec<String> = unknown
            .map(|live| format!("{} version {} ({})", live.kind, live.version, live.count))
            .collect();
        Ok((!unknown.is_empty()).then_some(UnknownDefinitions(unknown)))
    }

    /// Advances one saga by an input that is not a message, in a transaction of its own and in the
    /// context that the saga was started in. `None` when there is no such saga.
    pub(crate) async fn advance(&self, id: SagaId, input: &Input) -> Result<Option<Turned>, Fail> {
        let mut known = Vec::new();
        loop {
            let mut tx = self.database.begin().await.map_err(store_fail)?;
            let Some(mut row) = self.load(&mut tx, &[id]).await?.pop() else { return Ok(None) };
            match self.turn_in_context(&mut tx, &mut row, input, &known).await {
                Ok(turned) if !turned.accepted => return Ok(Some(turned)),
                Ok(turned) => {
                    self.save(&mut tx, &[row.clone()]).await?;
                    match tx.commit().await {
                        Ok(()) => {
                            self.note(&row, &turned);
                            return Ok(Some(turned));
                        }
                        Err(error) => known.push(blame(&turned, error)?),
                    }
                }
                Err(TurnError::Again(piece)) => known.push(piece),
                Err(TurnError::Failed(fail)) => return Err(fail),
            }
        }
    }

    /// Puts a saga aside that cannot be advanced at all, so that its timer does not go off again and
    /// again; `parked` tells an operator.
    pub(crate) async fn postpone(&self, id: SagaId, parked: bool) -> Result<(), Fail> {
        let mut tx = self.database.begin().await.map_err(store_fail)?;
        let Some(mut row) = self.load(&mut tx, &[id]).await?.pop() else { return Ok(()) };
        row.wake_at = Some(self.database.store().now() + POSTPONED);
        row.parked |= parked;
        self.save(&mut tx, &[row]).await?;
        tx.commit().await.map_err(commit_fail)
    }

    async fn turn_in_context(
        &self,
        tx: &mut Tx<S>,
        row: &mut SagaRow,
        input: &Input,
        known: &[Known],
    ) -> Result<Turned, TurnError> {
        let context = recall(row);
        let name = match input {
            Input::Timer => "saga timer",
            _ => "saga intervention",
        };
        let (context, mut span) = self.telemetry.span(SpanKind::Internal, name, &context, &[]);
        if span.is_recording() {
            span.set("saga.id", row.id.to_string());
            span.set("saga.type", row.kind.as_str());
        }
        context.scope(self.turn(tx, row, input.clone().into(), known)).await
    }

    pub(crate) async fn turn(
        &self,
        tx: &mut Tx<S>,
        row: &mut SagaRow,
        arrival: Arrival<'_>,
        known: &[Known],
    ) -> Result<Turned, TurnError> {
        let now = self.database.store().now();
        let machine = self.machine(row).ok_or_else(|| foreign(row))?;
        machine.turn(tx, row, arrival, known, now).await
    }

    /// Takes replies in, all in one transaction. A piece of work that is not done, and any trouble
    /// with one reply, rolls back the transaction of all of them.
    ///
    /// # Errors
    /// Nothing was committed, or nobody knows whether it was.
    pub(crate) async fn replies(
        &self,
        batch: &[&Incoming],
        known: &[Known],
    ) -> Result<Vec<Handled>, TurnError> {
        let mut tx = self.database.begin().await.map_err(store_fail)?;
        let messages: Vec<_> = batch.iter().map(|incoming| &*incoming.message).collect();
        let store = self.database.store().clone();
        let entries =
            store.enter(tx.connection(), &self.group, &messages).await.map_err(store_fail)?;
        let coordinates: Vec<Coordinates> =
            messages.iter().map(|message| Coordinates::read(message)).collect::<Result<_, _>>()?;
        let ids: BTreeSet<SagaId> = coordinates.iter().map(|at| at.saga).collect();
        let ids: Vec<SagaId> = ids.into_iter().collect();
        let mut sagas = BTreeMap::new();
        for row in self.load(&mut tx, &ids).await? {
            sagas.insert(row.id, (row, Vec::new()));
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        for ((incoming, entry), at) in batch.iter().zip(entries).zip(coordinates) {
            if entry == InboxEntry::New {
                let saga = at.saga;
                let (row, turns) = sagas.get_mut(&saga).ok_or_else(|| no_such_saga(saga))?;
                let turn = self.turn_by_reply(&mut tx, row, at, incoming, known);
                turns.push(incoming.context.clone().scope(turn).await?);
            }
            outcomes.push(settled_before(entry));
        }
        let mut sagas: Vec<(SagaRow, Vec<Turned>)> = sagas.into_values().collect();
        sagas.retain(|(_, turns)| !turns.is_empty());
        let changed: Vec<SagaRow> = sagas
            .iter()
            .filter(|(_, turns)| turns.iter().any(|turned| turned.accepted))
            .map(|(row, _)| row.clone())
            .collect();
        self.save(&mut tx, &changed).await?;
        if let Err(error) = tx.commit().await {
            return Err(match sagas.iter().flat_map(|(_, turns)| turns).next_back() {
                Some(turned) => TurnError::Again(blame(turned, error)?),
                None => commit_fail(error).into(),
            });
        }
        for (row, turns) in &sagas {
            turns.iter().for_each(|turned| self.note(row, turned));
        }
        Ok(outcomes)
    }

    /// Takes one reply in, whatever becomes of the work that follows from it.
    pub(crate) async fn reply(&self, incoming: &Incoming) -> Result<(), Fail> {
        let mut known = Vec::new();
        loop {
            match self.replies(&[incoming], &known).await {
                Ok(outcomes) => return outcomes.into_iter().collect(),
                Err(TurnError::Again(piece)) => known.push(piece),
                Err(TurnError::Failed(fail)) => return Err(fail),
            }
        }
    }

    async fn turn_by_reply(
        &self,
        tx: &mut Tx<S>,
        row: &mut SagaRow,
        coordinates: Coordinates,
        incoming: &Incoming,
        known: &[Known],
    ) -> Result<Turned, TurnError> {
        let machine = self.machine(row).ok_or_else(|| foreign(row))?;
        let step = machine.plan().index_of(&coordinates.step).ok_or_else(|| {
            let text =
                format!("{} version {} has no step {}", row.kind, row.version, coordinates.step);
            Fail::permanent(text).with_code("decode")
        })?;
        let Coordinates { op, attempt, .. } = coordinates;
        let outcome: Outcome = wire::outcome(&incoming.message);
        let arrival = Arrival {
            input: Input::Reply { step, op, attempt, outcome },
            reply: Some(&incoming.message.body),
        };
        self.turn(tx, row, arrival, known).await
    }

    async fn load(&self, tx: &mut Tx<S>, ids: &[SagaId]) -> Result<Vec<SagaRow>, Fail> {
        let store = self.database.store().clone();
        store.load(tx.connection(), ids).await.map_err(store_fail)
    }

    async fn save(&self, tx: &mut Tx<S>, rows: &[SagaRow]) -> Result<(), Fail> {
        let store = self.database.store().clone();
        store.save(tx.connection(), rows).await.map_err(store_fail)
    }

    /// Tells operators what a committed turn changed.
    pub(crate) fn note(&self, row: &SagaRow, turned: &Turned) {
        self.metrics.turned(&row.kind, turned);
        if turned.turned_back.is_some() || turned.parked.is_some() {
            recall(row).sync_scope(|| log(row, turned));
        }
    }
}

/// The context that a saga was begun in.
fn recall(row: &SagaRow) -> Context {
    Instance::decode(row.state, &row.progress)
        .map_or_else(|_| Context::root(), |instance| wire::recall(&instance.context))
}

fn log(row: &SagaRow, turned: &Turned) {
    if let Some(failure) = &turned.turned_back {
        tracing::info!(
            saga = %row.id, kind = %row.kind, correlation = %row.correlation,
            step = failure.step.as_deref().unwrap_or_default(),
            reason = %failure.reason, detail = %failure.message,
            "saga turns back"
        );
    }
    if let Some(why) = &turned.parked {
        tracing::error!(
            saga = %row.id, kind = %row.kind, correlation = %row.correlation, why = %why,
            "saga is parked and needs an operator"
        );
    }
}

/// What a message has come to once its transaction is committed.
pub(crate) fn settled_before(entry: InboxEntry) -> Result<(), Fail> {
    match entry {
        InboxEntry::New | InboxEntry::Duplicate => Ok(()),
        InboxEntry::BeyondHorizon => {
            let text = "the message is older than what the inbox remembers";
            Err(Fail::permanent(text).with_code("dedup-horizon"))
        }
    }
}

fn foreign(row: &SagaRow) -> Fail {
    // Another instance of the service, newer or older, may have it.
    Fail::defer(format!("no definition of {} version {} here", row.kind, row.version))
        .with_code(NO_DEFINITION)
}

fn no_such_saga(id: SagaId) -> Fail {
    Fail::permanent(format!("there is no saga {id} here (any more)"))
}

/// A store that is busy or away is no fault of the message.
pub(crate) fn store_fail(error: StoreError) -> Fail {
    Fail::defer(error)
}

/// The same; and after an unknown outcome, the message comes again and finds out. What the store
/// refuses for good may be the message's own fault.
pub(crate) fn commit_fail(error: CommitError) -> Fail {
    match error {
        CommitError::RolledBack(StoreError::Failed { .. }) => Fail::retry(error),
        _ => Fail::defer(error),
    }
}

/// The piece of work that is at fault when a transaction was refused for good: what it wrote goes
/// with the commit only, and may break a constraint there.
///
/// # Errors
/// No piece is: the commit failed for another reason.
fn blame(turned: &Turned, error: CommitError) -> Result<Known, Fail> {
    let blamed = match &error {
        CommitError::RolledBack(refused @ StoreError::Failed { .. }) => turned.blame(refused),
        _ => None,
    };
    blamed.ok_or_else(|| commit_fail(error))
}
