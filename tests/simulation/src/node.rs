//! One process of the shop: everything that runs in it, and its ends.

use std::sync::Arc;
use std::time::Duration;

use antiphon_broker_memory::MemoryBroker;
use antiphon_core::{BoxError, Clock, Component, Health, RetryPolicy, Shutdown, ShutdownHandle};
use antiphon_messaging::{AnyBroker, Consumer, Messaging};
use antiphon_outbox::{Database, Relay, RelaySettings};
use antiphon_saga::{Participants, Saga, SagaOperator, Sagas};
use antiphon_telemetry::Telemetry;
use antiphon_testing::MemoryStore;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::Mutant;
use crate::broker::{BadConnection, Delivered};
use crate::contract::{
    Capture, Charge, OrderCancelled, OrderConfirmed, OrderPlaced, PlaceOrder, Refund, Release,
    Reserve, Ship,
};
use crate::faults::{Faults, NodeFaults};
use crate::shop::{Points, Shop, Witness, place_order};
use crate::store::{NodeStore, Seen};
use crate::world::DRAIN;

/// What outlives the nodes.
pub(crate) struct Outside {
    pub(crate) faults: Arc<Faults>,
    pub(crate) clock: Clock,
    pub(crate) broker: MemoryBroker,
    pub(crate) delivered: Delivered,
    pub(crate) orders: Service,
    pub(crate) inventory: Service,
    pub(crate) payments: Service,
    pub(crate) mutant: Option<Mutant>,
}

/// The rows of one service.
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) store: MemoryStore,
    seen: Arc<Mutex<Seen>>,
}

impl Service {
    fn new(name: &'static str, clock: &Clock) -> Self {
        Self { name, store: MemoryStore::new(clock.clone()), seen: Arc::default() }
    }

    fn open(&self, node: &Arc<NodeFaults>, mutant: Option<Mutant>) -> Database<NodeStore> {
        Database::new(self.name, NodeStore::open(&self.store, &self.seen, node, mutant))
    }
}

impl Outside {
    pub(crate) fn new(faults: Arc<Faults>, clock: Clock, mutant: Option<Mutant>) -> Self {
        Self {
            faults,
            broker: MemoryBroker::new(clock.clone()),
            delivered: Delivered::default(),
            orders: Service::new("orders", &clock),
            inventory: Service::new("inventory", &clock),
            payments: Service::new("payments", &clock),
            clock,
            mutant,
        }
    }

    pub(crate) fn services(&self) -> [&Service; 3] {
        [&self.orders, &self.inventory, &self.payments]
    }
}

/// How clients reach the orders service of a running node.
#[derive(Clone)]
pub(crate) struct Front {
    pub(crate) database: Database<NodeStore>,
    pub(crate) place_order: Saga<PlaceOrder, NodeStore>,
    pub(crate) operator: SagaOperator<NodeStore>,
}

/// The doors of all nodes, open while they run.
pub(crate) type Fronts = Arc<Mutex<Vec<Option<Front>>>>;

/// Runs node number `number`, life after life, until `end` asks for a drain.
///
/// # Errors
/// A component ended by itself, or did not drain.
pub(crate) async fn run(
    number: usize,
    outside: Arc<Outside>,
    fronts: Fronts,
    end: Shutdown,
) -> Result<(), BoxError> {
    loop {
        let faults = NodeFaults::new(&outside.faults);
        let mut life = Life::begin(&outside, &faults)?;
        fronts.lock()[number] = Some(life.front.clone());
        let ended = tokio::select! {
            biased;
            () = faults.crashed() => None,
            Some(ended) = life.components.join_next() => Some(ended),
            () = end.draining() => {
                fronts.lock()[number] = None;
                return life.drain().await;
            }
        };
        fronts.lock()[number] = None;
        life.components.shutdown().await;
        match ended {
            None => tokio::time::sleep(outside.faults.millis(50..3_000)).await,
            Some(Ok((name, outcome))) => {
                return Err(format!("{name} ended by itself: {outcome:?}").into());
            }
            Some(Err(panic)) => return Err(panic.into()),
        }
    }
}

/// One life of a node.
struct Life {
    front: Front,
    components: JoinSet<(String, Result<(), BoxError>)>,
    handle: ShutdownHandle,
}

impl Life {
    fn begin(outside: &Outside, faults: &Arc<NodeFaults>) -> Result<Self, BoxError> {
        let connection = BadConnection {
            broker: outside.broker.clone(),
            node: Arc::clone(faults),
            delivered: Arc::clone(&outside.delivered),
            mutant: outside.mutant,
        };
        let broker = AnyBroker::new(connection);
        let messaging = Messaging {
            clock: outside.clock.clone(),
            ..Messaging::new(broker, Telemetry::new(), Health::new())
        };
        let shop = Shop { node: Arc::clone(faults) };
        let place_order = place_order(&shop)?;
        let [orders, inventory, payments] =
            outside.services().map(|service| service.open(faults, outside.mutant));
        let sagas = Sagas::of(&orders, &messaging.telemetry).saga(&place_order);
        let operator = sagas.operator();
        let retry = RetryPolicy::exponential(Duration::from_millis(50), Duration::from_secs(2))
            .attempts(20);

        let (handle, shutdown) = ShutdownHandle::new();
        let mut starting = Starting { components: JoinSet::new(), shutdown };
        for database in [&orders, &inventory, &payments] {
            let relay = Relay::new(database, messaging.broker.clone(), &messaging.telemetry);
            starting.start(relay.with_settings(relay_settings()));
        }
        starting.start(sagas.build(&messaging)?);
        let inventory = inventory
            .participant("inventory.commands")
            .on::<Reserve>(shop.clone())
            .on::<Release>(shop.clone())
            .on::<Ship>(shop.clone())
            .retry(retry);
        starting.start(inventory.build(&messaging)?);
        let participant = payments
            .participant("payments.commands")
            .on_later::<Charge>(shop.clone())
            .on::<Refund>(shop.clone())
            .retry(retry);
        starting.start(participant.build(&messaging)?);
        let captures = payments.group("payments.captures").command::<Capture>(shop.clone());
        starting.start(Consumer::from(captures.ordered().retry(retry)).build(&messaging)?);
        let points = payments.group("points").on::<OrderConfirmed>(Points(shop.clone()));
        starting.start(Consumer::from(points.retry(retry)).build(&messaging)?);
        let witness = Witness(shop);
        let witness = payments
            .group("witness")
            .on::<OrderPlaced>(witness.clone())
            .on::<OrderConfirmed>(witness.clone())
            .on::<OrderCancelled>(witness)
            .ordered()
            .retry(retry);
        starting.start(Consumer::from(witness).build(&messaging)?);

        let front = Front { database: orders, place_order, operator };
        Ok(Self { front, components: starting.components, handle })
    }

    async fn drain(mut self) -> Result<(), BoxError> {
        self.handle.drain(DRAIN);
        while let Some(ended) = self.components.join_next().await {
            let (name, outcome) = ended?;
            outcome.map_err(|error| format!("{name} did not drain: {error}"))?;
        }
        Ok(())
    }
}

struct Starting {
    components: JoinSet<(String, Result<(), BoxError>)>,
    shutdown: Shutdown,
}

impl Starting {
    fn start(&mut self, component: impl Component) {
        let shutdown = self.shutdown.clone();
        let name = component.name().to_owned();
        self.components.spawn(async move { (name, component.run(shutdown).await) });
    }
}

/// Short leases, so that they are lost often; long polls, so that a run is cheap.
fn relay_settings() -> RelaySettings {
    RelaySettings {
        lease_ttl: Duration::from_secs(3),
        lease_margin: Duration::from_millis(500),
        poll_max: Duration::from_millis(500),
        sweep_interval: Duration::from_secs(1),
        publish_timeout: Duration::from_secs(5),
        backoff_max: Duration::from_secs(1),
        ..RelaySettings::default()
    }
}
