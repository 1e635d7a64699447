//! What stands around every handler, outside in: context and span, panics caught, the time limit,
//! then the consumer's own middleware and the handler.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{BoxFuture, Clock, Code, Status};
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
    /// One per member of the batch.
    pub(crate) outcomes: Vec<Result<(), Fail>>,
    pub(crate) took: Duration,
}

impl Pipeline {
    /// Runs the handler on a batch that is not empty. Dropping the future releases the batch.
    pub(crate) fn run(self: Arc<Self>, batch: Vec<Held>) -> BoxFuture<'static, Ran> {
        Box::pin(async move {
            let begun = Instant::now();
            let (incoming, spans) = self.enter(&batch, begun);
            let outcomes = self.handle(&incoming, begun).await;
            for (outcome, span) in outcomes.iter().zip(spans) {
                if let (Err(fail), Some(mut span)) = (outcome, span) {
                    span.fail(&Status::new(Code::Unknown, fail.describe()));
                }
            }
            Ran {
                batch,
                outcomes,
                took: begun.elapsed(),
            }
        })
    }

    /// Makes the contexts, with the span of each message as the parent of what its handler does.
    fn enter(&self, batch: &[Held], begun: Instant) -> (Vec<Incoming>, Vec<Option<Span>>) {
        let now = self.clock.now();
        let mut incoming = Vec::with_capacity(batch.len());
        let mut spans = Vec::with_capacity(batch.len());
        for held in batch {
            let message = &held.delivery.message;
            let context = message.context(now).with_deadline(begun + self.timeout);
            // Who sent the message has decided whether its trace is recorded. Only where nobody
            // has is a span needed to find out.
            let undecided = message.attribute("traceparent").is_none();
            let (context, span) = if context.trace().sampled || undecided {
                let links = if undecided {
                    &[][..]
                } else {
                    std::slice::from_ref(context.trace())
                };
                let (inner, mut span) =
                    self.telemetry
                        .span(SpanKind::Consumer, &held.kind.span, &context, links);
                if span.is_recording() {
                    span.set("messaging.operation.name", "process");
                    span.set("messaging.destination.name", message.topic.as_str());
                    span.set("messaging.consumer.group.name", &*self.group);
                    span.set("messaging.message.id", message.id.to_string());
                    span.set(
                        "messaging.antiphon.attempt",
                        held.tries.attempt().to_string(),
                    );
                }
                (inner, Some(span))
            } else {
                (context, None)
            };
            incoming.push(Incoming {
                message: Arc::clone(message),
                attempt: held.tries.attempt(),
                group: Arc::clone(&self.group),
                context,
            });
            spans.push(span);
        }
        (incoming, spans)
    }

    async fn handle(&self, incoming: &[Incoming], begun: Instant) -> Vec<Result<(), Fail>> {
        let work = async {
            match incoming {
                [one] => {
                    let context = one.context.clone();
                    vec![context.scope(self.handler.handle(one)).await]
                }
                batch => self.handler.handle_batch(batch).await,
            }
        };
        let guarded = AssertUnwindSafe(work).catch_unwind();
        let failed = match tokio::time::timeout_at(begun + self.timeout, guarded).await {
            Ok(Ok(outcomes)) if outcomes.len() == incoming.len() => return outcomes,
            Ok(Ok(outcomes)) => {
                format!(
                    "the handler gave {} outcomes for {}",
                    outcomes.len(),
                    incoming.len()
                )
            }
            Ok(Err(panic)) => format!("the handler panicked: {}", panic_text(&*panic)),
            Err(_) => format!("the handler took longer than {:?}", self.timeout),
        };
        incoming
            .iter()
            .map(|_| Err(Fail::retry(failed.clone())))
            .collect()
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}
