//! What whoever starts the shop can do wrong: one line on stderr, exit code 2, nothing half-done.

use std::path::Path;

use crate::harness::{Shop, run};

/// Starts a shop that must refuse; gives what it says.
async fn refused(arguments: &[&str]) -> String {
    let mut all = vec!["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    all.extend(arguments);
    let output = run(&all).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    errors[0].to_owned()
}

async fn refused_settings(folder: &Path, settings: &str) -> String {
    let file = folder.join("antiphon.toml");
    std::fs::write(&file, settings).unwrap();
    let data = folder.join("data");
    let said =
        refused(&["--data", data.to_str().unwrap(), "--config", file.to_str().unwrap()]).await;
    assert!(!data.join("orders.db").exists(), "nothing was begun");
    said
}

#[tokio::test]
async fn settings_are_checked_with_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let said =
        refused_settings(folder.path(), "[server]\nlisten = '127.0.0.1:0'\nlisten_on = 1\n").await;
    assert!(said.contains("antiphon.toml:3") && said.contains("listen_on"), "{said}");
    let said = refused_settings(folder.path(), "[sever]\nlisten = '127.0.0.1:0'\n").await;
    assert!(said.contains("antiphon.toml:1") && said.contains("server"), "{said}");
    let said = refused_settings(folder.path(), "[shutdown]\nwithin = 10\n").await;
    assert!(said.contains("antiphon.toml:2") && said.contains("within"), "{said}");
    let said = refused_settings(folder.path(), "[broker\n").await;
    assert!(said.contains("antiphon.toml:1"), "{said}");
}

#[tokio::test]
async fn mistakes_in_the_settings_of_caches_are_named_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    for (settings, place, words) in [
        ("[cache.stock]\nttl = '0s'\n", "antiphon.toml:2:7: `cache.stock.ttl`", "less than 1ms"),
        ("[cache.stock]\n\ntlt = '1s'\n", "antiphon.toml:3:1: `cache.stock.tlt`", "`ttl`"),
        ("[cache]\nstock.capacity = 0\n", "antiphon.toml:2:18: `cache.stock.capacity`", "least 1"),
        (
            "[cache.stock]\nfilter_false_rate = 0.7\n",
            "antiphon.toml:2:21: `cache.stock.filter_false_rate`",
            "0.7 is not between",
        ),
        ("[cache.stock]\nttl = 10\n", "antiphon.toml:2:7: `cache.stock.ttl`", "10s"),
        (
            "[cache_level]\nurl = 'memcached://here'\n",
            "antiphon.toml:2:7: `cache_level.url`",
            "redis and rediss",
        ),
    ] {
        let said = refused_settings(folder.path(), settings).await;
        assert!(said.contains(place) && said.contains(words), "{said}");
    }
}

#[tokio::test]
async fn mistakes_in_the_name_servers_are_named_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let settings = "[discovery.dns]\nservers = ['10.0.0.53', 'ns.internal']\n";
    let said = refused_settings(folder.path(), settings).await;
    let place = "antiphon.toml:2:25: `discovery.dns.servers[1]`: `ns.internal` is not the address";
    assert!(said.contains(place) && said.contains("10.0.0.53:5353"), "{said}");
}

#[cfg(feature = "engines")]
#[tokio::test]
async fn files_of_tls_that_cannot_be_used_are_named_with_the_place_of_their_setting() {
    let folder = tempfile::tempdir().unwrap();
    let letter = folder.path().join("letter.pem");
    std::fs::write(&letter, "Dear reader,\n").unwrap();
    let missing = folder.path().join("missing.pem");
    for (section, url) in [
        ("registries.etcd", "endpoints = ['https://127.0.0.1:1']"),
        ("registries.consul", "url = 'https://127.0.0.1:1'"),
        ("cache_level.redis", "[cache_level]\nurl = 'rediss://127.0.0.1:1'"),
        ("broker.redis", "[broker]\nurl = 'rediss://127.0.0.1:1'"),
        ("broker.nats", "[broker]\nurl = 'tls://127.0.0.1:1'"),
    ] {
        for (setting, file, words) in [
            ("ca_file", &missing, "missing.pem: No such file"),
            ("ca_file", &letter, "letter.pem: it has no certificate"),
            ("key_file", &letter, "go together"),
        ] {
            let settings = format!("[{section}]\n{setting} = {file:?}\n{url}\n");
            let said = refused_settings(folder.path(), &settings).await;
            let column = setting.len() + 4;
            let place = format!("antiphon.toml:2:{column}: `{section}.{setting}`: ");
            assert!(said.contains(&place) && said.contains(words), "{said}");
        }
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    for arguments in
        [["run", "--listen", &taken, "--admin"], ["run", "--admin", &taken, "--listen"]]
    {
        let mut all = arguments.to_vec();
        all.extend(["127.0.0.1:0", "--data", data]);
        let output = run(&all).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&taken), "{said}");
    }
}

#[tokio::test]
async fn a_data_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let data = file.join("data");
    let said = refused(&["--data", data.to_str().unwrap()]).await;
    assert!(said.contains(data.to_str().unwrap()), "{said}");
}

#[tokio::test]
async fn a_file_that_is_no_database_and_a_newer_one_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    std::fs::write(folder.path().join("inventory.db"), "this is a letter, not a database").unwrap();
    let said = refused(&["--data", data]).await;
    assert!(said.contains("inventory.db"), "{said}");

    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    Shop::open(folder.path()).await.close().await;
    let path = folder.path().join("orders.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query("update antiphon_schema set version = version + 100").execute(&pool).await.unwrap();
    pool.close().await;
    let said = refused(&["--data", data]).await;
    assert!(said.contains("orders.db") && said.contains("newer"), "{said}");
}

#[tokio::test]
async fn unknown_flags_and_services_are_refused() {
    for arguments in [["run", "--only", "warehouse"], ["run", "--lisen", "x"]] {
        let output = run(&arguments).await;
        assert_eq!(output.status.code(), Some(2));
        assert!(!output.stderr.is_empty());
    }
}
