//! Clients of other languages call the shop: grpcio (Python), Connect, gRPC-Web, gRPC and a WebSocket
//! (Node), and curl. Tools of others read its documents, and hold it to them.
//!
//! `cargo xtask test` prepares the tools and says in variables where they are.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A running shop on ports that the system chose.
struct Shop {
    child: Child,
    api: String,
    _data: tempfile::TempDir,
}

impl Shop {
    fn open() -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut child = Command::new(binary())
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"])
            .arg(data.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut api = None;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(rest) = line.trim().strip_prefix("API") {
                let url = rest.split_whitespace().next().unwrap();
                api = url.strip_prefix("http://").map(str::to_owned);
            }
            if line.contains("Ctrl-C") {
                break;
            }
        }
        Self { child, api: api.expect("the first screen says where the API is"), _data: data }
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        // It is gone in either case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The shop as the same build made it: beside the folder of the test programs.
fn binary() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let shop = program.parent().and_then(Path::parent).unwrap().join("shop");
    assert!(shop.is_file(), "{} is not built; run `cargo build -p shop`", shop.display());
    shop
}

fn tool(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => {
            panic!("{variable} is not set; run these tests with `cargo xtask test --only interop`")
        }
    }
}

fn passes(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn grpcio() {
    let shop = Shop::open();
    passes(Command::new(tool("ANTIPHON_PYTHON")).arg(here("python/shop.py")).arg(&shop.api));
}

#[test]
fn node() {
    let shop = Shop::open();
    let folder = tempfile::tempdir().unwrap();
    let descriptors = folder.path().join("shop.binpb");
    passes(Command::new(binary()).arg("contract").arg("--out").arg(&descriptors));
    let script = tool("ANTIPHON_NODE").join("shop.mjs");
    passes(Command::new("node").arg(script).arg(&shop.api).arg(&descriptors));
}

#[test]
fn curl() {
    let shop = Shop::open();
    let api = &shop.api;
    let curl = |arguments: &[&str]| {
        passes(Command::new("curl").args(["-sS", "--max-time", "20"]).args(arguments))
    };
    let order =
        r#"{"customerId":"curl","card":"tok_ok","lines":[{"sku":"pen-black","quantity":1}]}"#;
    let json = ["-H", "content-type: application/json", "-d"];
    let placed =
        curl(&[&json[..], &[order, "-D", "-", &format!("http://{api}/v1/orders")]].concat());
    assert!(placed.contains("201 Created"), "{placed}");
    let location = placed.lines().find_map(|line| line.strip_prefix("location: ")).unwrap().trim();
    // The same order over Connect with JSON, and as Server-Sent Events until it is decided.
    let id = location.rsplit('/').next().unwrap();
    let connect = format!("http://{api}/shop.orders.v1.OrdersService/GetOrder");
    let found = curl(&[&json[..], &[&format!(r#"{{"id":"{id}"}}"#), &connect]].concat());
    assert!(found.contains(id), "{found}");
    let watch = format!("http://{api}{location}:watch");
    let events = curl(&["-N", "-H", "accept: text/event-stream", &watch]);
    assert!(events.contains("CONFIRMED"), "{events}");
    let lines = curl(&["-N", "-H", "accept: application/x-ndjson", &watch]);
    assert!(lines.lines().last().unwrap().contains("CONFIRMED"), "{lines}");
    // HTTP/2 without TLS, with prior knowledge.
    let stock = format!("http://{api}/v1/stock/pen-black");
    let version = curl(&[
        "--http2-prior-knowledge",
        "-o",
        "/dev/null",
        "-w",
        "%{http_version} %{http_code}",
        &stock,
    ]);
    assert_eq!(version, "2 200");
}

#[test]
fn the_documents_are_valid_openapi_and_asyncapi() {
    let shop = Shop::open();
    let mut script = Command::new(tool("ANTIPHON_PYTHON"));
    script.arg(here("python/documents.py")).arg(format!("http://{}", shop.api));
    passes(script.arg(tool("ANTIPHON_NODE")));
}

/// Hundreds of requests that the document allows or forbids, made up by schemathesis: nothing is
/// answered with an error of the server or in a way that the document does not tell.
#[test]
fn the_shop_answers_as_its_document_says() {
    let shop = Shop::open();
    // Hooks are found, and reports are left, in the folder of the run.
    let folder = tempfile::tempdir().unwrap();
    for file in ["schemathesis.toml", "schemathesis_hooks.py"] {
        std::fs::copy(here("python").join(file), folder.path().join(file)).unwrap();
    }
    let mut run = Command::new(tool("ANTIPHON_PYTHON").with_file_name("schemathesis"));
    run.args(["--config-file", "schemathesis.toml", "run", "--no-color"]);
    run.arg(format!("http://{}/openapi.json", shop.api)).current_dir(folder.path());
    let summary = passes(&mut run);
    // All operations but the one that the settings leave out.
    assert!(summary.contains("Tested: 13\n"), "{summary}");
}
