//! Looking at sagas, and intervening.

use std::fmt;
use std::sync::Arc;

use antiphon_core::Timestamp;
use antiphon_messaging::Fail;
use antiphon_outbox::{InboxStore, OutboxStore, StoreError, Tx};

use crate::SagaId;
use crate::decide::Input;
use crate::engine::Engine;
use crate::instance::{Failure, Instance, Phase};
use crate::port::{SagaFilter, SagaRow, SagaStore, State};

/// What became of an intervention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intervention {
    /// It was taken in.
    Done,
    /// There is no such saga.
    NotFound,
    /// The saga is not in a state in which this means anything: it has ended, has passed its pivot,
    /// is not parked, or the step is not of unknown outcome.
    NotNow,
}

/// One saga, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SagaView {
    /// Which saga.
    pub id: SagaId,
    /// Its type.
    pub kind: String,
    /// What it is about.
    pub correlation: String,
    /// The version of its definition.
    pub version: u32,
    /// How far it is.
    pub state: State,
    /// Why it is parked.
    pub parked: Option<String>,
    /// Why it turned back.
    pub failure: Option<Failure>,
    /// Its steps.
    pub steps: Vec<StepView>,
    /// When something happens next, if nothing comes in before.
    pub wake_at: Option<Timestamp>,
    /// When it was started.
    pub created_at: Timestamp,
    /// When it moved last.
    pub updated_at: Timestamp,
}

/// One step of a saga, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepView {
    /// Its name; its number where the definition is not known here.
    pub name: String,
    /// How far it is.
    pub phase: Phase,
    /// How often it was asked for, in this phase.
    pub tries: u32,
    /// When it is asked for again.
    pub due: Option<Timestamp>,
}

/// Looks at the sagas of one service, and intervenes. Cheap to clone.
pub struct SagaOperator<S: OutboxStore>(Arc<Engine<S>>);

impl<S: OutboxStore> Clone for SagaOperator<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: SagaStore + OutboxStore + InboxStore> SagaOperator<S> {
    pub(crate) fn new(engine: Arc<Engine<S>>) -> Self {
        Self(engine)
    }

    /// Sagas in the order in which they were started, at most `count_max`.
    ///
    /// # Errors
    /// The store fails.
    pub async fn list(
        &self,
        filter: &SagaFilter,
        count_max: u32,
    ) -> Result<Vec<SagaView>, StoreError> {
        let rows = self.0.database.store().list(filter, count_max).await?;
        Ok(rows.into_iter().map(|row| self.view(row)).collect())
    }

    /// One saga.
    ///
    /// # Errors
    /// The store fails.
    pub async fn show(&self, id: SagaId) -> Result<Option<SagaView>, StoreError> {
        let store = self.0.database.store();
        let mut connection = store.begin().await?;
        let row = store.load(&mut connection, &[id]).await?.pop();
        Ok(row.map(|row| self.view(row)))
    }

    /// Tries again at once what a parked saga keeps failing at.
    ///
    /// # Errors
    /// The store fails, or the saga cannot be read.
    pub async fn resume(&self, id: SagaId) -> Result<Intervention, Fail> {
        self.intervene(id, Input::Resume).await
    }

    /// Says what became of an at-most-once step whose outcome nobody knew.
    ///
    /// # Errors
    /// The store fails, or the saga cannot be read.
    pub async fn settle(
        &self,
        id: SagaId,
        step: &str,
        happened: bool,
    ) -> Result<Intervention, Fail> {
        let Some(view) = self.show(id).await? else { return Ok(Intervention::NotFound) };
        match view.steps.iter().position(|known| known.name == step) {
            Some(step) => self.intervene(id, Input::Settle { step, happened }).await,
            None => Ok(Intervention::NotFound),
        }
    }

    /// Makes a saga turn back, unless it has passed its pivot.
    ///
    /// # Errors
    /// The store fails, or the saga cannot be read.
    pub async fn cancel(&self, id: SagaId) -> Result<Intervention, Fail> {
        self.intervene(id, Input::Cancel).await
    }

    /// The same, in somebody's transaction: the saga turns back when it is committed.
    ///
    /// # Errors
    /// The store fails, or the saga cannot be read; the transaction must be rolled back.
    pub async fn cancel_within(
        &self,
        tx: &mut Tx<S>,
        kind: &str,
        correlation: &str,
    ) -> Result<Intervention, Fail> {
        let store = tx.database().store().clone();
        let Some(mut row) = store.find(tx.connection(), kind, correlation).await? else {
            return Ok(Intervention::NotFound);
        };
        let Some(machine) = self.0.machine(&row) else {
            return Err(Fail::defer(format!("no definition of {kind} version {}", row.version)));
        };
        let turned = machine.turn_within(tx, &mut row, Input::Cancel, store.now())?;
        if !turned.accepted {
            return Ok(Intervention::NotNow);
        }
        store.save(tx.connection(), std::slice::from_ref(&row)).await?;
        Ok(Intervention::Done)
    }

    async fn intervene(&self, id: SagaId, input: Input) -> Result<Intervention, Fail> {
        Ok(match self.0.advance(id, &input).await? {
            None => Intervention::NotFound,
            Some(turned) if turned.accepted => Intervention::Done,
            Some(_) => Intervention::NotNow,
        })
    }

    fn view(&self, row: SagaRow) -> SagaView {
        let plan = self.0.machine(&row).map(|machine| machine.plan());
        let instance = Instance::decode(row.state, &row.progress).ok();
        let (steps, parked, failure) = instance
            .map(|instance| (instance.steps, instance.parked, instance.failure))
            .unwrap_or_default();
        let name = |index: usize| {
            let step = plan.and_then(|plan| plan.steps.get(index));
            step.map_or_else(|| index.to_string(), |step| step.name.to_owned())
        };
        let steps = steps.into_iter().enumerate().map(|(index, step)| StepView {
            name: name(index),
            phase: step.phase,
            tries: step.tries,
            due: step.due,
        });
        SagaView {
            id: row.id,
            steps: steps.collect(),
            parked,
            failure,
            kind: row.kind,
            correlation: row.correlation,
            version: row.version,
            state: row.state,
            wake_at: row.wake_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

impl<S: OutboxStore> fmt::Debug for SagaOperator<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SagaOperator")
    }
}
