//! Instances that a file lists, and settings of calls that change while the process runs.

use std::path::{Path, PathBuf};

use crate::fleet::{Directory, SERVICE, instances_come_and_go};
use crate::harness::{Shop, request, until};

/// A file with the instances of the inventory.
struct Listed(PathBuf);

impl Listed {
    fn in_folder(folder: &Path) -> Self {
        Self(folder.join("instances.toml"))
    }
}

impl Directory for Listed {
    /// A whole new file takes the place of the old one.
    async fn list(&self, instances: &[String]) {
        let next = self.0.with_extension("next");
        std::fs::write(&next, format!("inventory = {instances:?}\n")).unwrap();
        std::fs::rename(next, &self.0).unwrap();
    }
}

#[tokio::test]
async fn instances_listed_in_a_file_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let list = Listed::in_folder(folder.path());
    let target = format!("file://{}#inventory", list.0.display());
    let settings = format!("[clients.\"{SERVICE}\"]\ntarget = {target:?}\n");
    instances_come_and_go(&settings, list).await;
}

/// How many attempts a process makes of each call, as its debug page explains it.
async fn attempts_max(shop: &Shop) -> String {
    let page = request(&shop.admin, "GET", "/debug/targets", &[], "").await.json();
    let methods = page[0]["methods"].as_array().unwrap().clone();
    let policy = methods[0]["policy"].as_array().unwrap().clone();
    let value = policy.iter().find(|value| value["name"] == "attempts_max").unwrap();
    value["value"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn changed_settings_of_calls_are_taken_over_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let config = folder.path().join("shop.toml");
    let target = format!("[clients.\"{SERVICE}\"]\ntarget = \"static:127.0.0.1:1\"\n");
    std::fs::write(&config, &target).unwrap();
    let more = ["--only", "orders", "--config", config.to_str().unwrap()];
    let orders = Shop::start(&data, "orders", &more).await;
    assert_eq!(attempts_max(&orders).await, "3");
    std::fs::write(&config, format!("{target}retry.attempts_max = 2\n")).unwrap();
    until("two attempts", || async { (attempts_max(&orders).await == "2").then_some(()) }).await;
    std::fs::write(&config, format!("{target}retry.attempts_max = 99\n")).unwrap();
    until("the mistake in the log", || async {
        orders.log_text().contains("client.retry.attempts_max must be 1 to 5").then_some(())
    })
    .await;
    assert_eq!(attempts_max(&orders).await, "2");
    orders.close().await;
}
