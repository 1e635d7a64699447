//! A travel agency for the tests: one coordinator, one participant whose answers are prescribed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use antiphon_broker_memory::MemoryBroker;
use antiphon_core::{BoxError, Clock, Component, Health, RetryPolicy, ShutdownHandle, Timestamp};
use antiphon_messaging::{AnyBroker, Command, Fail, Messaging};
use antiphon_outbox::{Database, Relay, Tx};
use antiphon_saga::{
    Participants, Participate, ParticipateLater, Rejection, Saga, SagaFilter, SagaId, SagaOperator,
    SagaStore, SagaView, Sagas, State, Ticket,
};
use antiphon_telemetry::Telemetry;
use antiphon_testing::MemoryStore;
use antiphon_testing::memory_store::{Fault, Point};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::messages::{Book, Done, HasPaid, Pay, Refund, Send, Trip, Unbook};

pub(crate) const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// What the participant does with a kind of command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Refused,
    /// Technical trouble, as often as said.
    Fails(u32),
    Panics,
    /// It writes the ticket down and answers only when told.
    Later,
}

/// What the participant was asked, in order, and how it answers.
#[derive(Clone, Default)]
pub(crate) struct Desk {
    answers: Arc<Mutex<BTreeMap<&'static str, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
    pub(crate) tickets: Arc<Mutex<Vec<Ticket>>>,
    /// Whether the next commit of the desks is refused, as by a constraint that is checked late.
    spoilt: Arc<AtomicBool>,
}

impl Desk {
    pub(crate) fn answers(&self, kind: &'static str, answer: Answer) {
        self.answers.lock().insert(kind, answer);
    }

    /// What it did, as `kind id`.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }

    async fn serve<C: Command>(
        &self,
        command: &C,
        tx: &mut Tx<MemoryStore>,
    ) -> Result<Done, Rejection> {
        let kind = C::KIND.trim_start_matches("test.");
        let answer = self.answers.lock().get(kind).copied().unwrap_or(Answer::Done);
        self.asked.lock().push(format!("{kind} {}", command.key()));
        // What a refusal or a failure leaves in the transaction must not be seen by anybody.
        tx.put("desk", &format!("{kind} {}", command.key()), "x").await?;
        self.spoilt.fetch_or(command.key().starts_with("spoils"), Ordering::Relaxed);
        match answer {
            Answer::Done | Answer::Later => Ok(Done { note: kind.to_owned(), ..Done::default() }),
            Answer::Refused => Err(Rejection::because("NO", format!("no {kind}"))),
            Answer::Fails(0) => Ok(Done::default()),
            Answer::Fails(left) => {
                self.answers(C::KIND.trim_start_matches("test."), Answer::Fails(left - 1));
                Err(Fail::retry("trouble").into())
            }
            Answer::Panics => panic!("the handler of {kind} panics"),
        }
    }
}

macro_rules! serves {
    ($($command:ty),+) => {$(
        impl Participate<$command, MemoryStore> for Desk {
            type Reply = Done;

            async fn handle(
                &self,
                command: $command,
                tx: &mut Tx<MemoryStore>,
            ) -> Result<Done, Rejection> {
                self.serve(&command, tx).await
            }
        }
    )+};
}
serves!(Book, Unbook, Refund, HasPaid, Send);

impl ParticipateLater<Pay, MemoryStore> for Desk {
    async fn handle(
        &self,
        command: Pay,
        ticket: Ticket,
        tx: &mut Tx<MemoryStore>,
    ) -> Result<(), Rejection> {
        let later = self.answers.lock().get("Pay") == Some(&Answer::Later);
        let reply = self.serve(&command, tx).await?;
        if later {
            self.tickets.lock().push(ticket);
        } else {
            ticket.done(tx, &reply).await?;
        }
        Ok(())
    }
}

/// Everything that runs.
pub(crate) struct Agency {
    pub(crate) trips: Database<MemoryStore>,
    pub(crate) desks: Database<MemoryStore>,
    pub(crate) desk: Desk,
    pub(crate) operator: SagaOperator<MemoryStore>,
    pub(crate) messaging: Messaging,
    pub(crate) coordinator: JoinHandle<Result<(), BoxError>>,
    _handle: ShutdownHandle,
}

impl Agency {
    /// Opens it for these versions of a saga.
    pub(crate) fn open(sagas: &[&Saga<Trip, MemoryStore>]) -> Self {
        let clock = Clock::ticking(START);
        let trips = Database::new("trips", MemoryStore::new(clock.clone()));
        Self::open_on(trips, clock, sagas)
    }

    /// The same, on a database that has sagas already.
    pub(crate) fn open_on(
        trips: Database<MemoryStore>,
        clock: Clock,
        sagas: &[&Saga<Trip, MemoryStore>],
    ) -> Self {
        let desk = Desk::default();
        let spoilt = Arc::clone(&desk.spoilt);
        let refuses = move |point| match point {
            Point::Commit if spoilt.swap(false, Ordering::Relaxed) => Fault::Fails,
            _ => Fault::None,
        };
        let desks = MemoryStore::new(clock.clone()).opened_with(Arc::new(refuses));
        let desks = Database::new("desks", desks);
        let broker = AnyBroker::new(MemoryBroker::new(clock.clone()));
        let messaging =
            Messaging { clock, ..Messaging::new(broker, Telemetry::new(), Health::new()) };
        let (handle, shutdown) = ShutdownHandle::new();
        let telemetry = &messaging.telemetry;
        let mut known = Sagas::of(&trips, telemetry);
        for saga in sagas {
            known = known.saga(saga);
        }
        let operator = known.operator();
        let coordinator = known.build(&messaging).unwrap();
        let retry = RetryPolicy::exponential(Duration::from_millis(10), SECOND).attempts(20);
        let participation = desks
            .participant("desks.commands")
            .on::<Book>(desk.clone())
            .on::<Unbook>(desk.clone())
            .on_later::<Pay>(desk.clone())
            .on::<Refund>(desk.clone())
            .on::<HasPaid>(desk.clone())
            .on::<Send>(desk.clone())
            .retry(retry)
            .build(&messaging)
            .unwrap();
        for database in [&trips, &desks] {
            let relay = Relay::new(database, messaging.broker.clone(), telemetry);
            tokio::spawn(relay.run(shutdown.clone()));
        }
        tokio::spawn(participation.run(shutdown.clone()));
        let coordinator = tokio::spawn(coordinator.run(shutdown));
        Self { trips, desks, desk, operator, messaging, coordinator, _handle: handle }
    }

    pub(crate) async fn start(&self, saga: &Saga<Trip, MemoryStore>, id: &str) -> SagaId {
        let mut tx = self.trips.begin().await.unwrap();
        let started = saga.start(&mut tx, id, &Trip::of(id)).await.unwrap();
        tx.commit().await.unwrap();
        started.id
    }

    pub(crate) async fn show(&self, id: SagaId) -> SagaView {
        self.operator.show(id).await.unwrap().expect("the saga is there")
    }

    /// Waits until the saga is as wanted.
    pub(crate) async fn until(&self, id: SagaId, wanted: impl Fn(&SagaView) -> bool) -> SagaView {
        let wait = async {
            loop {
                let view = self.show(id).await;
                if wanted(&view) {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(600 * SECOND, wait).await {
            Ok(view) => view,
            Err(_) => panic!("it never gets there: {:?}", self.show(id).await),
        }
    }

    pub(crate) async fn ends(&self, id: SagaId) -> SagaView {
        self.until(id, |view| view.state.is_ended()).await
    }

    /// What the saga knows.
    pub(crate) async fn data(&self, id: SagaId) -> Trip {
        use buffa::Message;
        let rows = self.trips.store().list(&SagaFilter::default(), 100).await.unwrap();
        let row = rows.into_iter().find(|row| row.id == id).unwrap();
        Trip::decode_from_slice(&row.data).unwrap()
    }
}

/// Whether it ended like this.
pub(crate) fn ended_as(view: &SagaView, state: State) {
    assert_eq!(view.state, state, "{view:?}");
    assert_eq!(view.parked, None);
    assert_eq!(view.wake_at, None);
}
