//! What handles messages: the trait that the engine calls, and typed functions as such.

use std::marker::PhantomData;
use std::sync::Arc;

use antiphon_core::{BoxFuture, Context};

use crate::contract::Payload;
use crate::fail::Fail;
use crate::message::Message;

/// A message that has come in, as a handler sees it.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The message.
    pub message: Arc<Message>,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// The group that it came to.
    pub group: Arc<str>,
    /// The context of handling it: the sender's trace and correlation id, caused by the message.
    pub context: Context,
}

impl Incoming {
    /// What stays the same however often this group gets this message: for calls to services that
    /// know idempotency keys, made by handlers without a database.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        format!("{}/{}", self.group, self.message.id)
    }

    /// The data.
    ///
    /// # Errors
    /// The body is not what the kind says; trying again cannot help.
    pub fn decode<P: Payload>(&self) -> Result<P, Fail> {
        P::decode_from_slice(&self.message.body).map_err(|error| {
            let text = format!("the body is not a {}: {error}", P::KIND);
            Fail::permanent(text).with_code("decode")
        })
    }
}

/// Handles the messages of a group.
///
/// 1. The engine never runs two messages of one key at a time in an ordered group.
/// 2. A handler may be dropped at any await point (its time is over, its keys were revoked, the
///    process ends); the message then comes again.
/// 3. A message may come more than once.
pub trait Handler: Send + Sync + 'static {
    /// Whether it knows this kind of message. What it does not know is acknowledged and counted.
    fn handles(&self, kind: &str) -> bool;

    /// Handles one message. The message's context is current while it runs.
    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>>;

    /// Handles several at once, of different keys in an ordered group, with an answer for each in
    /// the order of the input. Called only by consumers with a batch size above one.
    ///
    /// One by one unless overridden, each in its own context; who overrides this sets the contexts.
    fn handle_batch<'a>(&'a self, batch: &'a [Incoming]) -> BoxFuture<'a, Vec<Result<(), Fail>>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(batch.len());
            for incoming in batch {
                let context = incoming.context.clone();
                outcomes.push(context.scope(self.handle(incoming)).await);
            }
            outcomes
        })
    }
}

/// Something around a [`Handler`]. Any function from handler to handler is one.
pub trait Middleware: Send + Sync + 'static {
    /// Puts itself around `inner`.
    fn wrap(&self, inner: Arc<dyn Handler>) -> Arc<dyn Handler>;
}

impl<F> Middleware for F
where
    F: Fn(Arc<dyn Handler>) -> Arc<dyn Handler> + Send + Sync + 'static,
{
    fn wrap(&self, inner: Arc<dyn Handler>) -> Arc<dyn Handler> {
        self(inner)
    }
}

/// Handles events or commands of one type, without a database of its own. Async functions with one
/// argument are such handlers.
pub trait Handle<P: Payload>: Send + Sync + 'static {
    /// Handles it. It may come more than once.
    fn handle(&self, payload: P) -> impl Future<Output = Result<(), Fail>> + Send;
}

impl<P, F, Fut> Handle<P> for F
where
    P: Payload,
    F: Fn(P) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Fail>> + Send,
{
    fn handle(&self, payload: P) -> impl Future<Output = Result<(), Fail>> + Send {
        self(payload)
    }
}

/// A [`Handle`] as a [`Handler`].
pub(crate) struct Typed<P, H> {
    handle: H,
    payload: PhantomData<fn(P)>,
}

impl<P: Payload, H: Handle<P>> Typed<P, H> {
    pub(crate) fn new(handle: H) -> Self {
        Self { handle, payload: PhantomData }
    }
}

impl<P: Payload, H: Handle<P>> Handler for Typed<P, H> {
    fn handles(&self, kind: &str) -> bool {
        kind == P::KIND
    }

    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>> {
        Box::pin(async move { self.handle.handle(incoming.decode::<P>()?).await })
    }
}

/// Several handlers as one: the first that knows a message's kind gets it.
pub(crate) struct Router(pub(crate) Vec<Arc<dyn Handler>>);

impl Handler for Router {
    fn handles(&self, kind: &str) -> bool {
        self.0.iter().any(|handler| handler.handles(kind))
    }

    fn handle<'a>(&'a self, incoming: &'a Incoming) -> BoxFuture<'a, Result<(), Fail>> {
        let kind = &incoming.message.kind;
        match self.0.iter().find(|handler| handler.handles(kind)) {
            Some(handler) => handler.handle(incoming),
            // The engine asks `handles` first; a middleware may still have let it through.
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use antiphon_core::{MessageId, Retry, Timestamp};
    use buffa_types::google::protobuf::Duration as Lasted;

    use super::*;

    impl Payload for Lasted {
        const KIND: &'static str = "google.protobuf.Duration";
    }

    fn incoming(body: &'static [u8]) -> Incoming {
        let message = Message {
            id: MessageId::from_bytes([7; 16]),
            topic: "t".into(),
            kind: Lasted::KIND.into(),
            source: "tests".into(),
            key: String::new(),
            time: Timestamp::EPOCH,
            not_before: None,
            attributes: BTreeMap::new(),
            body: body.into(),
        };
        let context = Context::root();
        Incoming { message: Arc::new(message), attempt: 1, group: "g".into(), context }
    }

    #[tokio::test]
    async fn an_async_function_is_a_typed_handler() {
        async fn three_seconds(lasted: Lasted) -> Result<(), Fail> {
            if lasted.seconds == 3 { Ok(()) } else { Err(Fail::permanent("not three")) }
        }
        let handler = Typed::new(three_seconds);
        assert!(handler.handles("google.protobuf.Duration"));
        assert!(!handler.handles("google.protobuf.Timestamp"));
        handler.handle(&incoming(&[8, 3])).await.unwrap();
        assert!(handler.handle(&incoming(&[8, 4])).await.is_err());
    }

    #[tokio::test]
    async fn a_body_that_is_not_of_its_kind_is_dead_at_once() {
        let handler = Typed::new(async |_: Lasted| -> Result<(), Fail> { Ok(()) });
        let fail = handler.handle(&incoming(&[0xff, 0xff])).await.unwrap_err();
        assert_eq!((fail.hint(), fail.code()), (Retry::Never, Some("decode")));
        assert!(fail.describe().contains("google.protobuf.Duration"), "{fail}");
    }

    #[tokio::test]
    async fn a_router_asks_the_first_handler_that_knows_the_kind() {
        let knows = |fails: bool| -> Arc<dyn Handler> {
            Arc::new(Typed::new(move |_: Lasted| async move {
                if fails { Err(Fail::permanent("wrong one")) } else { Ok(()) }
            }))
        };
        let router = Router(vec![knows(false), knows(true)]);
        router.handle(&incoming(&[])).await.unwrap();
        assert!(!router.handles("other"));
    }

    #[test]
    fn the_idempotency_key_is_that_of_group_and_message() {
        let first = incoming(&[]);
        let again = Incoming { attempt: 2, ..first.clone() };
        assert_eq!(first.idempotency_key(), again.idempotency_key());
        assert!(first.idempotency_key().starts_with("g/07070707"));
    }
}
