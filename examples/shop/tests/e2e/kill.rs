//! SIGKILL at random moments while customers order; nothing accepted is lost, nothing done twice.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Child;

use crate::harness::{PATIENCE, Shop, audit, send_signal, shop};

/// How often processes are killed in one test.
const KILLS: usize = 20;
/// The shortest and the longest time between two kills, in milliseconds.
const BETWEEN: std::ops::Range<u64> = 150..900;

/// Customers who order until they are told to stop, and write down what was accepted.
fn customers(to: &str, inventory: &str, journal: &Path) -> Child {
    shop()
        .args(["simulate", "--to", to, "--inventory", inventory])
        .args(["--orders", "1000000", "--concurrency", "8"])
        .args(["--rate", "60", "--patience", "120", "--no-follow", "--journal"])
        .arg(journal)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

async fn stop(mut customers: Child) {
    send_signal(customers.id().expect("the customers still order"), "INT");
    tokio::time::timeout(PATIENCE, customers.wait()).await.expect("they stop").unwrap();
}

fn accepted(journal: &Path) -> usize {
    std::fs::read_to_string(journal).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn one_process_survives_kills() {
    let folder = tempfile::tempdir().unwrap();
    let (data, journal) = (folder.path().join("data"), folder.path().join("journal"));
    let mut shop = Shop::open(&data).await;
    let customers = customers(&shop.api, &shop.api, &journal);
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(BETWEEN))).await;
        shop.kill_and_restart().await;
    }
    stop(customers).await;
    assert!(accepted(&journal) > KILLS, "customers were served between the kills");
    // The shop goes on working on what it accepted while the audit waits.
    audit(&data, &[&journal]).await;
    shop.close().await;
}

#[tokio::test]
async fn six_processes_survive_kills() {
    let folder = tempfile::tempdir().unwrap();
    let (data, journal) = (folder.path().join("data"), folder.path().join("journal"));
    std::fs::create_dir_all(&data).unwrap();
    let mut shops = six(&data).await;
    let customers = customers(&shops[0].api, &shops[1].api, &journal);
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(BETWEEN))).await;
        let victim = fastrand::usize(..shops.len());
        shops[victim].kill_and_restart().await;
    }
    stop(customers).await;
    assert!(accepted(&journal) > KILLS, "customers were served between the kills");
    audit(&data, &[&journal]).await;
    for shop in shops {
        shop.close().await;
    }
}

/// Each service in a process of its own; orders first.
async fn six(data: &Path) -> Vec<Shop> {
    let inventory = Shop::start(data, "inventory", &["--only", "inventory"]).await;
    let config = data.with_extension("orders.toml");
    let target = &inventory.api;
    std::fs::write(
        &config,
        format!("[clients.\"shop.inventory.v1.InventoryService\"]\ntarget = \"static:{target}\"\n"),
    )
    .unwrap();
    let config = config.to_str().unwrap();
    let orders = Shop::start(data, "orders", &["--only", "orders", "--config", config]).await;
    let mut shops = vec![orders, inventory];
    for name in ["payments", "points", "shipping", "notifications"] {
        shops.push(Shop::start(data, name, &["--only", name]).await);
    }
    shops
}
