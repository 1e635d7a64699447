//! What stands around every handler, outside in: context and span, panics caught, the time limit,
//! then the consumer's own middleware and the handler.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use antiphon_core::{BoxFuture, Clock, Code, Context, Status, Timestamp};
use antiphon_telemetry::{Span, SpanKind, Telemetry};
use futures_util::FutureExt;
use tokio::time::Instant;

use super::held::Held;
use crate::fail::Fail;
use crate::handler::{Handler, Incoming};

/// One group's way from delivery to handler.
pub(crate) struct Pipeline {
    pub(crate) group: Arc<str>,
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) timeout: Duration,
    pub(crate) telemetry: Telemetry,
    pub(crate) clock: Clock,
}

/// A run that has ended.
pub(crate) struct Ran {
    pub(crate) batch: Vec<Held>,
    /// One per member of the batch, or why the run as a whole came to nothing.
    pub(crate) outcomes: Result<Vec<Result<(), Fail>>, String>,
    pub(crate) took: Duration,
}

impl Pipeline {
    /// Runs the handler on a batch that is not empty. Dropping the future releases the batch.
    pub(crate) fn run(self: Arc<Self>, mut batch: Vec<Held>) -> BoxFuture<'static, Ran> {
        Box::pin(async move {
            let begun = Instant::now();
            let mut spans = Vec::new();
            let mut incoming = Vec::with_capacity(batch.len());
            for (index, held) in batch.iter_mut().enumerate() {
                held.since.get_or_insert(begun);
                let (context, span) = self.enter(held, begun);
                spans.extend(span.is_recording().then_some((index, span)));
                incoming.push(Incoming {
                    message: Arc::clone(&held.delivery.message),
                    attempt: held.tries.attempt(),
                    group: Arc::clone(&self.group),
                    context,
                });
            }
            let outcomes = self.handle(&incoming, begun).await;
            for (index, mut span) in spans {
                let why = match &outcomes {
                    Ok(outcomes) => outcomes[index].as_ref().err().map(Fail::describe),
                    Err(why) => Some(why.clone()),
                };
                if let Some(why) = why {
                    span.fail(&Status::new(Code::Unknown, why));
                }
            }
            let took = begun.elapsed();
            if let Ok(outcomes) = &outcomes
                && tracing::enabled!(tracing::Level::DEBUG)
            {
                log(&incoming, outcomes, took);
            }
            Ran { batch, outcomes, took }
        })
    }

    /// The context of handling a message. If its trace is recorded, with a span as the parent of
    /// what the handler does; the span's own parent, and link, is what sent the message.
    fn enter(&self, held: &Held, begun: Instant) -> (Context, Span) {
        let message = &held.delivery.message;
        let now = match message.deadline() {
            Some(_) => self.clock.now(),
            // Nothing else depends on the time, and asking for it costs.
            None => Timestamp::EPOCH,
        };
        let context = message.context(now).with_deadline(begun + self.timeout);
        let sender = context.trace();
        let links = if sender.sampled { std::slice::from_ref(sender) } else { &[] };
        let (context, mut span) =
            self.telemetry.span(SpanKind::Consumer, &held.kind.span, &context, links);
        if span.is_recording() {
            span.set("messaging.operation.name", "process");
            span.set("messaging.destination.name", message.topic.as_str());
            span.set("messaging.consumer.group.name", &*self.group);
            span.set("messaging.message.id", message.id.to_string());
            span.set("messaging.antiphon.attempt", held.tries.attempt().to_string());
        }
        (context, span)
    }

    async fn handle(
        &self,
        incoming: &[Incoming],
        begun: Instant,
    ) -> Result<Vec<Result<(), Fail>>, String> {
        let work = async {
            match incoming {
                [one] => {
                    // What the handler does before its first await needs the context as well.
                    let work = async { self.handler.handle(one).await };
                    vec![one.context.clone().scope(work).await]
                }
                batch => self.handler.handle_batch(batch).await,
            }
        };
        let mut guarded = pin!(AssertUnwindSafe(work).catch_unwind());
        // A handler that is done at once needs no timer.
        let ended = match futures_util::poll!(guarded.as_mut()) {
            Poll::Ready(ended) => Ok(ended),
            Poll::Pending => tokio::time::timeout_at(begun + self.timeout, guarded).await,
        };
        match ended {
            Ok(Ok(outcomes)) if outcomes.len() == incoming.len() => Ok(outcomes),
            Ok(Ok(outcomes)) => {
                Err(format!("the handler gave {} outcomes for {}", outcomes.len(), incoming.len()))
            }
            Ok(Err(panic)) => Err(format!("the handler panicked: {}", panic_text(&*panic))),
            Err(_) => Err(format!("the handler took longer than {:?}", self.timeout)),
        }
    }
}

/// One line per message that was handled; what was not is told with what comes of it.
fn log(incoming: &[Incoming], outcomes: &[Result<(), Fail>], took: Duration) {
    // To the microsecond: more digits are noise.
    let duration_ms = (took.as_secs_f64() * 1_000_000.0).round() / 1_000.0;
    for (one, _) in incoming.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok()) {
        let Incoming { message, attempt, group, context } = one;
        context.sync_scope(|| {
            tracing::debug!(
                group = &**group,
                kind = %message.kind,
                id = %message.id,
                key = %message.key,
                attempt,
                duration_ms,
                "message handled"
            );
        });
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}
