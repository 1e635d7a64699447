//! Several messages in one transaction where that works out, and each in its own where it does not.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use antiphon_messaging::{Consumer, Fail, Incoming};
use futures_util::FutureExt;
use tokio::time::{Instant, timeout};

/// How many runs go on side by side that take many messages: more do not help.
const RUNS_TOGETHER: usize = 2;
/// The same of one message each: they share the log's synchronisation.
const RUNS_ALONE: usize = 8;

/// Lets `consumer` take many messages into one transaction, or make many transactions side by side:
/// where a store lets many write, messages whose work locks rows in an order of its own must not
/// share one. See [`antiphon_outbox::Store::one_writer`].
pub(crate) fn arrange(
    consumer: Consumer,
    together: bool,
    runs_max: Option<usize>,
    batch_max: usize,
) -> Consumer {
    let (runs, batch) = if together { (RUNS_TOGETHER, batch_max) } else { (RUNS_ALONE, 1) };
    consumer.concurrency(runs_max.unwrap_or(runs)).batch(batch)
}

/// What came of one message.
pub(crate) type Handled = Result<(), Fail>;

/// Work on messages that may be done for several at once. Both set the contexts of the messages.
pub(crate) trait Batches: Sync {
    /// Handles several messages at once; `None` when that did not work out: nothing was committed,
    /// and each must be handled alone.
    fn together(&self, batch: &[&Incoming]) -> impl Future<Output = Option<Vec<Handled>>> + Send;

    /// Handles one message.
    fn alone(&self, incoming: &Incoming) -> impl Future<Output = Handled> + Send;
}

/// Handles a batch. What failed before is handled alone, so that it does not take others down again;
/// one that panics or hangs costs the others neither an attempt nor more than this turn.
pub(crate) async fn handle(work: &impl Batches, batch: &[Incoming]) -> Vec<Handled> {
    let begun = Instant::now();
    let end = batch.iter().filter_map(|incoming| incoming.context.deadline()).max();
    let time = end.map_or(Duration::MAX / 2, |end| end.saturating_duration_since(begun));
    let fresh: Vec<usize> = (0..batch.len()).filter(|index| batch[*index].attempt == 1).collect();
    let members: Vec<&Incoming> = fresh.iter().map(|index| &batch[*index]).collect();
    let mut outcomes: Vec<Option<Handled>> = batch.iter().map(|_| None).collect();
    if members.len() > 1 {
        let together = AssertUnwindSafe(work.together(&members)).catch_unwind();
        if let Ok(Ok(Some(answers))) = timeout(time / 2, together).await {
            for (index, answer) in fresh.into_iter().zip(answers) {
                outcomes[index] = Some(answer);
            }
        }
    }
    let mut answers = Vec::with_capacity(batch.len());
    for (incoming, outcome) in batch.iter().zip(outcomes) {
        // A little is left over, so that the answers are given before the time is over.
        let left = (time - time / 20).saturating_sub(begun.elapsed());
        answers.push(match outcome {
            Some(outcome) => outcome,
            None if left.is_zero() => Err(Fail::defer("no time was left in its batch")),
            None => alone(work, incoming, left).await,
        });
    }
    answers
}

async fn alone(work: &impl Batches, incoming: &Incoming, left: Duration) -> Handled {
    let guarded = AssertUnwindSafe(work.alone(incoming)).catch_unwind();
    match timeout(left, guarded).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(Fail::retry("the handler panicked")),
        Err(_) => Err(Fail::retry(format!("the handler took longer than {left:?}"))),
    }
}
