//! Sagas of three remote steps: coordinator, participants, outbox, relays and the SQL broker, all on
//! SQLite or all on PostgreSQL, and all durable.

use std::time::Duration;

use antiphon::saga::{
    BarrierStore, Participants, Participate, Rejection, Saga, SagaStore, Sagas, Step,
};
use antiphon::sqlite::{self, Sqlite, SqliteBroker};
use antiphon_core::{BoxError, Component, Health, Shutdown, ShutdownHandle};
use antiphon_messaging::{AnyBroker, Messaging, Topology};
use antiphon_outbox::{Database, InboxStore, OutboxStore, Relay, Store, Tx};
use antiphon_store_postgres::{self as postgres, PostgresBroker, PostgresStore};
use antiphon_telemetry::Telemetry;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use test_servers::Service;
use tokio::time::Instant;

use crate::contract::bench::v1::{BookCar, BookFlight, BookHotel, Booked, Trip};
use crate::messaging;
use crate::report::{progress, table};

const SAGAS: usize = 8_000;
/// How many are begun in one transaction, as concurrent calls would.
const BATCH: usize = 20;
/// How many are in flight at most.
const WINDOW: usize = 800;

/// Says yes to everything.
#[derive(Clone)]
struct Agent;

macro_rules! books {
    ($($command:ty),*) => {$(
        impl<S: Store> Participate<$command, S> for Agent {
            type Reply = Booked;

            async fn handle(&self, _: $command, _: &mut Tx<S>) -> Result<Booked, Rejection> {
                Ok(Booked::default())
            }
        }
    )*};
}
books!(BookFlight, BookHotel, BookCar);

/// Begins sagas as fast as they end, and prints the rates.
pub(crate) fn run() -> Result<(), BoxError> {
    messaging::start("postgres")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    progress("saga: SQLite");
    let on_sqlite = runtime.block_on(sqlite())?;
    progress("saga: PostgreSQL");
    let on_postgres = runtime.block_on(postgres())?;
    let row = |place: &str, rate: f64| vec![place.into(), SAGAS.to_string(), format!("{rate:.0}")];
    table(
        "Sagas of three remote steps",
        &["on", "sagas", "sagas/s"],
        &[
            row("SQLite, synchronous=NORMAL", on_sqlite),
            row("PostgreSQL, synchronous_commit=on", on_postgres),
        ],
    );
    Ok(())
}

async fn sqlite() -> Result<f64, BoxError> {
    let folder = tempfile::tempdir_in(".")?;
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let settings = sqlite::Settings::default;
    let broker = SqliteBroker::open(&path("broker.db"), settings()).await?;
    let trips = Sqlite::open(&path("trips.db"), settings()).await?;
    let agents = Sqlite::open(&path("agents.db"), settings()).await?;
    Box::pin(measure(trips, agents, AnyBroker::new(broker))).await
}

/// On the server of the tests, in databases that are dropped afterwards.
async fn postgres() -> Result<f64, BoxError> {
    let server = Service::Postgres.url();
    let own = std::process::id();
    let databases = ["broker", "trips", "agents"].map(|part| format!("bench_{part}_{own}"));
    let [broker, trips, agents] = databases.each_ref().map(|name| match server.rsplit_once('/') {
        Some((server, _)) => format!("{server}/{name}"),
        None => server.clone(),
    });
    let settings = postgres::Settings::default;
    let broker = PostgresBroker::open(&broker, settings()).await?;
    let trips = PostgresStore::open(&trips, settings()).await?;
    let agents = PostgresStore::open(&agents, settings()).await?;
    let rate = Box::pin(measure(trips, agents, AnyBroker::new(broker))).await;
    let mut connection = PgConnection::connect(&server).await?;
    for name in databases {
        let drop = AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        sqlx::raw_sql(drop).execute(&mut connection).await?;
    }
    rate
}

fn spawn(component: impl Component, shutdown: &Shutdown) {
    let shutdown = shutdown.clone();
    tokio::spawn(async move { component.run(shutdown).await });
}

async fn measure<S>(trips: S, agents: S, broker: AnyBroker) -> Result<f64, BoxError>
where
    S: SagaStore + BarrierStore + OutboxStore + InboxStore,
{
    let telemetry = Telemetry::new();
    let messaging = Messaging::new(broker.clone(), telemetry.clone(), Health::new());
    let (trips, agents) = (Database::new("trips", trips), Database::new("agents", agents));
    let saga = Saga::<Trip, S>::define("trip", 1)
        .step(
            Step::remote("flight", |trip: &Trip| BookFlight {
                id: trip.id.clone(),
                ..Default::default()
            })
            .nothing_to_undo(),
        )
        .step(
            Step::remote("hotel", |trip: &Trip| BookHotel {
                id: trip.id.clone(),
                ..Default::default()
            })
            .nothing_to_undo(),
        )
        .step(
            Step::remote("car", |trip: &Trip| BookCar {
                id: trip.id.clone(),
                ..Default::default()
            })
            .nothing_to_undo(),
        )
        .build()?;
    let coordinator = Sagas::of(&trips, &telemetry).saga(&saga).build(&messaging)?;
    let participation = agents
        .participant("agents.commands")
        .on::<BookFlight>(Agent)
        .on::<BookHotel>(Agent)
        .on::<BookCar>(Agent)
        .build(&messaging)?;
    let mut topology = Topology::default();
    for part in [coordinator.topology(), participation.topology()] {
        topology.topics.extend(part.topics.iter().cloned());
        topology.groups.extend(part.groups.iter().cloned());
    }
    broker.declare(&topology).await?;
    let (handle, shutdown) = ShutdownHandle::new();
    spawn(coordinator, &shutdown);
    spawn(participation, &shutdown);
    spawn(Relay::new(&trips, broker.clone(), &telemetry), &shutdown);
    spawn(Relay::new(&agents, broker, &telemetry), &shutdown);
    let begun = Instant::now();
    let (mut started, mut live) = (0, 0);
    while started < SAGAS || live > 0 {
        while started < SAGAS && live < WINDOW {
            let mut tx = trips.begin().await?;
            for _ in 0..BATCH {
                let id = format!("trip-{started}");
                saga.start(&mut tx, &id, &Trip { id: id.clone(), ..Default::default() }).await?;
                started += 1;
            }
            tx.commit().await?;
            live += BATCH;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let counts = trips.store().live().await?;
        live = counts.iter().map(|count| usize::try_from(count.count).unwrap_or(0)).sum();
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = SAGAS as f64 / begun.elapsed().as_secs_f64();
    handle.cut();
    Ok(rate)
}
