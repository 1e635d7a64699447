//! How a saga begins: in the transaction of whoever wants it.

use antiphon_core::Timestamp;
use antiphon_messaging::Fail;
use antiphon_outbox::{OutboxStore, StoreError, Tx};
use buffa::Message as Protobuf;

use crate::decide::Input;
use crate::instance::Instance;
use crate::machine::Turn;
use crate::port::{SagaRow, SagaStore, State};
use crate::{Saga, SagaId, wire};

/// A saga that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Which saga.
    pub id: SagaId,
    /// Whether it was begun now; false when there was one of this type and correlation id already,
    /// which then goes on as it is.
    pub is_new: bool,
}

impl<D: Protobuf + 'static, S: SagaStore + OutboxStore> Saga<D, S> {
    /// Begins a saga in this transaction: it exists, and its first commands are sent, when the
    /// transaction is committed.
    ///
    /// There is one saga per type and `correlation`, however often it is asked for. Local steps that
    /// come first run shortly after the commit.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    pub async fn start(
        &self,
        tx: &mut Tx<S>,
        correlation: &str,
        data: &D,
    ) -> Result<Started, StoreError> {
        let store = tx.database().store().clone();
        let now = store.now();
        let mut row = self.row(now, correlation, data);
        let mut turn = Turn::open(&self.0, &row, now).map_err(unreadable)?;
        turn.take(Input::Start.into()).map_err(unreadable)?;
        let commands = turn.commands(tx.database().service());
        turn.close(&mut row);
        if store.insert(tx.connection(), &row).await? {
            for command in commands {
                tx.push(command);
            }
            return Ok(Started { id: row.id, is_new: true });
        }
        let existing = store.find(tx.connection(), self.kind(), correlation).await?;
        let id = existing.map_or(row.id, |row| row.id);
        Ok(Started { id, is_new: false })
    }

    fn row(&self, now: Timestamp, correlation: &str, data: &D) -> SagaRow {
        let plan = &self.0.plan;
        let mut instance = Instance::new(plan.steps.len(), now + plan.deadline);
        instance.context = wire::remember_current();
        SagaRow {
            id: SagaId::new(now, self.kind(), correlation),
            kind: self.kind().to_owned(),
            correlation: correlation.to_owned(),
            version: self.version(),
            state: State::Running,
            parked: false,
            revision: 0,
            wake_at: None,
            data: data.encode_to_vec().into(),
            progress: instance.encode(),
            created_at: now,
            updated_at: now,
        }
    }
}

/// What was written a moment ago cannot be read.
fn unreadable(fail: Fail) -> StoreError {
    StoreError::Failed { action: "beginning a saga", source: fail.describe().into() }
}
