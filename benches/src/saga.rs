//! Sagas of three remote steps: coordinator, participants, outbox, relays and the SQL broker, all on
//! SQLite and all durable.

use std::time::Duration;

use antiphon::saga::{Participants, Participate, Rejection, Saga, SagaStore, Sagas, Step};
use antiphon::sqlite::{Database, Settings, Sqlite, SqliteBroker, Tx};
use antiphon_core::{BoxError, Component, Health, Shutdown, ShutdownHandle};
use antiphon_messaging::{AnyBroker, Messaging, Topology};
use antiphon_outbox::Relay;
use antiphon_telemetry::Telemetry;
use tokio::time::Instant;

use crate::contract::bench::v1::{BookCar, BookFlight, BookHotel, Booked, Trip};
use crate::report::table;

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
        impl Participate<$command, Sqlite> for Agent {
            type Reply = Booked;

            async fn handle(&self, _: $command, _: &mut Tx) -> Result<Booked, Rejection> {
                Ok(Booked::default())
            }
        }
    )*};
}
books!(BookFlight, BookHotel, BookCar);

/// Begins sagas as fast as they end, and prints the rate.
pub(crate) fn run() -> Result<(), BoxError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let rate = runtime.block_on(measure())?;
    let row = vec![SAGAS.to_string(), format!("{rate:.0}")];
    table(
        "Sagas of three remote steps on SQLite, synchronous=NORMAL",
        &["sagas", "sagas/s"],
        &[row],
    );
    Ok(())
}

fn spawn(component: impl Component, shutdown: &Shutdown) {
    let shutdown = shutdown.clone();
    tokio::spawn(async move { component.run(shutdown).await });
}

async fn measure() -> Result<f64, BoxError> {
    let folder = tempfile::tempdir_in(".")?;
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let telemetry = Telemetry::new();
    let broker = SqliteBroker::open(&path("broker.db"), Settings::default()).await?;
    let broker = AnyBroker::new(broker);
    let messaging = Messaging::new(broker.clone(), telemetry.clone(), Health::new());
    let open = async |name: &str| {
        let store = Sqlite::open(&path(&format!("{name}.db")), Settings::default()).await?;
        Ok::<_, BoxError>(Database::new(name, store))
    };
    let (trips, agents) = (open("trips").await?, open("agents").await?);
    let saga = Saga::<Trip, Sqlite>::define("trip", 1)
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
