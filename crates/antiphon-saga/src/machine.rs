//! One turn of one saga: decides, and carries out what was decided, inside one transaction.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use antiphon_core::{BoxFuture, Timestamp};
use antiphon_messaging::{Fail, Message};
use antiphon_outbox::{OutboxStore, StoreError, Tx};
use buffa::Message as Protobuf;
use futures_util::FutureExt;

use crate::decide::{self, Effect, Input, Op, Outcome};
use crate::definition::Definition;
use crate::instance::{Failure, Instance, Phase};
use crate::plan::{Place, Plan};
use crate::port::{SagaRow, Side, State};
use crate::step::Work;
use crate::wire::{self, Command, Coordinates};

/// How long a closing handler may take.
const CLOSING_TIME: Duration = Duration::from_secs(10);

/// Work that the coordinator does itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Step(usize, Side),
    Close,
}

/// What came of a piece of work in a transaction that was rolled back for it.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    piece: Piece,
    outcome: Outcome,
}

/// What happens to a saga, with what a reply brought.
#[derive(Debug)]
pub(crate) struct Arrival<'a> {
    pub(crate) input: Input,
    pub(crate) reply: Option<&'a [u8]>,
}

impl From<Input> for Arrival<'_> {
    fn from(input: Input) -> Self {
        Self { input, reply: None }
    }
}

/// What a turn changed, for logs and metrics once it is committed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Turned {
    /// Whether the input meant anything; nothing else is set if not.
    pub(crate) accepted: bool,
    pub(crate) first: bool,
    pub(crate) turned_back: Option<Failure>,
    pub(crate) parked: Option<String>,
    pub(crate) ended: Option<State>,
    /// Steps that were done, and how long each took.
    pub(crate) done: Vec<(&'static str, Duration)>,
    /// The piece of work that was run last: to blame when the commit is refused.
    pub(crate) ran: Option<Piece>,
}

impl Turned {
    /// What is known when the transaction of this turn was refused for good.
    pub(crate) fn blame(&self, error: &StoreError) -> Option<Known> {
        let outcome = Outcome::Failed(format!("its transaction was refused: {error}"));
        self.ran.map(|piece| Known { piece, outcome })
    }
}

/// Why a turn cannot be committed.
#[derive(Debug)]
pub(crate) enum TurnError {
    /// A piece of work was not done. Its transaction must be rolled back, and the turn taken again
    /// with what is known now.
    Again(Known),
    /// Anything else.
    Failed(Fail),
}

impl From<Fail> for TurnError {
    fn from(fail: Fail) -> Self {
        Self::Failed(fail)
    }
}

/// A [`Definition`] without its data type.
pub(crate) trait Machine<S: OutboxStore>: Send + Sync {
    fn kind(&self) -> &'static str;
    fn version(&self) -> u32;
    fn plan(&self) -> &Plan;
    /// Whether handlers of the user run in the transactions that advance it.
    fn works_itself(&self) -> bool;

    /// Takes a turn: changes `row`, and writes through `tx` what follows. The caller saves the row
    /// when the turn was accepted. Pieces of work whose outcome is `known` are not run.
    fn turn<'a>(
        &'a self,
        tx: &'a mut Tx<S>,
        row: &'a mut SagaRow,
        arrival: Arrival<'a>,
        known: &'a [Known],
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Turned, TurnError>>;

    /// Takes a turn in somebody else's transaction: pieces of work are left to the timers.
    ///
    /// # Errors
    /// The row cannot be read.
    fn turn_within(
        &self,
        tx: &mut Tx<S>,
        row: &mut SagaRow,
        input: Input,
        now: Timestamp,
    ) -> Result<Turned, Fail>;
}

impl<D: Protobuf + 'static, S: OutboxStore> Machine<S> for Definition<D, S> {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn works_itself(&self) -> bool {
        let mut steps = self.plan.steps.iter();
        steps.any(|step| step.place == Place::Local)
            || self.on_completed.is_some()
            || self.on_compensated.is_some()
    }

    fn turn<'a>(
        &'a self,
        tx: &'a mut Tx<S>,
        row: &'a mut SagaRow,
        arrival: Arrival<'a>,
        known: &'a [Known],
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Turned, TurnError>> {
        Box::pin(async move {
            let mut turn = Turn::open(self, row, now)?;
            if turn.take(arrival)? {
                turn.act(tx, known).await?;
            }
            Ok(turn.close(row))
        })
    }

    fn turn_within(
        &self,
        tx: &mut Tx<S>,
        row: &mut SagaRow,
        input: Input,
        now: Timestamp,
    ) -> Result<Turned, Fail> {
        let mut turn = Turn::open(self, row, now)?;
        if turn.take(input.into())? {
            // What follows belongs to the trace of the saga, whoever asked for it.
            let context = wire::recall(&turn.instance.context);
            for command in context.sync_scope(|| turn.commands(tx.database().service())) {
                tx.push(command);
            }
        }
        Ok(turn.close(row))
    }
}

/// A turn in the making.
pub(crate) struct Turn<'a, D, S> {
    definition: &'a Definition<D, S>,
    saga: crate::SagaId,
    data: D,
    before: Instance,
    instance: Instance,
    effects: VecDeque<Effect>,
    now: Timestamp,
    turned: Turned,
}

impl<'a, D: Protobuf + 'static, S: OutboxStore> Turn<'a, D, S> {
    /// Reads the row.
    pub(crate) fn open(
        definition: &'a Definition<D, S>,
        row: &SagaRow,
        now: Timestamp,
    ) -> Result<Self, Fail> {
        let corrupt = |what: &str, error: &dyn std::error::Error| {
            Fail::permanent(format!("the {what} of the saga {} cannot be read: {error}", row.id))
                .with_code("decode")
        };
        let data = D::decode_from_slice(&row.data).map_err(|error| corrupt("data", &error))?;
        let instance = Instance::decode(row.state, &row.progress)
            .map_err(|error| corrupt("progress", &error))?;
        if instance.steps.len() != definition.plan.steps.len() {
            return Err(Fail::permanent(format!(
                "the saga {} has {} steps, its definition {} version {} has {}: a definition \
                 needs a new version when its steps change",
                row.id,
                instance.steps.len(),
                definition.kind,
                definition.version,
                definition.plan.steps.len(),
            )));
        }
        let turned = Turned {
            accepted: false,
            first: row.revision == 0,
            turned_back: None,
            parked: None,
            ended: None,
            done: Vec::new(),
            ran: None,
        };
        Ok(Self {
            definition,
            saga: row.id,
            data,
            before: instance.clone(),
            instance,
            effects: VecDeque::new(),
            now,
            turned,
        })
    }

    /// Takes the first input; false when it means nothing.
    pub(crate) fn take(&mut self, arrival: Arrival<'_>) -> Result<bool, Fail> {
        let Arrival { input, reply } = arrival;
        self.turned.accepted = self.decide(&input);
        if let (true, Some(body), Input::Reply { step, op, outcome: Outcome::Done, .. }) =
            (self.turned.accepted, reply, &input)
            && *op != Op::Undo
            && let Work::Remote { on_reply: Some(take), .. } = &self.definition.work[*step]
        {
            take(&mut self.data, body).map_err(|error| {
                let step = self.definition.plan.steps[*step].name;
                let text = format!("the reply to the step {step} cannot be read: {error}");
                Fail::permanent(text).with_code("decode")
            })?;
        }
        Ok(self.turned.accepted)
    }

    fn decide(&mut self, input: &Input) -> bool {
        let state = self.instance.state;
        let instance = self.instance.clone();
        let plan = &self.definition.plan;
        let decision = decide::decide(plan, instance, input, self.now, self.jitter());
        self.instance = decision.instance;
        if state != self.instance.state {
            // What was decided on the way forward no longer holds on the way back.
            self.effects.clear();
            self.turned_back();
        }
        self.effects.extend(decision.effects);
        decision.accepted
    }

    fn turned_back(&mut self) {
        if let (State::Compensating, Some(failure)) = (self.instance.state, &self.instance.failure)
        {
            if let Some(take) = &self.definition.on_failure {
                take(&mut self.data, failure);
            }
            self.turned.turned_back = Some(failure.clone());
        }
    }

    /// Spreads the waits of sagas that fail together: a hash of the saga and of where it stands.
    fn jitter(&self) -> f64 {
        let tries: u32 = self.instance.steps.iter().map(|step| step.tries).sum();
        let byte = self.saga.as_bytes()[usize::try_from(tries % 8).unwrap_or(0) + 8];
        f64::from(byte) / 255.0
    }

    /// Carries out what is decided so far as commands; pieces of work are left to the timers.
    pub(crate) fn commands(&mut self, service: &str) -> Vec<Message> {
        let effects = std::mem::take(&mut self.effects);
        let send = |effect| match effect {
            Effect::Send { step, op, attempt } => self.command(service, step, op, attempt),
            Effect::Run { .. } | Effect::Close => None,
        };
        effects.into_iter().filter_map(send).collect()
    }

    /// Carries out the effects, and those that follow from them. What is known of a piece of work
    /// stands in for running it.
    async fn act(&mut self, tx: &mut Tx<S>, known: &[Known]) -> Result<(), TurnError> {
        while let Some(effect) = self.effects.pop_front() {
            let piece = match effect {
                Effect::Send { step, op, attempt } => {
                    let service = tx.database().service();
                    if let Some(message) = self.command(service, step, op, attempt) {
                        tx.push(message);
                    }
                    continue;
                }
                Effect::Run { step, side } => Piece::Step(step, side),
                Effect::Close => Piece::Close,
            };
            let outcome = match known.iter().find(|known| known.piece == piece) {
                Some(known) => known.outcome.clone(),
                None => self.run(tx, piece).await?,
            };
            let input = match piece {
                Piece::Step(step, side) => Input::Local { step, side, outcome },
                Piece::Close => Input::Closed(outcome),
            };
            self.decide(&input);
        }
        Ok(())
    }

    fn command(&self, service: &str, step: usize, op: Op, attempt: u32) -> Option<Message> {
        let Work::Remote { action, undo, query, .. } = &self.definition.work[step] else {
            return None;
        };
        let make = match op {
            Op::Action | Op::Forward => Some(action),
            Op::Undo => undo.as_ref(),
            Op::Query => query.as_ref(),
        };
        let coordinates = Coordinates {
            saga: self.saga,
            step: self.definition.plan.steps[step].name.to_owned(),
            op,
            attempt,
        };
        let draft = make?(&self.data);
        Some(Command { coordinates, service, draft }.message(self.now))
    }

    /// Does a piece of work. One that is not done has left its traces in the transaction, which
    /// must not be committed.
    async fn run(&mut self, tx: &mut Tx<S>, piece: Piece) -> Result<Outcome, TurnError> {
        let definition = self.definition;
        let work = match piece {
            Piece::Close if self.instance.state == State::Running => {
                definition.on_completed.as_ref()
            }
            Piece::Close => definition.on_compensated.as_ref(),
            Piece::Step(step, side) => match (&definition.work[step], side) {
                (Work::Local { action, .. }, Side::Action) => Some(action),
                (Work::Local { undo, .. }, Side::Undo) => undo.as_ref(),
                (Work::Remote { .. }, _) => None,
            },
        };
        let Some(work) = work else { return Ok(Outcome::Done) };
        let limit = match piece {
            Piece::Step(step, _) => definition.plan.steps[step].timeout,
            Piece::Close => CLOSING_TIME,
        };
        let work = AssertUnwindSafe(work.run(&mut self.data, tx)).catch_unwind();
        let outcome = match tokio::time::timeout(limit, work).await {
            Ok(Ok(Ok(()))) => {
                self.turned.ran = Some(piece);
                return Ok(Outcome::Done);
            }
            Ok(Ok(Err(rejection))) => match rejection.into_refusal() {
                Ok((reason, message)) => Outcome::Refused { reason, message },
                Err(fail) => Outcome::Failed(fail.describe()),
            },
            Ok(Err(_)) => Outcome::Failed("it panicked".into()),
            Err(_) => Outcome::Failed(format!("it took longer than {limit:?}")),
        };
        Err(TurnError::Again(Known { piece, outcome }))
    }

    /// Writes the outcome into the row.
    pub(crate) fn close(mut self, row: &mut SagaRow) -> Turned {
        if !self.turned.accepted {
            return self.turned;
        }
        let plan = &self.definition.plan;
        let steps = plan.steps.iter().zip(self.before.steps.iter().zip(&self.instance.steps));
        for (step, (before, after)) in steps {
            if after.phase == Phase::Done && before.phase != Phase::Done {
                let begun = after.begun.unwrap_or(self.now);
                self.turned.done.push((step.name, self.now.since(begun)));
            }
        }
        if self.instance.state.is_ended() {
            self.turned.ended = Some(self.instance.state);
        }
        if self.before.parked.is_none() {
            self.turned.parked.clone_from(&self.instance.parked);
        }
        row.state = self.instance.state;
        row.parked = self.instance.parked.is_some();
        row.wake_at = decide::wake_at(plan, &self.instance);
        row.data = self.data.encode_to_vec().into();
        row.progress = self.instance.encode();
        row.updated_at = self.now;
        self.turned
    }
}
