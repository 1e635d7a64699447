//! Bugs that the simulator can inject, to show that it would catch them.

use antiphon_core::MessageId;
use antiphon_messaging::Message;
use antiphon_outbox::StoreError;
use antiphon_saga::{Instance, Phase, SagaFilter, SagaStore};
use antiphon_testing::MemoryStore;

/// An injected bug: what the wrappers around the real ports do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A consumer acknowledges a message before its transaction is committed.
    AckBeforeCommit,
    /// Messages are written in a transaction of their own.
    EmitOutside,
    /// The relay goes on behind the last position it has confirmed, and so skips what was committed
    /// late.
    CursorSkip,
    /// A relay that has lost its lease may still write.
    UnfencedLease,
    /// A saga that turns back undoes only the steps that it knows were done.
    CompensateKnown,
}

/// The steps of the simulated saga, in their order.
const STEPS: [&str; 4] = ["reserve", "charge", "confirm", "ship"];

/// The messages of a coordinator that undoes only what it knows was done: the command to undo any
/// other step is replaced by the answer to it.
pub(crate) async fn without_unknown_undos(
    store: &MemoryStore,
    messages: &[Message],
) -> Result<Vec<Message>, StoreError> {
    let mut kept = Vec::with_capacity(messages.len());
    for message in messages {
        let undo =
            message.attribute("sagaop") == Some("undo") && message.attribute("replyto").is_some();
        if undo && !was_known(store, message).await? {
            kept.push(answer_to(message));
        } else {
            kept.push(message.clone());
        }
    }
    Ok(kept)
}

/// Whether the committed saga knows that the step was done.
async fn was_known(store: &MemoryStore, undo: &Message) -> Result<bool, StoreError> {
    let rows = store.list(&SagaFilter::default(), u32::MAX).await?;
    let saga = rows.into_iter().find(|row| undo.attribute("sagaid") == Some(&row.id.to_string()));
    let Some(row) = saga else { return Ok(false) };
    let Ok(instance) = Instance::decode(row.state, &row.progress) else { return Ok(false) };
    let step = STEPS.iter().position(|step| undo.attribute("sagastep") == Some(step));
    let phase = step.and_then(|step| instance.steps.get(step)).map(|step| step.phase);
    Ok(matches!(phase, Some(Phase::Done | Phase::Undoing)))
}

fn answer_to(undo: &Message) -> Message {
    let mut answer = undo.clone();
    answer.id = MessageId::new(undo.time);
    answer.topic = answer.attributes.remove("replyto").unwrap_or_default();
    answer.kind = "antiphon.saga.v1.Reply".into();
    answer.key = undo.attribute("sagaid").unwrap_or_default().to_owned();
    answer.body = bytes::Bytes::new();
    answer
}
