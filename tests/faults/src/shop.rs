//! The shop's services as processes: started, killed, paused, doubled, with wrong clocks.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::plan::ROLES;
use crate::{Result, web};

/// How long a process may take to be ready on a busy machine, while nothing else is wrong.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end in order.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Ports of services lie here: below what the system takes for outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..23_000;
/// Moves the clock of a program that is started with it.
const FAKE_CLOCK: &str = "faketime/libfaketime.so.1";

/// Where the `shop` command is: beside this program, or where `SHOP` says.
///
/// # Errors
///
/// When it is not built.
pub fn command() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join("shop"));
    beside.into_iter().find(|file| file.is_file()).ok_or_else(|| {
        format!(
            "the command `shop` is not built beside {}: `cargo build -p shop`, or `cargo xtask \
             faults`, which builds it",
            own.display()
        )
        .into()
    })
}

/// The library that moves clocks, if it is installed.
#[must_use]
pub fn fake_clock() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    folders.map(|folder| folder.path().join(FAKE_CLOCK)).find(|file| file.exists())
}

/// An instance of a service. Killed when dropped.
#[derive(Debug)]
pub struct Instance {
    command: PathBuf,
    /// Where the process works, and writes its log.
    folder: PathBuf,
    role: usize,
    name: String,
    config: PathBuf,
    /// Where it answers calls.
    pub api: String,
    /// Where operators look.
    pub admin: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    child: Option<Child>,
    /// Whether it is meant to run: what ends by itself then is started again.
    wanted: bool,
    clock: Option<i64>,
    paused: bool,
    starts: u64,
    /// How often it ended by itself.
    ends: u64,
}

impl Instance {
    /// An instance of a service that is not started yet.
    ///
    /// # Errors
    ///
    /// When no ports are free.
    pub fn new(folder: &Path, role: usize, name: &str, config: &Path) -> Result<Self> {
        Ok(Self {
            command: command()?,
            folder: folder.to_owned(),
            role,
            name: name.to_owned(),
            config: config.to_owned(),
            api: free_address()?,
            admin: free_address()?,
            state: Mutex::default(),
        })
    }

    /// What its log is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How often it was started; metrics begin anew each time.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.state().starts
    }

    /// How often it ended by itself.
    #[must_use]
    pub fn ends(&self) -> u64 {
        self.state().ends
    }

    /// Starts it, with a clock that is wrong by so many seconds.
    ///
    /// # Errors
    ///
    /// When the process cannot be started.
    pub fn start(&self, clock: Option<i64>) -> Result<()> {
        let mut state = self.state();
        state.wanted = true;
        state.clock = clock;
        self.spawn(&mut state)
    }

    /// Starts it again when it ended although it should run; call this often.
    ///
    /// # Errors
    ///
    /// When the process cannot be started.
    pub fn tend(&self) -> Result<()> {
        let mut state = self.state();
        let ended = match &mut state.child {
            Some(child) => child.try_wait()?.is_some(),
            None => true,
        };
        if state.wanted && ended {
            state.ends += 1;
            return self.spawn(&mut state);
        }
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    ///
    /// # Cancel safety
    ///
    /// It is killed all the same.
    pub async fn kill(&self) -> Result<()> {
        let child = {
            let mut state = self.state();
            state.wanted = false;
            state.paused = false;
            state.child.take()
        };
        if let Some(mut child) = child {
            child.kill().await?;
        }
        Ok(())
    }

    /// SIGTERM, and waits until it has ended; tells whether it did so in order and in time.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    ///
    /// # Cancel safety
    ///
    /// It is killed.
    pub async fn stop(&self) -> Result<bool> {
        let child = {
            let mut state = self.state();
            state.wanted = false;
            state.paused = false;
            state.child.take()
        };
        let Some(mut child) = child else { return Ok(true) };
        signal(&child, Signal::CONT);
        signal(&child, Signal::TERM);
        if let Ok(status) = tokio::time::timeout(STOP_LIMIT, child.wait()).await {
            return Ok(status?.success());
        }
        child.kill().await?;
        Ok(false)
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        let mut state = self.state();
        state.paused = true;
        state.child.iter().for_each(|child| signal(child, Signal::STOP));
    }

    /// SIGCONT.
    pub fn resume(&self) {
        let mut state = self.state();
        state.paused = false;
        state.child.iter().for_each(|child| signal(child, Signal::CONT));
    }

    /// Whether it is meant to answer.
    #[must_use]
    pub fn answers(&self) -> bool {
        let state = self.state();
        state.wanted && !state.paused
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    ///
    /// When it is not ready in time; with the end of its log.
    ///
    /// # Cancel safety
    ///
    /// Nothing happens.
    pub async fn ready(&self) -> Result<()> {
        let give_up = Instant::now() + READY_LIMIT;
        loop {
            let said = match web::get(&self.admin, "/readyz").await {
                Ok((200, _)) => return Ok(()),
                Ok((status, body)) => format!("{status} {body}"),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= give_up {
                let log = self.log();
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let end = lines[lines.len().saturating_sub(15)..].join("\n");
                let name = &self.name;
                let log = log.display();
                return Err(format!("{name} is not ready: {said}\nthe end of {log}:\n{end}").into());
            }
            self.tend()?;
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Its log; appended to by each start.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    fn spawn(&self, state: &mut State) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = Command::new(&self.command);
        command
            .args(["run", "--only", ROLES[self.role], "--listen", &self.api])
            .args(["--admin", &self.admin, "--config"])
            .arg(&self.config)
            .current_dir(&self.folder)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let (Some(seconds), Some(library)) = (state.clock, fake_clock()) {
            command.env("LD_PRELOAD", library).env("FAKETIME", format!("{seconds:+}"));
            // Only what people call the time is wrong; what measures durations is not.
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
        }
        state.child = Some(command.spawn()?);
        state.paused = false;
        state.starts += 1;
        Ok(())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What customers order.
#[derive(Clone, Copy, Debug)]
pub struct Orders {
    /// How many at most.
    pub count: u32,
    /// How many per second, without waiting for what becomes of them; `None` places them as fast as
    /// it goes and waits for all.
    pub rate: Option<u32>,
    /// Decides what is ordered.
    pub seed: u64,
}

/// Customers who order until they have what they want or are told to stop, and write down what was
/// accepted.
///
/// # Errors
///
/// When the process cannot be started.
pub fn customers(folder: &Path, to: &str, inventory: &str, orders: Orders) -> Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(customers_log(folder))?;
    let mut command = Command::new(command()?);
    command.args(["simulate", "--to", to, "--inventory", inventory]);
    command.args(["--orders", &orders.count.to_string(), "--seed", &orders.seed.to_string()]);
    if let Some(rate) = orders.rate {
        command.args(["--rate", &rate.to_string(), "--no-follow"]);
        command.args(["--concurrency", "16", "--patience", "600"]);
    }
    let child = command
        .arg("--journal")
        .arg(journal(folder))
        .current_dir(folder)
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok(child)
}

/// What the customers said.
#[must_use]
pub fn customers_log(folder: &Path) -> PathBuf {
    folder.join("customers.log")
}

/// What was accepted.
#[must_use]
pub fn journal(folder: &Path) -> PathBuf {
    folder.join("journal")
}

/// Sends a signal to a process that may have ended.
pub fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended in this moment, which is as good.
        let _ = kill_process(pid, signal);
    }
}

/// Ports that were handed out in this process.
static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// An address where nobody listens.
fn free_address() -> Result<String> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1_000 {
        let port = fastrand::u16(PORTS);
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.insert(port);
            return Ok(format!("127.0.0.1:{port}"));
        }
    }
    Err(format!("there is no free port between {} and {}", PORTS.start, PORTS.end).into())
}
