//! One run, from the first server to the verdict.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::engine::{BrokerKind, Engine, StoreKind};
use crate::nemesis::{self, World};
use crate::plan::{Kind, ROLES, Side, plan};
use crate::proof::{Bite, Happened, Metrics, bites, void};
use crate::shop::{self, Instance, Orders};
use crate::{Result, web};

/// How long customers order before anything goes wrong.
const QUIET: Duration = Duration::from_secs(3);
/// How long, in seconds, nothing may become less of what is in flight after everything was healed. How
/// long all of it takes is a matter of the machine.
const SETTLE: u64 = 90;

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// What keeps rows.
    pub store: StoreKind,
    /// What carries messages.
    pub broker: BrokerKind,
    /// What customers and faults do.
    pub work: Work,
    /// Decides what goes wrong and what customers order.
    pub seed: u64,
    /// Where logs go; they stay there when the run fails.
    pub folder: PathBuf,
    /// Prints progress.
    pub say: fn(String),
}

/// What customers and faults do.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Things go wrong for so long, while customers place so many orders per second.
    Faults(Duration, u32),
    /// Nothing goes wrong; customers place so many orders, as fast as it goes.
    Calm(u32),
}

/// How a run ended.
#[derive(Debug)]
pub struct Verdict {
    /// Whether every invariant holds.
    pub holds: bool,
    /// What the audit said.
    pub audit: String,
    /// How many orders were accepted.
    pub accepted: usize,
    /// What bit.
    pub bites: Vec<Bite>,
    /// How often processes ended by themselves, which nobody asked them to.
    pub ends: u64,
}

impl Verdict {
    /// Whether the run shows that nothing was lost and nothing done twice.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.holds && self.accepted > 0 && void(&self.bites).next().is_none()
    }
}

/// Runs the shop, makes things go wrong, heals, and judges.
///
/// # Errors
///
/// When the run cannot be made: a server cannot be had, a service does not start or come back.
///
/// # Cancel safety
///
/// Servers and processes end.
pub async fn run(options: &Options) -> Result<Verdict> {
    let say = options.say;
    std::fs::create_dir_all(options.folder.join("data"))?;
    let begun = Instant::now();
    let engine = Engine::start(&options.folder, options.store, options.broker).await?;
    say(format!("  servers are ready after {:.1} s", begun.elapsed().as_secs_f64()));
    let kinds = engine.kinds();
    let world = Arc::new(open(engine, &options.folder).await?);
    say(format!("  six services are ready after {:.1} s", begun.elapsed().as_secs_f64()));

    let verdict = match options.work {
        Work::Faults(active, rate) => faults(options, &world, &kinds, active, rate).await?,
        Work::Calm(orders) => calm(options, &world, orders).await?,
    };
    for service in &world.services {
        if !service.stop().await? {
            return Err(format!("{} did not end in order and in time", service.name()).into());
        }
    }
    Ok(verdict)
}

/// Lets customers order and everything go wrong.
async fn faults(
    options: &Options,
    world: &Arc<World>,
    kinds: &[Kind],
    active: Duration,
    rate: u32,
) -> Result<Verdict> {
    let say = options.say;
    let events = plan(options.seed, active, kinds);
    let orders = Orders { count: u32::MAX, rate: Some(rate), seed: options.seed };
    let mut customers = customers(options, world, orders)?;
    sleep(QUIET).await;
    let connections_before = connections(world);
    let metrics = Arc::new(Mutex::new(Metrics::default()));
    let tending = tokio::spawn(tend(Arc::clone(world), Arc::clone(&metrics)));
    let active_since = Instant::now();
    let inflicted = nemesis::run(world, &events, say).await;
    sleep(active.saturating_sub(active_since.elapsed())).await;
    shop::signal(&customers, Signal::INT);
    say("  healing".to_owned());
    let healed = world.heal().await;
    inflicted.and(healed)?;
    timeout(Duration::from_secs(60), customers.wait()).await??;

    say("  waiting until nothing is in flight".to_owned());
    let (holds, audit) = audit(options, &world.engine).await?;
    // The ledgers are read now and then.
    sleep(Duration::from_secs(2)).await;
    scrape(world, &metrics).await;
    tending.abort();
    let verdict = judge(options, world, &events, &*metrics.lock().await, connections_before);
    Ok(Verdict { holds, audit, ..verdict })
}

/// Lets customers order while nothing goes wrong.
async fn calm(options: &Options, world: &World, count: u32) -> Result<Verdict> {
    let orders = Orders { count, rate: None, seed: options.seed };
    let status = customers(options, world, orders)?.wait().await?;
    let said = std::fs::read_to_string(shop::customers_log(&options.folder))?;
    said.lines().for_each(|line| (options.say)(format!("  {line}")));
    if !status.success() {
        return Err(format!("not every order was accepted and decided: {status}").into());
    }
    let (holds, audit) = audit(options, &world.engine).await?;
    let ends = world.services.iter().map(Instance::ends).sum();
    Ok(Verdict { holds, audit, accepted: accepted(options), bites: Vec::new(), ends })
}

fn customers(options: &Options, world: &World, orders: Orders) -> Result<Child> {
    let [place, stock] = [0, 1].map(|role: usize| world.services[role].api.as_str());
    shop::customers(&options.folder, place, stock, orders)
}

/// How many orders were accepted, as the customers wrote down.
fn accepted(options: &Options) -> usize {
    let journal = std::fs::read_to_string(shop::journal(&options.folder)).unwrap_or_default();
    journal.lines().count()
}

/// Starts the six services.
async fn open(engine: Engine, folder: &Path) -> Result<World> {
    let mut settings = Vec::new();
    let mut services = Vec::new();
    for (role, name) in ROLES.iter().enumerate() {
        let file = folder.join(format!("{name}.toml"));
        services.push(Instance::new(folder, role, name, &file)?);
        settings.push(file);
    }
    let inventory = services[1].api.clone();
    let targets = [("shop.inventory.v1.InventoryService", inventory.as_str())];
    for (role, file) in settings.iter().enumerate() {
        std::fs::write(file, engine.settings(role, &targets))?;
    }
    std::fs::write(folder.join("audit.toml"), engine.settings_for_audit())?;
    for service in &services {
        service.start(None)?;
    }
    for service in &services {
        service.ready().await?;
    }
    Ok(World {
        engine,
        services,
        more: Mutex::default(),
        settings,
        folder: folder.to_owned(),
        killed_connections: AtomicU64::new(0),
    })
}

/// Starts what ended by itself, as an orchestrator would, and collects metrics.
async fn tend(world: Arc<World>, metrics: Arc<Mutex<Metrics>>) {
    loop {
        sleep(Duration::from_millis(500)).await;
        for service in &world.services {
            if let Err(error) = service.tend() {
                tokio::task::yield_now().await;
                drop(error);
            }
        }
        scrape(&world, &metrics).await;
    }
}

async fn scrape(world: &World, metrics: &Mutex<Metrics>) {
    let more = world.more.lock().await.clone();
    for instance in world.services.iter().chain(more.iter().map(AsRef::as_ref)) {
        if !instance.answers() {
            continue;
        }
        let start = instance.starts();
        // Whoever is being killed does not answer.
        if let Ok((200, text)) = web::get(&instance.admin, "/metrics").await {
            metrics.lock().await.note(instance.name(), start, &text);
        }
    }
}

fn connections(world: &World) -> u64 {
    let counts = [Side::Store, Side::Broker].map(|side| world.engine.counts(side));
    counts.iter().flatten().map(|counts| counts.connections).sum()
}

fn judge(
    options: &Options,
    world: &World,
    events: &[crate::plan::Event],
    metrics: &Metrics,
    connections_before: u64,
) -> Verdict {
    let disks = [Side::Store, Side::Broker].map(|side| {
        world.engine.server(side).and_then(|server| server.disk.as_ref()).map_or(0, |d| d.filled())
    });
    let happened = Happened {
        events,
        counts: [Side::Store, Side::Broker].map(|side| world.engine.counts(side)),
        connections_before,
        killed_connections: world.killed_connections.load(Ordering::Relaxed),
        filled: disks.iter().sum(),
    };
    Verdict {
        holds: false,
        audit: String::new(),
        accepted: accepted(options),
        bites: bites(metrics, &happened),
        ends: world.services.iter().map(Instance::ends).sum(),
    }
}

/// Asks the judge.
async fn audit(options: &Options, engine: &Engine) -> Result<(bool, String)> {
    let folder = &options.folder;
    let mut command = Command::new(shop::command()?);
    command.args(["audit", "--wait", &SETTLE.to_string(), "--journal"]);
    command.arg(shop::journal(folder)).current_dir(folder);
    if engine.server(Side::Store).is_some() {
        command.arg("--config").arg(folder.join("audit.toml"));
    } else {
        command.arg("--data").arg(folder.join("data"));
    }
    let output = command.kill_on_drop(true).stdin(Stdio::null()).output().await?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}
