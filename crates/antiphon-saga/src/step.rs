//! One step of a definition.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::RetryPolicy;
use antiphon_messaging::Command;
use antiphon_outbox::Store;
use buffa::Message as Protobuf;
use bytes::Bytes;

use crate::local::{BoxedWork, LocalWork};
use crate::plan::{Place, Role};

/// How long a participant may take to answer unless the step says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A command that is made but not addressed yet.
pub(crate) struct Draft {
    pub(crate) topic: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) key: String,
    pub(crate) body: Bytes,
}

pub(crate) type MakeCommand<D> = Arc<dyn Fn(&D) -> Draft + Send + Sync>;
pub(crate) type TakeReply<D> =
    Arc<dyn Fn(&mut D, &[u8]) -> Result<(), buffa::DecodeError> + Send + Sync>;

/// What is done for a step.
pub(crate) enum Work<D, S> {
    Remote {
        action: MakeCommand<D>,
        undo: Option<MakeCommand<D>>,
        query: Option<MakeCommand<D>>,
        on_reply: Option<TakeReply<D>>,
    },
    Local {
        action: Arc<dyn BoxedWork<D, S>>,
        undo: Option<Arc<dyn BoxedWork<D, S>>>,
    },
}

/// Which steps must be done before one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// The one that was declared before it.
    Previous,
    /// These.
    Named(Vec<&'static str>),
}

/// One step of a [`Saga`](crate::Saga): what to ask for, how to undo it, how patient to be.
///
/// Before the pivot, a step says how it is undone ([`undo`](Self::undo)) or that there is nothing to
/// undo ([`nothing_to_undo`](Self::nothing_to_undo)); a definition that says neither is refused.
#[must_use = "a step does nothing until it is added to a saga"]
pub struct Step<D, S> {
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    pub(crate) work: Work<D, S>,
    pub(crate) nothing_to_undo: bool,
    pub(crate) at_most_once: bool,
    pub(crate) timeout: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) after: After,
    /// What was asked of the wrong kind of step.
    pub(crate) misuse: Option<&'static str>,
}

impl<D: Protobuf + 'static, S: Store> Step<D, S> {
    /// A step that a participant does when it is sent this command.
    pub fn remote<C: Command>(
        name: &'static str,
        command: impl Fn(&D) -> C + Send + Sync + 'static,
    ) -> Self {
        let action = make(command);
        let work = Work::Remote { action, undo: None, query: None, on_reply: None };
        Self::new(name, work)
    }

    /// A step that the coordinator does itself, in the transaction that advances the saga.
    pub fn local(name: &'static str, work: impl LocalWork<D, S>) -> Self {
        Self::new(name, Work::Local { action: Arc::new(work), undo: None })
    }

    fn new(name: &'static str, work: Work<D, S>) -> Self {
        Self {
            name,
            role: Role::Compensable,
            work,
            nothing_to_undo: false,
            at_most_once: false,
            timeout: TIMEOUT,
            retry: RetryPolicy::default(),
            after: After::Previous,
            misuse: None,
        }
    }

    /// Takes what the participant answered into the saga's data. A reply that does not decode as
    /// `R` becomes a dead letter.
    pub fn on_reply<R: Protobuf + 'static>(
        mut self,
        take: impl Fn(&mut D, R) + Send + Sync + 'static,
    ) -> Self {
        match &mut self.work {
            Work::Remote { on_reply, .. } => {
                *on_reply = Some(Arc::new(move |data: &mut D, body: &[u8]| {
                    take(data, R::decode_from_slice(body)?);
                    Ok(())
                }));
            }
            Work::Local { .. } => self.misuse = Some("a local step has no reply"),
        }
        self
    }

    /// How the participant undoes it. The command may come although the action never did; the
    /// participant's barrier answers it then.
    pub fn undo<C: Command>(mut self, command: impl Fn(&D) -> C + Send + Sync + 'static) -> Self {
        match &mut self.work {
            Work::Remote { undo, .. } => *undo = Some(make(command)),
            Work::Local { .. } => self.misuse = Some("a local step is undone by undo_local"),
        }
        self
    }

    /// How the coordinator undoes it.
    pub fn undo_local(mut self, work: impl LocalWork<D, S>) -> Self {
        match &mut self.work {
            Work::Local { undo, .. } => *undo = Some(Arc::new(work)),
            Work::Remote { .. } => self.misuse = Some("a participant's step is undone by undo"),
        }
        self
    }

    /// It leaves nothing behind that would have to be undone.
    pub fn nothing_to_undo(mut self) -> Self {
        self.nothing_to_undo = true;
        self
    }

    /// It must never be asked for again while nobody knows what became of it: it is queried
    /// ([`query`](Self::query)), else undone, else the saga is parked.
    pub fn at_most_once(mut self) -> Self {
        self.at_most_once = true;
        self
    }

    /// How to ask the participant whether it was done. The reply is that of the action; a refusal
    /// means that it was not done yet. A step that can be undone is undone then, since its command
    /// may still be on the way; one from the pivot on is asked for again.
    pub fn query<C: Command>(mut self, command: impl Fn(&D) -> C + Send + Sync + 'static) -> Self {
        match &mut self.work {
            Work::Remote { query, .. } => *query = Some(make(command)),
            Work::Local { .. } => self.misuse = Some("the outcome of a local step is known"),
        }
        self
    }

    /// The point of no return: the saga goes only forward once this step may have happened.
    pub fn pivot(mut self) -> Self {
        self.role = Role::Pivot;
        self
    }

    /// Comes after the pivot, and is tried until it is done.
    pub fn forward_only(mut self) -> Self {
        self.role = Role::ForwardOnly;
        self
    }

    /// Begins when these steps are done, instead of when the one declared before it is; with no
    /// names, at once. Steps that do not wait for one another run side by side.
    pub fn after<const N: usize>(mut self, steps: [&'static str; N]) -> Self {
        self.after = After::Named(steps.into());
        self
    }

    /// How long an answer may take before the step is tried again; 10 s by default. Counted from
    /// the commit that sends the command, so it includes the way through outbox and broker.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How often and how fast to try. Where the saga cannot turn back, an operator is told after
    /// every `attempts_max` tries, and the tries go on.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    pub(crate) fn place(&self) -> Place {
        match self.work {
            Work::Remote { .. } => Place::Remote,
            Work::Local { .. } => Place::Local,
        }
    }

    pub(crate) fn has_undo(&self) -> bool {
        match &self.work {
            Work::Remote { undo, .. } => undo.is_some(),
            Work::Local { undo, .. } => undo.is_some(),
        }
    }

    pub(crate) fn has_query(&self) -> bool {
        matches!(&self.work, Work::Remote { query: Some(_), .. })
    }
}

fn make<D, C: Command>(command: impl Fn(&D) -> C + Send + Sync + 'static) -> MakeCommand<D> {
    Arc::new(move |data| {
        let command = command(data);
        Draft {
            topic: C::DESTINATION,
            kind: C::KIND,
            key: command.key(),
            body: command.encode_to_vec().into(),
        }
    })
}

impl<D, S> std::fmt::Debug for Step<D, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Step").field("name", &self.name).field("role", &self.role).finish()
    }
}
