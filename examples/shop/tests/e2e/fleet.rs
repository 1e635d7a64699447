//! Several instances of each service, found by discovery: they die, leave and come while customers
//! order. What is found where is settings alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::process::Child;
use tokio::sync::Semaphore;

use crate::harness::{Reply, Shop, audit, free_port, metrics, request, send_signal, shop, until};

/// The service that another one calls.
pub(crate) const SERVICE: &str = "shop.inventory.v1.InventoryService";

/// Those that are reached by messages alone: the instances of each share its groups.
const BY_MESSAGES: [&str; 4] = ["payments", "points", "shipping", "notifications"];

/// Shops of so many processes run one after the other: what is tested is not how many a machine bears.
static TURN: Semaphore = Semaphore::const_new(1);

/// Where callers find the instances of the inventory.
pub(crate) trait Directory {
    /// Where the next instance shall listen.
    fn place(&mut self) -> String {
        format!("127.0.0.1:{}", free_port())
    }

    /// Makes it say that the instances are these, as the tools do that manage such things.
    async fn list(&self, instances: &[String]);
}

/// A registry, at which every instance registers by itself.
impl Directory for () {
    async fn list(&self, _: &[String]) {}
}

/// All processes of a shop, which share one folder of databases.
struct Fleet<D> {
    _folder: tempfile::TempDir,
    data: PathBuf,
    config: PathBuf,
    directory: D,
    orders: Vec<Shop>,
    inventories: Vec<Shop>,
    others: BTreeMap<&'static str, Vec<Shop>>,
}

impl<D: Directory> Fleet<D> {
    /// Starts three instances of the inventory and two of each other service.
    async fn start(settings: &str, mut directory: D) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir_all(&data).unwrap();
        let config = folder.path().join("shop.toml");
        // Thirteen processes on a busy machine take their time, also to end.
        let patient = "[shutdown]\nwithin = \"50s\"\n";
        std::fs::write(&config, format!("{settings}{patient}")).unwrap();
        let mut inventories = Vec::new();
        for number in 0..3 {
            inventories.push(one(&data, &config, "inventory", number, directory.place()).await);
        }
        directory.list(&addresses(&inventories)).await;
        let orders = two(&data, &config, "orders").await;
        let others = BY_MESSAGES.map(async |name| (name, two(&data, &config, name).await));
        let others = join_all(others).await.into_iter().collect();
        Self { _folder: folder, data, config, directory, orders, inventories, others }
    }

    /// Starts one more instance of the inventory.
    async fn add_inventory(&mut self, number: usize) {
        let at = self.directory.place();
        self.inventories.push(one(&self.data, &self.config, "inventory", number, at).await);
        self.directory.list(&addresses(&self.inventories)).await;
    }

    /// Customers who order at one instance of the orders service until they are interrupted.
    fn customers(&self, instance: usize) -> (Child, PathBuf) {
        let journal = self.data.with_extension(format!("journal-{instance}"));
        let (to, inventory) = (&self.orders[instance].api, &self.inventories[0].api);
        let customers = shop()
            .args(["simulate", "--to", to, "--inventory", inventory, "--no-follow"])
            .args(["--orders", "1000000", "--concurrency", "4", "--rate", "12"])
            .args(["--patience", "120", "--journal"])
            .arg(&journal)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        (customers, journal)
    }

    /// What an instance of the orders service knows of the inventory: address, state, calls.
    async fn known(&self, orders: usize) -> Vec<(String, String, u64)> {
        let admin = &self.orders[orders].admin;
        let page: Reply = request(admin, "GET", "/debug/targets", &[], "").await;
        let targets = page.json();
        let instances = targets[0]["instances"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of = |one: &Value| {
            (text(&one["address"]), text(&one["state"]), one["picked"].as_u64().unwrap_or(0))
        };
        instances.iter().map(of).collect()
    }

    /// Waits until an instance of the inventory has answered so many calls more of an instance of the
    /// orders service.
    async fn answers(&self, orders: usize, address: &str, more: u64) {
        let picked = |known: Vec<(String, String, u64)>| {
            known.into_iter().find(|one| one.0 == address).map_or(0, |one| one.2)
        };
        let goal = picked(self.known(orders).await) + more;
        until(&format!("calls to {address}"), || async {
            (picked(self.known(orders).await) >= goal).then_some(())
        })
        .await;
    }
}

/// One instance of a service.
async fn one(data: &Path, config: &Path, service: &str, number: usize, at: String) -> Shop {
    let more = ["--only", service, "--config", config.to_str().unwrap()];
    Shop::start_at(at, data, &format!("{service}-{number}"), &more).await
}

/// Two instances of a service that nobody looks for.
async fn two(data: &Path, config: &Path, service: &str) -> Vec<Shop> {
    let mut instances = Vec::new();
    for number in 0..2 {
        let at = format!("127.0.0.1:{}", free_port());
        instances.push(one(data, config, service, number, at).await);
    }
    instances
}

fn addresses(instances: &[Shop]) -> Vec<String> {
    instances.iter().map(|shop| shop.api.clone()).collect()
}

/// Waits until an instance has handled a message: it has its share of what its groups get.
async fn has_its_share(instance: &Shop) {
    let messages = "messaging_client_consumed_messages_total{";
    until(&format!("a message for {}", instance.log.display()), || async {
        let text = metrics(&instance.admin).await;
        let counts = text.lines().filter(|line| line.starts_with(messages));
        let mut counts = counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        counts.any(|count| count > 0.0).then_some(())
    })
    .await;
}

/// Instances of every service die, leave and come while customers order; no order fails for it, and
/// the audit holds.
pub(crate) async fn instances_come_and_go(settings: &str, directory: impl Directory) {
    let _turn = TURN.acquire().await.unwrap();
    let mut fleet = Fleet::start(settings, directory).await;
    let mut customers = [fleet.customers(0), fleet.customers(1)];
    for number in 0..3 {
        let address = fleet.inventories[number].api.clone();
        fleet.answers(0, &address, 10).await;
        fleet.answers(1, &address, 10).await;
    }
    let all = fleet.others.values().flatten().chain(&fleet.orders).chain(&fleet.inventories);
    for instance in all {
        has_its_share(instance).await;
    }
    // One of each dies without a word. That of the orders service comes back where its customers wait.
    let dead = fleet.inventories.remove(2);
    let dead_address = dead.api.clone();
    drop(dead);
    fleet.others.values_mut().for_each(|instances| drop(instances.remove(0)));
    fleet.orders[1].kill_and_restart().await;
    // One of each comes, and gets its share of the work.
    fleet.add_inventory(3).await;
    let new_address = fleet.inventories[2].api.clone();
    for name in BY_MESSAGES {
        let at = format!("127.0.0.1:{}", free_port());
        let new = one(&fleet.data, &fleet.config, name, 2, at).await;
        fleet.others.get_mut(name).unwrap().push(new);
    }
    fleet.answers(0, &new_address, 10).await;
    fleet.answers(1, &new_address, 10).await;
    // One of each leaves in order: the newcomers take over what it had.
    let leaving = fleet.inventories.remove(1);
    fleet.directory.list(&addresses(&fleet.inventories)).await;
    leaving.close().await;
    for name in BY_MESSAGES {
        let leaving = fleet.others.get_mut(name).unwrap().remove(0);
        leaving.close().await;
        has_its_share(&fleet.others[name][0]).await;
    }
    fleet.answers(0, &new_address, 10).await;
    let known = fleet.known(0).await;
    let gone = known.iter().find(|one| one.0 == dead_address);
    assert!(gone.is_none_or(|one| one.1 != "ready"), "{known:?}");
    for (customers, _) in &mut customers {
        send_signal(customers.id().unwrap(), "INT");
        customers.wait().await.unwrap();
    }
    for orders in &fleet.orders {
        let log = orders.log_text();
        assert!(!log.contains("prices cannot be asked for"), "{log}");
    }
    audit(&fleet.data, &[&customers[0].1, &customers[1].1]).await;
    let Fleet { orders, inventories, others, _folder, .. } = fleet;
    let others = others.into_values().flatten();
    for instance in inventories.into_iter().chain(orders).chain(others) {
        instance.close().await;
    }
}
