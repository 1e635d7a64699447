//! A server under test: a process of its own, on one core.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use antiphon_core::BoxError;

/// The core of the server; the load runs on all others.
const SERVER_CORE: &str = "0";
/// The core of the load.
const LOAD_CORE: &str = "1";

/// A pinned process that serves. Killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts `program` with `arguments` and the address at the end.
    pub(crate) fn start(program: &Path, arguments: &[&str]) -> Result<Self, BoxError> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new("taskset")
            .args(["-c", SERVER_CORE])
            .arg(program)
            .args(arguments)
            .arg(address.to_string())
            .env("GOMAXPROCS", "1")
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start {} with taskset: {error}", program.display()))?;
        let server = Self { child, address };
        for _ in 0..500 {
            if TcpStream::connect(address).is_ok() {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("{} does not listen on {address}", program.display()).into())
    }

    /// User and system time so far.
    pub(crate) fn cpu(&self) -> Result<Duration, BoxError> {
        cpu_of(self.child.id())
    }
}

impl Server {
    /// How long its threads waited for their core so far: for each other, which is next to nothing
    /// with one that works, and for whatever else runs there.
    pub(crate) fn waited(&self) -> Result<Duration, BoxError> {
        schedule_of(self.child.id(), 1)
    }

    /// The memory that it has resident, in MiB.
    pub(crate) fn resident(&self) -> Result<f64, BoxError> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        let kib: u32 = kib.ok_or("the process has ended")?.parse()?;
        Ok(f64::from(kib) / 1_024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing is kept of it; if it has ended already, that is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time of a process so far, all its threads together.
pub(crate) fn cpu_of(pid: u32) -> Result<Duration, BoxError> {
    schedule_of(pid, 0)
}

/// A column of the scheduler's own account, which is in nanoseconds; `stat` counts in hundredths of
/// seconds.
fn schedule_of(pid: u32, column: usize) -> Result<Duration, BoxError> {
    let mut nanos = 0_u64;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += text.split(' ').nth(column).unwrap_or("0").parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Keeps the load off the server's core.
pub(crate) fn pin_load() -> Result<(), BoxError> {
    let pid = std::process::id().to_string();
    let pinned = Command::new("taskset")
        .args(["-a", "-p", "-c", LOAD_CORE, &pid])
        .stdout(Stdio::null())
        .status()?;
    if pinned.success() { Ok(()) } else { Err("taskset cannot pin this process".into()) }
}
