//! Does commands: inbox, barrier, work and answer in one transaction, several commands in one where
//! that works out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{BoxFuture, Retry};
use antiphon_messaging::{Fail, Handler, Incoming};
use antiphon_outbox::{Database, InboxEntry, InboxStore, OutboxStore, Tx};
use bytes::Bytes;

use super::Perform;
use crate::Ticket;
use crate::batch::{self, Batches, Handled};
use crate::decide::Op;
use crate::engine::{commit_fail, settled_before, store_fail};
use crate::port::{BarrierKey, BarrierStore, Passage, StoredReply};

/// For how long passed commands are remembered at least; commands of older sagas are dead letters.
pub(super) const RETENTION: Duration = Duration::from_secs(30 * 24 * 3_600);

/// See the module.
pub(super) struct Commands<S: OutboxStore> {
    pub(super) database: Database<S>,
    pub(super) group: String,
    pub(super) commands: BTreeMap<&'static str, Arc<dyn Perform<S>>>,
}

/// Why a transaction of several commands stopped; it is rolled back then.
enum Stop {
    /// The command at this place was refused.
    Refused(usize, StoredReply),
    /// The command at this place failed.
    Failed(usize, Fail),
    /// The database did.
    Store(Fail),
}

impl<S: BarrierStore + OutboxStore + InboxStore> Handler for Commands<S> {
    fn handles(&self, kind: &str) -> bool {
        self.commands.contains_key(kind)
    }

    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Handled> {
        Box::pin(self.alone(incoming))
    }

    fn handle_batch<'a>(&'a self, batch: &'a [Incoming]) -> BoxFuture<'a, Vec<Handled>> {
        Box::pin(batch::handle(self, batch))
    }
}

impl<S: BarrierStore + OutboxStore + InboxStore> Batches for Commands<S> {
    async fn together(&self, batch: &[&Incoming]) -> Option<Vec<Handled>> {
        Some(self.run(batch).await)
    }

    async fn alone(&self, incoming: &Incoming) -> Handled {
        self.run(&[incoming]).await.into_iter().collect()
    }
}

impl<S: BarrierStore + OutboxStore + InboxStore> Commands<S> {
    /// Does as many commands as possible in one transaction. A command that is refused or fails
    /// takes back what it wrote, and with it the work of those before it, which is then done again.
    async fn run(&self, batch: &[&Incoming]) -> Vec<Handled> {
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut refusals = BTreeMap::new();
        let mut failures = BTreeMap::new();
        let mut limit = batch.len();
        while outcomes.len() < batch.len() {
            let begin = outcomes.len();
            if let Some(fail) = failures.remove(&begin) {
                outcomes.push(Err(fail));
                continue;
            }
            let next_failure = failures.keys().next().copied().unwrap_or(batch.len());
            let end = (begin + distinct(&batch[begin..])).min(next_failure).min(limit);
            limit = batch.len();
            match self.transact(batch, begin..end, &refusals).await {
                Ok(done) => outcomes.extend(done),
                Err(Stop::Refused(index, reply)) => {
                    refusals.insert(index, reply);
                    // What comes behind it would have to be done again for the next refusal.
                    limit = index + 1;
                }
                Err(Stop::Failed(index, fail)) => {
                    failures.insert(index, fail);
                }
                // One of them may be at fault: what it wrote broke a constraint at the commit.
                Err(Stop::Store(fail)) if fail.hint() == Retry::Later => {
                    if end - begin > 1 {
                        limit = begin + 1;
                    } else {
                        outcomes.push(Err(fail));
                    }
                }
                Err(Stop::Store(fail)) => {
                    let text = fail.describe();
                    outcomes.extend((begin..end).map(|_| Err(Fail::defer(text.clone()))));
                }
            }
        }
        outcomes
    }

    async fn transact(
        &self,
        batch: &[&Incoming],
        range: Range<usize>,
        refusals: &BTreeMap<usize, StoredReply>,
    ) -> Result<Vec<Handled>, Stop> {
        let store = self.database.store().clone();
        let mut tx = self.database.begin().await.map_err(|error| Stop::Store(store_fail(error)))?;
        let messages: Vec<_> =
            batch[range.clone()].iter().map(|incoming| &*incoming.message).collect();
        let mut passage = None;
        let entries = match (&messages[..], self.asks_to_pass(batch[range.start])) {
            ([message], Some(key)) => {
                let (connection, now) = (tx.connection(), store.now());
                let arrived = store.enter_and_pass(connection, &self.group, message, &key, now);
                let arrived = arrived.await.map_err(|error| Stop::Store(store_fail(error)))?;
                passage = arrived.1;
                vec![arrived.0]
            }
            _ => store
                .enter(tx.connection(), &self.group, &messages)
                .await
                .map_err(|error| Stop::Store(store_fail(error)))?,
        };
        let mut outcomes = Vec::with_capacity(range.len());
        for (index, entry) in range.zip(entries) {
            if entry == InboxEntry::New {
                let incoming = &batch[index];
                let work = self.one(&mut tx, incoming, passage.take(), refusals.get(&index));
                let refused = incoming.context.clone().scope(work).await;
                if let Some(reply) = refused.map_err(|fail| Stop::Failed(index, fail))? {
                    return Err(Stop::Refused(index, reply));
                }
            }
            outcomes.push(settled_before(entry));
        }
        tx.commit().await.map_err(|error| Stop::Store(commit_fail(error)))?;
        Ok(outcomes)
    }

    /// What a command must pass the barrier with; `None` for one that need not, or is refused before.
    fn asks_to_pass(&self, incoming: &Incoming) -> Option<BarrierKey> {
        let ticket = self.ticket(incoming).ok()?;
        (ticket.op() != Op::Query).then(|| ticket.key())
    }

    fn ticket(&self, incoming: &Incoming) -> Result<Ticket, Fail> {
        let ticket = Ticket::read(&incoming.message)?;
        let now = self.database.store().now();
        if ticket.saga().begun_at().is_none_or(|begun| begun < now - RETENTION) {
            let text = format!("the saga {} is older than what is remembered here", ticket.saga());
            return Err(Fail::permanent(text).with_code("dedup-horizon"));
        }
        Ok(ticket)
    }

    /// Does one command, which has passed the barrier if there is a passage; gives the refusal if it
    /// is refused, and the transaction must not be committed then.
    async fn one(
        &self,
        tx: &mut Tx<S>,
        incoming: &Incoming,
        passage: Option<Passage>,
        refusal: Option<&StoredReply>,
    ) -> Result<Option<StoredReply>, Fail> {
        let ticket = self.ticket(incoming)?;
        let passage = match (passage, ticket.op()) {
            (Some(passage), _) => passage,
            (None, Op::Query) => Passage::First,
            (None, Op::Action | Op::Forward | Op::Undo) => {
                let store = self.database.store();
                let now = store.now();
                store.pass(tx.connection(), &ticket.key(), now).await.map_err(store_fail)?
            }
        };
        match passage {
            Passage::First => match refusal {
                Some(refusal) => ticket.answer(tx, refusal.clone()).await?,
                None => return self.perform(tx, incoming, &ticket).await,
            },
            Passage::Repeated(Some(reply)) => ticket.send(tx, &reply),
            Passage::Empty => ticket.answer(tx, StoredReply::Done(Bytes::new())).await?,
            // The answer comes by itself; and whoever undid the step waits for nothing.
            Passage::Repeated(None) | Passage::Blocked => {}
        }
        Ok(None)
    }

    async fn perform(
        &self,
        tx: &mut Tx<S>,
        incoming: &Incoming,
        ticket: &Ticket,
    ) -> Result<Option<StoredReply>, Fail> {
        let message = &incoming.message;
        let Some(perform) = self.commands.get(message.kind.as_str()) else { return Ok(None) };
        match perform.perform(&message.body, ticket, tx).await {
            Ok(Some(reply)) => ticket.answer(tx, StoredReply::Done(reply)).await?,
            Ok(None) => {}
            Err(rejection) => {
                let (reason, message) = rejection.into_refusal()?;
                return Ok(Some(StoredReply::Refused { reason, message }));
            }
        }
        Ok(None)
    }
}

/// How many of the first commands are of different steps: the barrier answers what was committed, so
/// the commands of one step must not share a transaction.
fn distinct(batch: &[&Incoming]) -> usize {
    let step = |incoming: &Incoming| {
        Ticket::read(&incoming.message)
            .map(|ticket| (ticket.coordinates.saga, ticket.coordinates.step))
            .ok()
    };
    let mut seen = Vec::with_capacity(batch.len());
    for incoming in batch {
        let step = step(incoming);
        if step.is_some() && seen.contains(&step) {
            break;
        }
        seen.push(step);
    }
    seen.len()
}
