//! `cargo xtask services`: the real servers that tests and development talk to.
//!
//! How each server is started is known to `test-servers`; here is what surrounds it: installing what
//! is missing, several at once, containers where nothing can be installed, and a table.

mod containers;
pub(crate) mod packages;

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use test_servers::{Instance, Service, Started, State, Trouble};

use crate::summary::seconds;

/// Which servers, and what becomes of them.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start servers and wait until they are ready; what runs already is left alone
    Up(Names),
    /// Stop servers that were started by `up`; their data stays
    Down {
        #[command(flatten)]
        names: Names,
        /// Remove their data, too
        #[arg(long)]
        purge: bool,
    },
    /// Show which servers run, where, and how much memory they use
    Status(Names),
    /// Stop servers in order and start them again
    Restart(Names),
}

#[derive(Args, Debug)]
struct Names {
    /// Servers; without a name, all of them
    #[arg(value_name = "NAME", value_parser = names())]
    names: Vec<String>,
}

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(Service::ALL.map(Service::name))
}

impl Names {
    fn services(&self) -> Vec<Service> {
        if self.names.is_empty() {
            return Service::ALL.to_vec();
        }
        Service::ALL
            .into_iter()
            .filter(|service| self.names.iter().any(|name| name == service.name()))
            .collect()
    }
}

pub(crate) fn run(root: &Path, options: &Options) -> bool {
    let result = match &options.command {
        Command::Up(names) => up(root, &names.services()).map(|_| ()),
        Command::Down { names, purge } => down(root, &names.services(), *purge),
        Command::Status(names) => {
            println!("{}", table(&names.services()));
            Ok(())
        }
        Command::Restart(names) => {
            let services = names.services();
            down(root, &services, false).and_then(|()| up(root, &services).map(|_| ()))
        }
    };
    if let Err(why) = &result {
        println!("\n{why}");
    }
    result.is_ok()
}

/// A server that can be used, and whether it was started for this.
#[derive(Clone, Debug)]
pub(crate) struct Up {
    pub(crate) service: Service,
    pub(crate) version: String,
    pub(crate) started: bool,
}

/// Starts servers, several at once, and prints how it goes. All are tried; the error names those that
/// cannot be had.
pub(crate) fn up(root: &Path, services: &[Service]) -> Result<Vec<Up>, String> {
    test_servers::sweep();
    let missing: Vec<Service> = services.iter().copied().filter(|one| is_missing(*one)).collect();
    if !missing.is_empty() && packages::can_install() {
        let packages = missing.iter().flat_map(|one| test_servers::server::packages(*one));
        packages::install(packages.copied())?;
    }
    let in_containers: Vec<Service> =
        missing.into_iter().filter(|service| is_missing(*service)).collect();
    if !in_containers.is_empty() && containers::answer() {
        containers::up(root, &in_containers)?;
    }
    let results = at_once(services, start);
    let failed: Vec<String> =
        results.iter().filter_map(|one| one.as_ref().err().cloned()).collect();
    if failed.is_empty() {
        Ok(results.into_iter().flatten().collect())
    } else {
        Err(failed.join("\n\n"))
    }
}

/// Stops servers that we started.
pub(crate) fn down(root: &Path, services: &[Service], purge: bool) -> Result<(), String> {
    test_servers::sweep();
    containers::down(root, services)?;
    let results = at_once(services, |service| {
        let instance = Instance::shared(service);
        let name = service.name();
        let begun = Instant::now();
        let ran = instance.stop().map_err(|error| error.to_string())?;
        match (ran, instance.state()) {
            (true, _) => println!("    {name:<10} stopped in {}", seconds(begun.elapsed())),
            (false, State::Foreign) => {
                println!("    {name:<10} left alone: it was not started by `services up`");
            }
            (false, _) => println!("    {name:<10} does not run"),
        }
        if purge {
            instance.remove().map_err(|error| error.to_string())?;
            println!("    {name:<10} data removed");
        }
        Ok(())
    });
    let failed: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n\n")) }
}

/// Whether a server has to be installed before it can be used.
fn is_missing(service: Service) -> bool {
    let instance = Instance::shared(service);
    instance.version().is_err() && !matches!(instance.state(), State::Foreign | State::Ready { .. })
}

fn start(service: Service) -> Result<Up, String> {
    let instance = Instance::shared(service);
    let (name, url) = (service.name(), service.url_at(service.ports()));
    let begun = Instant::now();
    let version = instance.version();
    if matches!(instance.state(), State::Stopped) && version.is_ok() {
        println!("    {name:<10} starting …");
    }
    let started = instance.start().map_err(|error: Trouble| error.to_string())?;
    let version = version.unwrap_or_else(|_| "unknown version".to_owned());
    let how = match started {
        Started::Now => format!("ready in {}", seconds(begun.elapsed())),
        Started::Already => "running".to_owned(),
        Started::Foreign => "running (not ours)".to_owned(),
    };
    println!("    {name:<10} {version:<9} {how:<18} {url}");
    Ok(Up { service, version, started: started == Started::Now })
}

/// Does the same for several servers at once; the results are in their order.
fn at_once<T: Send>(
    services: &[Service],
    work: impl Fn(Service) -> Result<T, String> + Sync,
) -> Vec<Result<T, String>> {
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (number, service) in services.iter().copied().enumerate() {
            let (work, results) = (&work, &results);
            scope.spawn(move || {
                let result = work(service);
                if let Ok(mut results) = results.lock() {
                    results.push((number, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_default();
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

/// A line per server.
fn table(services: &[Service]) -> String {
    let mut text = format!(
        "{:<10} {:<10} {:<8} {:>9}  {:<18} {}",
        "server", "version", "pid", "memory", "state", "address"
    );
    for service in services {
        let instance = Instance::shared(*service);
        let version = instance.version().unwrap_or_else(|_| "missing".to_owned());
        let (pid, state, note) = describe(instance.state());
        let memory = pid.map_or_else(String::new, |pid| megabytes(test_servers::memory(pid)));
        let pid = pid.map_or_else(String::new, |pid| pid.to_string());
        let (name, url) = (service.name(), service.url_at(service.ports()));
        text +=
            &format!("\n{name:<10} {version:<10} {pid:<8} {memory:>9}  {state:<18} {url}{note}");
    }
    text
}

fn describe(state: State) -> (Option<u32>, &'static str, String) {
    match state {
        State::Stopped => (None, "stopped", String::new()),
        State::Ready { pid } => (Some(pid), "running", String::new()),
        State::Silent { pid, why } => (Some(pid), "does not answer", format!(" ({why})")),
        State::Foreign => (None, "running (not ours)", String::new()),
        State::Taken { why } => (None, "port is taken", format!(" ({why})")),
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_means_all_and_names_may_come_in_any_order() {
        let names =
            |names: &[&str]| Names { names: names.iter().map(ToString::to_string).collect() };
        assert_eq!(names(&[]).services(), Service::ALL);
        let some = names(&["kafka", "postgres"]).services();
        assert_eq!(some, [Service::Postgres, Service::Kafka]);
    }

    #[test]
    fn work_for_several_is_told_in_their_order() {
        let results = at_once(&[Service::Kafka, Service::Nats], |service| match service {
            Service::Kafka => Err("slow".to_owned()),
            other => Ok(other),
        });
        assert_eq!(results, [Err("slow".to_owned()), Ok(Service::Nats)]);
    }

    #[test]
    fn a_table_says_why_a_server_does_not_answer() {
        let (pid, state, note) = describe(State::Silent { pid: 7, why: "-LOADING".to_owned() });
        assert_eq!((pid, state, note.as_str()), (Some(7), "does not answer", " (-LOADING)"));
        assert_eq!(megabytes(5 << 20), "5 MiB");
    }
}
