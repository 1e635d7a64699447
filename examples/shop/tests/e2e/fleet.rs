//! Several instances of a service, found by discovery: they die, leave and come while customers order.
//! What is found where is settings alone.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Reply, Shop, audit, request, send_signal, shop, until};

/// The service of which there are several instances.
pub(crate) const SERVICE: &str = "shop.inventory.v1.InventoryService";

/// The instances of the inventory, and the orders service that finds them.
struct Shops {
    _folder: tempfile::TempDir,
    data: PathBuf,
    config: PathBuf,
    orders: Shop,
    inventories: Vec<Shop>,
    others: Vec<Shop>,
}

impl Shops {
    /// Starts three instances, and the rest. `settings` says where instances are found, and where
    /// they register, if they do.
    async fn start(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir_all(&data).unwrap();
        let list = folder.path().join("instances.toml");
        std::fs::write(&list, "inventory = []\n").unwrap();
        let config = folder.path().join("shop.toml");
        let settings = settings.replace("{list}", list.to_str().unwrap());
        std::fs::write(&config, settings).unwrap();
        let mut inventories = Vec::new();
        for number in 0..3 {
            inventories.push(inventory(&data, &config, number).await);
        }
        write_list(&list, &inventories);
        let more = ["--config", config.to_str().unwrap()];
        let only = |name| ["--only", name, more[0], more[1]];
        let orders = Shop::start(&data, "orders", &only("orders")).await;
        let mut others = Vec::new();
        for name in ["payments", "points", "shipping", "notifications"] {
            others.push(Shop::start(&data, name, &only(name)).await);
        }
        Self { _folder: folder, data, config, orders, inventories, others }
    }

    fn list(&self) -> PathBuf {
        self.config.with_file_name("instances.toml")
    }

    /// What the orders service knows of the inventory: address, state, calls.
    async fn known(&self) -> Vec<(String, String, u64)> {
        let page: Reply = request(&self.orders.admin, "GET", "/debug/targets", &[], "").await;
        let targets = page.json();
        let instances = targets[0]["instances"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of = |one: &Value| {
            (text(&one["address"]), text(&one["state"]), one["picked"].as_u64().unwrap_or(0))
        };
        instances.iter().map(of).collect()
    }

    /// Waits until an instance has answered so many calls more.
    async fn answers(&self, address: &str, more: u64) {
        let picked = |known: Vec<(String, String, u64)>| {
            known.into_iter().find(|one| one.0 == address).map_or(0, |one| one.2)
        };
        let goal = picked(self.known().await) + more;
        until(&format!("calls to {address}"), || async {
            (picked(self.known().await) >= goal).then_some(())
        })
        .await;
    }
}

async fn inventory(data: &Path, config: &Path, number: usize) -> Shop {
    let name = format!("inventory-{number}");
    let more = ["--only", "inventory", "--config", config.to_str().unwrap()];
    Shop::start(data, &name, &more).await
}

/// As tools that manage such files do: a whole new one takes the place of the old.
fn write_list(list: &Path, inventories: &[Shop]) {
    let addresses: Vec<_> = inventories.iter().map(|shop| format!("{:?}", shop.api)).collect();
    let next = list.with_extension("next");
    std::fs::write(&next, format!("inventory = [{}]\n", addresses.join(", "))).unwrap();
    std::fs::rename(next, list).unwrap();
}

/// Instances die, leave and come while customers order; no order fails for it, and the audit holds.
pub(crate) async fn instances_come_and_go(settings: &str) {
    let mut shops = Shops::start(settings).await;
    let journal = shops.data.with_extension("journal");
    let mut customers = shop()
        .args(["simulate", "--to", &shops.orders.api, "--inventory", &shops.inventories[0].api])
        .args(["--orders", "1000000", "--concurrency", "8", "--rate", "60", "--patience", "120"])
        .args(["--no-follow", "--journal"])
        .arg(&journal)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for number in 0..3 {
        let address = shops.inventories[number].api.clone();
        shops.answers(&address, 10).await;
    }
    // One dies without a word.
    let dead = shops.inventories.remove(2);
    let dead_address = dead.api.clone();
    drop(dead);
    // One comes.
    let new = inventory(&shops.data, &shops.config, 3).await;
    let new_address = new.api.clone();
    shops.inventories.push(new);
    write_list(&shops.list(), &shops.inventories);
    shops.answers(&new_address, 10).await;
    // One leaves in order.
    let leaving = shops.inventories.remove(1);
    write_list(&shops.list(), &shops.inventories);
    leaving.close().await;
    shops.answers(&new_address, 30).await;
    let known = shops.known().await;
    let gone = known.iter().find(|one| one.0 == dead_address);
    assert!(gone.is_none_or(|one| one.1 != "ready"), "{known:?}");
    send_signal(customers.id().unwrap(), "INT");
    customers.wait().await.unwrap();
    let log = shops.orders.log_text();
    assert!(!log.contains("prices cannot be asked for"), "{log}");
    audit(&shops.data, &[&journal]).await;
    let Shops { orders, inventories, others, _folder, .. } = shops;
    for shop in inventories.into_iter().chain([orders]).chain(others) {
        shop.close().await;
    }
}
