//! Carries out a plan.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use antiphon_testing::proxy::{Faults, Proxy, Way};
use antiphon_testing::services::Service;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::Result;
use crate::engine::{Engine, Server};
use crate::plan::{Event, Fault, Network, ROLES, Side};
use crate::shop::Instance;

/// The time between two changes in a storm.
const STORM: Duration = Duration::from_secs(3);

/// Everything that things are done to.
#[derive(Debug)]
pub struct World {
    /// The servers.
    pub engine: Engine,
    /// The services, by their number.
    pub services: Vec<Instance>,
    /// Further instances that are there for a while, or were.
    pub more: Mutex<Vec<Arc<Instance>>>,
    /// Settings by service.
    pub settings: Vec<PathBuf>,
    /// Where processes work.
    pub folder: PathBuf,
    /// Connections that a database server ended.
    pub killed_connections: AtomicU64,
}

/// Does everything in a plan at its time, and waits until all of it is over.
///
/// # Errors
///
/// When something cannot be done, or a server does not come back.
///
/// # Cancel safety
///
/// What has been done stays done; heal afterwards.
pub async fn run(world: &Arc<World>, events: &[Event], say: fn(String)) -> Result<()> {
    let begun = Instant::now();
    let mut going = JoinSet::new();
    for event in events.iter().copied() {
        sleep_until(begun + event.at).await;
        say(format!("  {event}"));
        let world = Arc::clone(world);
        going.spawn(async move {
            let done = inflict(&world, event).await;
            done.map_err(|error| format!("{}: {error}", event.fault))
        });
        while let Some(ended) = going.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = going.join_next().await {
        ended??;
    }
    Ok(())
}

async fn inflict(world: &World, event: Event) -> Result<()> {
    let lasts = event.lasts;
    match event.fault {
        Fault::Kill { role } => {
            let service = &world.services[role];
            service.kill().await?;
            sleep(lasts).await;
            service.start(None)
        }
        Fault::Pause { role } => {
            let twin = world.twin(role).await?;
            twin.start(None)?;
            world.services[role].pause();
            sleep(lasts).await;
            world.services[role].resume();
            // Both work for a moment.
            sleep(Duration::from_secs(1)).await;
            twin.kill().await
        }
        Fault::Storm { role } => {
            let twin = world.twin(role).await?;
            let end = Instant::now() + lasts;
            while Instant::now() < end {
                twin.start(None)?;
                sleep(STORM).await;
                // In order: whoever leaves politely must not lose anything either.
                twin.stop().await?;
            }
            Ok(())
        }
        Fault::Clock { role, seconds } => {
            let service = &world.services[role];
            service.kill().await?;
            service.start(Some(seconds))?;
            sleep(lasts).await;
            service.kill().await?;
            service.start(None)
        }
        Fault::Network { role, side, kind } => {
            let link = world.server(side)?.link(role);
            network(link, kind, lasts).await;
            Ok(())
        }
        Fault::Restart(side)
        | Fault::Crash(side)
        | Fault::Freeze(side)
        | Fault::Disconnect(side)
        | Fault::Fill(side) => {
            let killed = server(world.server(side)?, event.fault, lasts).await?;
            world.killed_connections.fetch_add(killed, Ordering::Relaxed);
            Ok(())
        }
    }
}

/// Does something to a server for a while; tells how many connections the server says it ended.
///
/// # Errors
///
/// When it cannot be done, or the server does not come back.
///
/// # Cancel safety
///
/// What has been done stays done; heal afterwards.
pub async fn server(server: &Server, fault: Fault, lasts: Duration) -> Result<u64> {
    let _turn = server.turn.lock().await;
    let private = &server.private;
    let mut killed = 0;
    match fault {
        Fault::Restart(_) => private.stop().await?,
        Fault::Crash(_) => private.kill().await?,
        Fault::Freeze(_) => private.pause().await?,
        Fault::Disconnect(_) => killed = server.disconnect().await?,
        Fault::Fill(_) => {
            if let Some(disk) = &server.disk {
                // It takes no messages while less is free than its limit of 100 MB. Without a byte left
                // its quorum queues were seen to refuse until the end of the run.
                let left = if server.service == Service::Rabbitmq { 48 << 20 } else { 0 };
                disk.fill(left).await?;
            }
        }
        _ => {}
    }
    sleep(lasts).await;
    match fault {
        Fault::Restart(_) | Fault::Crash(_) => private.start_again().await?,
        Fault::Freeze(_) => private.resume().await?,
        Fault::Fill(_) => {
            if let Some(disk) = &server.disk {
                disk.empty().await?;
            }
            // NATS switches JetStream off when it cannot write, until somebody starts it again; others
            // end.
            if server.service == Service::Nats {
                private.stop().await?;
            }
            server.revive().await?;
        }
        _ => {}
    }
    Ok(killed)
}

/// Makes something wrong between a service and a server for a while.
///
/// # Cancel safety
///
/// It stays wrong; heal afterwards.
pub async fn network(link: &Proxy, kind: Network, lasts: Duration) {
    let to_server = |way| Faults { to_server: way, ..Faults::default() };
    let to_client = |way| Faults { to_client: way, ..Faults::default() };
    let plain = Way::default();
    match kind {
        Network::Latency(ms) => {
            link.set(Faults::both(Way { latency: Duration::from_millis(ms), ..plain }));
        }
        Network::Hold => link.set(Faults::both(Way { hold: true, ..plain })),
        Network::SwallowRequests => link.set(to_server(Way { swallow: true, ..plain })),
        Network::SwallowAnswers => link.set(to_client(Way { swallow: true, ..plain })),
        Network::CutRequests(n) => link.set(to_server(Way { cut_after: Some(n), ..plain })),
        Network::CutAnswers(n) => link.set(to_client(Way { cut_after: Some(n), ..plain })),
        Network::Refuse => {
            link.set(Faults { refuse: true, ..Faults::default() });
            link.reset();
        }
        Network::Reset => {
            let end = Instant::now() + lasts;
            while Instant::now() < end {
                link.reset();
                sleep(Duration::from_millis(300)).await;
            }
            return;
        }
    }
    sleep(lasts).await;
    link.heal();
}

impl World {
    fn server(&self, side: Side) -> Result<&Server> {
        self.engine.server(side).ok_or_else(|| format!("there is no server for the {side}").into())
    }

    /// A further instance of a service.
    async fn twin(&self, role: usize) -> Result<Arc<Instance>> {
        let mut more = self.more.lock().await;
        let name = format!("{}-{}", ROLES[role], more.len() + 2);
        let twin = Instance::new(&self.folder, role, &name, &self.settings[role])?;
        let twin = Arc::new(twin);
        more.push(Arc::clone(&twin));
        Ok(twin)
    }

    /// Everything works again: servers, network, processes. Further instances are gone.
    ///
    /// # Errors
    ///
    /// When a server or a service does not come back.
    ///
    /// # Cancel safety
    ///
    /// Some may not work yet.
    pub async fn heal(&self) -> Result<()> {
        self.engine.heal().await?;
        for twin in self.more.lock().await.iter() {
            twin.kill().await?;
        }
        for service in &self.services {
            service.resume();
            service.tend()?;
        }
        for service in &self.services {
            service.ready().await?;
        }
        Ok(())
    }
}
