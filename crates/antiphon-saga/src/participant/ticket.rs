//! Answering a command in a later transaction.

use antiphon_messaging::Fail;
use antiphon_outbox::{OutboxStore, Tx};
use buffa::Message as Protobuf;

use crate::decide::Op;
use crate::engine::store_fail;
use crate::port::{BarrierKey, BarrierStore, StoredReply};
use crate::{Rejection, Ticket};

impl Ticket {
    /// Answers that it is done, when this transaction is committed.
    ///
    /// # Errors
    /// The store fails; the transaction must be rolled back.
    pub async fn done<S: BarrierStore + OutboxStore>(
        &self,
        tx: &mut Tx<S>,
        reply: &impl Protobuf,
    ) -> Result<(), Fail> {
        self.answer(tx, StoredReply::Done(reply.encode_to_vec().into())).await
    }

    /// Answers that it will not be done, when this transaction is committed.
    ///
    /// # Errors
    /// `why` is a failure and not a refusal, or the store fails; the transaction must be rolled
    /// back.
    pub async fn refuse<S: BarrierStore + OutboxStore>(
        &self,
        tx: &mut Tx<S>,
        why: Rejection,
    ) -> Result<(), Fail> {
        let (reason, message) = why.into_refusal()?;
        self.answer(tx, StoredReply::Refused { reason, message }).await
    }

    /// Keeps the answer and sends it.
    pub(super) async fn answer<S: BarrierStore + OutboxStore>(
        &self,
        tx: &mut Tx<S>,
        reply: StoredReply,
    ) -> Result<(), Fail> {
        let store = tx.database().store().clone();
        let key = self.key();
        match (&reply, self.coordinates.op) {
            (_, Op::Query) => {}
            // The saga cannot take no for an answer; it asks again, and must get through again.
            (StoredReply::Refused { .. }, Op::Forward | Op::Undo) => {
                store.retract(tx.connection(), &key).await.map_err(store_fail)?;
            }
            (StoredReply::Done(_) | StoredReply::Refused { .. }, _) => {
                store.answer(tx.connection(), &key, &reply).await.map_err(store_fail)?;
            }
        }
        self.send(tx, &reply);
        Ok(())
    }

    /// Sends an answer.
    pub(super) fn send<S: OutboxStore>(&self, tx: &mut Tx<S>, reply: &StoredReply) {
        let now = tx.database().store().now();
        let message = self.reply(tx.database().service(), now, reply);
        tx.push(message);
    }

    pub(super) fn key(&self) -> BarrierKey {
        let at = &self.coordinates;
        BarrierKey { saga: at.saga, step: at.step.clone(), side: at.op.side() }
    }

    pub(super) fn op(&self) -> Op {
        self.coordinates.op
    }
}
