//! The shop in one process on two cores: orders per second, latency at half of that, start, memory.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use antiphon_core::BoxError;
use tokio::time::Instant;

use crate::report::{progress, table, verbatim};

/// A running shop. Killed when dropped.
struct Shop {
    child: Child,
    api: String,
    ready_after: Duration,
}

impl Shop {
    fn open(program: &Path, data: &Path, arguments: &[&str]) -> Result<Self, BoxError> {
        let begun = Instant::now();
        let mut child = Command::new(program)
            .args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(arguments)
            .env("ANTIPHON__TELEMETRY__LOG__FILTER", "warn")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut api = String::new();
        for line in child.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
            let line = line?;
            if let Some(rest) = line.trim().strip_prefix("API") {
                let url = rest.split_whitespace().next().unwrap_or_default();
                url.trim_start_matches("http://").clone_into(&mut api);
            }
            if line.contains("Ctrl-C") {
                return Ok(Self { child, api, ready_after: begun.elapsed() });
            }
        }
        Err("the shop does not open".into())
    }

    fn resident_mib(&self) -> Result<f64, BoxError> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        // It is gone in either case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Builds the shop and measures it.
pub(crate) fn run() -> Result<(), BoxError> {
    progress("shop: building");
    let built = Command::new("cargo")
        .args(["build", "--release", "--quiet", "--package", "shop"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    if !built.success() {
        return Err(format!("the shop does not build: {built}").into());
    }
    let program: PathBuf = std::env::current_exe()?.with_file_name("shop");
    let folder = tempfile::tempdir_in(".")?;
    let data = folder.path().join("data");
    drop(Shop::open(&program, &data, &[])?);
    let shop = Shop::open(&program, &data, &[])?;
    let simulate = |title: &str, arguments: &[&str]| -> Result<(), BoxError> {
        progress(&format!("shop: {title}"));
        let output = Command::new(&program)
            .args(["simulate", "--to", &shop.api, "--cards", "tok_ok=1"])
            .args(arguments)
            .output()?;
        verbatim(title, String::from_utf8_lossy(&output.stdout).trim());
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("simulate: {}", output.status).into())
        }
    };
    simulate("The shop, as fast as it goes", &["--orders", "6000", "--concurrency", "64"])?;
    simulate(
        "The shop at 200 orders per second",
        &["--orders", "3000", "--concurrency", "64", "--rate", "200"],
    )?;
    drop(shop);
    let mut rows = Vec::new();
    for (name, arguments) in
        [("the whole shop", &[][..]), ("one service (points)", &["--only", "points"][..])]
    {
        let shop = Shop::open(&program, &data, arguments)?;
        std::thread::sleep(Duration::from_secs(2));
        rows.push(vec![
            name.to_owned(),
            format!("{:.0}", shop.ready_after.as_secs_f64() * 1e3),
            format!("{:.1}", shop.resident_mib()?),
        ]);
    }
    table(
        "Start on a warm data folder, memory when idle",
        &["", "ms to ready", "MiB resident"],
        &rows,
    );
    Ok(())
}
