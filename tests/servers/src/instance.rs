//! A server with a folder and ports of its own: started, asked, stopped.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::place::{create, remove};
use crate::processes::{Process, now, wait};
use crate::server::{Description, describe};
use crate::wire::is_taken;
use crate::{Service, Trouble, folder, tls};

/// How long a server may take to end by itself before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How much of a log is shown when a server does not start.
const LINES_SHOWN: usize = 25;

/// The ports of a server; 0 is one that it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Without TLS, with full rights.
    pub plain: u16,
    /// With TLS and a password; the same as `plain` where the server decides by itself.
    pub tls: u16,
    /// Monitoring or management.
    pub admin: u16,
    /// What only the server itself and its tools use.
    pub inner: [u16; 3],
}

impl Ports {
    pub(crate) const fn one(port: u16) -> Self {
        Self { plain: port, tls: port, admin: 0, inner: [0; 3] }
    }

    /// Six ports in a row, as many of them as the service has.
    pub(crate) fn from(first: u16, like: Self) -> Self {
        let mut next = first;
        let mut take = |port: u16| {
            next += 1;
            if port == 0 { 0 } else { next - 1 }
        };
        let plain = take(like.plain);
        let tls = if like.tls == like.plain { plain } else { take(like.tls) };
        Self { plain, tls, admin: take(like.admin), inner: like.inner.map(take) }
    }

    /// Those that there are.
    pub(crate) fn all(self) -> Vec<u16> {
        let [one, two, three] = self.inner;
        let mut all = vec![self.plain, self.tls, self.admin, one, two, three];
        all.retain(|port| *port != 0);
        all.dedup();
        all
    }
}

/// A server that is, or can be, started in a folder.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Which server.
    pub service: Service,
    /// Where it listens.
    pub ports: Ports,
    /// The port that it tells clients to connect to, where that is another than `ports.plain`: a
    /// proxy's. Only Kafka sends its clients anywhere.
    pub advertised: Option<u16>,
    /// Its folder: settings, data, log, process id.
    pub home: PathBuf,
}

/// What starting came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// It was started now.
    Now,
    /// It ran already.
    Already,
    /// One that somebody else started runs on these ports, and answers.
    Foreign,
}

/// How a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing listens on its port.
    Stopped,
    /// It runs and answers.
    Ready {
        /// Its process.
        pid: u32,
    },
    /// It runs and does not answer.
    Silent {
        /// Its process.
        pid: u32,
        /// What it said instead.
        why: String,
    },
    /// One that somebody else started runs on its ports, and answers.
    Foreign,
    /// Something else has its port.
    Taken {
        /// What it said.
        why: String,
    },
}

impl Instance {
    /// The one that `cargo xtask services` starts.
    #[must_use]
    pub fn shared(service: Service) -> Self {
        let home = folder().join(service.name());
        Self { service, ports: service.ports(), advertised: None, home }
    }

    /// How it is now.
    #[must_use]
    pub fn state(&self) -> State {
        let answer = self.ask();
        match (self.process(), answer) {
            (Some(process), Ok(())) => State::Ready { pid: process.id },
            (Some(process), Err(why)) => State::Silent { pid: process.id, why },
            (None, Ok(())) => State::Foreign,
            (None, Err(_)) if !is_taken(self.ports.plain) => State::Stopped,
            (None, Err(why)) => State::Taken { why },
        }
    }

    /// Whether one that we started runs.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.process().is_some()
    }

    /// Starts it, unless it runs, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it is not installed, its port is taken by something else, or it does not get ready; the
    /// message ends with the end of its log.
    pub fn start(&self) -> Result<Started, Trouble> {
        let _lock = self.lock()?;
        match self.state() {
            State::Ready { .. } => return Ok(Started::Already),
            State::Foreign => return Ok(Started::Foreign),
            State::Taken { why } => return Err(self.taken(&why)),
            State::Stopped => self.launch()?,
            // It was started a moment ago, by a process that was interrupted while it waited.
            State::Silent { .. } => {}
        }
        self.await_ready()?;
        Ok(Started::Now)
    }

    /// Ends it and waits until it has ended; one that does not end in time is killed. Tells whether
    /// it ran.
    ///
    /// # Errors
    ///
    /// When it cannot be ended.
    pub fn stop(&self) -> Result<bool, Trouble> {
        let _lock = self.lock()?;
        let Some(process) = self.process() else {
            self.description().clean(self);
            return Ok(false);
        };
        // What is paused would not notice.
        process.signal_family(Signal::CONT);
        process.signal(self.description().stop_signal());
        let ended = self.await_end(process) || {
            process.kill();
            self.await_end(process)
        };
        if ended {
            return Ok(true);
        }
        let (name, id) = (self.service.name(), process.id);
        Err(Trouble::new(format!("{name} (process {id}) cannot be ended")))
    }

    /// Kills it at once, as a power failure would, and waits until it is gone.
    pub fn kill(&self) {
        if let Some(process) = self.process() {
            process.kill();
            self.await_end(process);
        }
    }

    /// Stops its processes where they are; [`Self::resume`] lets them go on.
    pub fn pause(&self) {
        if let Some(process) = self.process() {
            process.pause();
        }
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        if let Some(process) = self.process() {
            process.signal_family(Signal::CONT);
        }
    }

    /// Removes its folder and all its data.
    ///
    /// # Errors
    ///
    /// When it runs, or files cannot be removed.
    pub fn remove(&self) -> Result<(), Trouble> {
        if self.process().is_some() {
            let name = self.service.name();
            return Err(Trouble::new(format!("{name} runs; stop it before its data is removed")));
        }
        remove(&self.description().data(self))?;
        remove(&self.home)
    }

    /// Whether it is installed, and which version; or what to do.
    ///
    /// # Errors
    ///
    /// When one of its programs is missing.
    pub fn version(&self) -> Result<String, Trouble> {
        self.description().version()
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.home.join("server.log")
    }

    /// Where it keeps its data.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.description().data(self)
    }

    /// A file in its folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    pub(crate) fn process(&self) -> Option<Process> {
        Process::read(&self.pid_file())
    }

    fn description(&self) -> &'static dyn Description {
        describe(self.service)
    }

    fn pid_file(&self) -> PathBuf {
        self.file("pid")
    }

    fn ask(&self) -> Result<(), String> {
        self.description().ready(self)
    }

    /// One process at a time starts or stops it.
    fn lock(&self) -> Result<File, Trouble> {
        create(&self.home)?;
        let path = self.file("lock");
        let file = File::create(&path).map_err(|error| Trouble::file(&path, &error))?;
        file.lock().map_err(|error| Trouble::file(&path, &error))?;
        Ok(file)
    }

    fn taken(&self, why: &str) -> Trouble {
        let (name, port) = (self.service.name(), self.ports.plain);
        Trouble::new(format!(
            "port {port}, where {name} listens, is taken by something that does not answer as {name} \
             does ({why}); find it with `ss -ltnp sport = :{port}` and end it"
        ))
    }

    /// Starts the process. Its id is written down before anything else happens, so that it is found
    /// again whatever becomes of ours.
    fn launch(&self) -> Result<(), Trouble> {
        let description = self.description();
        description.version()?;
        if let Some(port) = self.ports.all().into_iter().find(|port| is_taken(*port)) {
            let name = self.service.name();
            return Err(Trouble::new(format!(
                "port {port}, which {name} needs, is taken; find by what with `ss -ltnp sport = \
                 :{port}` and end it"
            )));
        }
        let certificates = tls::certificates()?;
        description.prepare(self, &certificates)?;
        let mut command = description.command(self)?;
        let log = self.log();
        let output = OpenOptions::new().create(true).append(true).open(&log);
        let output = output.map_err(|error| Trouble::file(&log, &error))?;
        let errors = output.try_clone().map_err(|error| Trouble::file(&log, &error))?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        // A group of its own: Ctrl-C at the terminal is for whoever started it, not for the server.
        let child = command.process_group(0).spawn().map_err(|error| {
            let name = self.service.name();
            Trouble::new(format!("{name} cannot be started: {error}"))
        })?;
        let process = Process::of(child.id());
        process.map_or(Ok(()), |process| process.write(&self.pid_file()))?;
        // Reaps it when it ends, so that it does not stay in the table of processes.
        std::thread::spawn(move || {
            let mut child = child;
            child.wait()
        });
        Ok(())
    }

    /// Waits until a process has ended, and its ports can be used again: what ends is gone before its
    /// last thread has closed what it had open.
    fn await_end(&self, process: Process) -> bool {
        process.wait(STOP_LIMIT) && {
            self.description().clean(self);
            let ports = self.ports.all();
            wait(STOP_LIMIT, || !ports.iter().any(|port| is_taken(*port)))
        }
    }

    fn await_ready(&self) -> Result<(), Trouble> {
        let limit = self.description().patience();
        let begun = now();
        let mut why = String::new();
        let ready = wait(limit, || match self.ask() {
            Ok(()) => true,
            Err(error) => {
                why = error;
                self.process().is_none()
            }
        });
        if ready && self.process().is_some() {
            return Ok(());
        }
        let name = self.service.name();
        let what = match self.process() {
            None => format!("{name} ended {:.1} s after its start", begun.elapsed().as_secs_f64()),
            Some(process) => {
                process.kill();
                format!("{name} was not ready after {} s ({why}) and was ended", limit.as_secs())
            }
        };
        let log = self.log();
        Err(Trouble::new(format!("{what}. The end of {}:\n{}", log.display(), tail(&log))))
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
    shown.iter().map(|line| format!("  | {line}\n")).collect()
}

/// Runs a program that prepares something; what it prints is shown only when it fails.
pub(crate) fn prepare_with(command: &mut Command) -> Result<(), Trouble> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| Trouble::new(format!("{program} cannot be started: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(Trouble::new(format!("{program} failed:\n{}", String::from_utf8_lossy(&said))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_a_row_are_as_many_as_a_service_has() {
        for service in Service::ALL {
            let like = service.ports();
            let ports = Ports::from(30_000, like);
            assert_eq!(ports.all().len(), like.all().len(), "{service:?}");
            assert_eq!(ports.plain == ports.tls, like.plain == like.tls, "{service:?}");
            assert!(ports.all().iter().all(|port| (30_000..30_010).contains(port)), "{service:?}");
        }
    }

    #[test]
    fn the_end_of_a_log_is_short() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let lines: String = (0..100).map(|n| format!("line {n}\n")).collect();
        fs::write(&log, lines).unwrap();
        let tail = tail(&log);
        assert_eq!(tail.lines().count(), LINES_SHOWN);
        assert!(tail.ends_with("  | line 99\n"), "{tail}");
    }
}
