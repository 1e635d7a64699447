//! Servers of one test: it may stop, pause, kill and fill them.
//!
//! Each has a folder below `private` that is named by its first port, so that taking the folder is
//! taking the ports. A test that is killed leaves its servers behind; whoever starts the next one
//! ends and removes those whose owner is gone.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::instance::{Instance, Ports};
use crate::place::{create, write};
use crate::processes::Process;
use crate::wire::is_taken;
use crate::{Service, Trouble, folder};

/// Ports for private servers: blocks of ten, below what the system takes for outgoing connections.
const FIRST: u16 = 30_000;
const BLOCKS: u16 = 270;
const BLOCK: u16 = 10;

/// A server that belongs to whoever started it, and ends with it.
#[derive(Debug)]
pub struct Private {
    instance: Instance,
    place: PathBuf,
}

impl Private {
    /// Starts a server with ports and an empty data folder of its own.
    ///
    /// # Errors
    ///
    /// When it is not installed, or does not get ready.
    pub fn start(service: Service) -> Result<Self, Trouble> {
        Self::start_in(service, None)
    }

    /// Starts a server that keeps everything in an existing folder, for instance on a small disk.
    ///
    /// # Errors
    ///
    /// When it is not installed, or does not get ready.
    pub fn start_in(service: Service, home: Option<&Path>) -> Result<Self, Trouble> {
        sweep();
        let private = Self::reserve(service, home)?;
        private.instance.start()?;
        Ok(private)
    }

    /// Makes a server that has not been started tell its clients to come to this port, a proxy's.
    pub fn advertise(&mut self, port: u16) {
        self.instance.advertised = Some(port);
    }

    /// Takes ports and a folder, and starts nothing yet; [`Self::start_again`] does.
    ///
    /// # Errors
    ///
    /// When no ports are free, or the folder cannot be created.
    pub fn reserve(service: Service, home: Option<&Path>) -> Result<Self, Trouble> {
        let above = folder().join("private");
        create(&above)?;
        let own = Process::own();
        // Processes begin at different places, so that they seldom want the same.
        let start = (std::process::id() % u32::from(BLOCKS)) as u16;
        for number in (0..BLOCKS).map(|n| (start + n) % BLOCKS) {
            let first = FIRST + number * BLOCK;
            let place = above.join(first.to_string());
            match fs::create_dir(&place) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                other => other.map_err(|error| Trouble::file(&place, &error))?,
            }
            if let Some(home) = home {
                write(&place.join("home"), &home.to_string_lossy())?;
            }
            own.map_or(Ok(()), |own| own.write(&place.join("owner")))?;
            let ports = Ports::from(first, service.ports());
            let home = home.map_or_else(|| place.join(service.name()), Path::to_owned);
            let private =
                Self { instance: Instance { service, ports, advertised: None, home }, place };
            if ports.all().into_iter().any(is_taken) {
                // Drops what was taken, and tries the next.
                continue;
            }
            return Ok(private);
        }
        let name = service.name();
        Err(Trouble::new(format!(
            "there are no free ports for one more {name}: {BLOCKS} are in use below {}",
            above.display()
        )))
    }

    /// The server.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Its address, without TLS and with full rights.
    #[must_use]
    pub fn url(&self) -> String {
        self.instance.service.url_at(self.instance.ports)
    }

    /// Its address over TLS.
    #[must_use]
    pub fn tls_url(&self) -> String {
        self.instance.service.tls_url_at(self.instance.ports)
    }

    /// Starts it, again after it was stopped or killed, with its data.
    ///
    /// # Errors
    ///
    /// When it does not get ready.
    pub fn start_again(&self) -> Result<(), Trouble> {
        self.instance.start().map(|_| ())
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        discard(&self.instance);
        let _ = fs::remove_dir_all(&self.place);
    }
}

/// Kills a server and removes all that it has.
fn discard(instance: &Instance) {
    instance.kill();
    // Finds no process any more, and ends what outlives it.
    let _ = instance.stop();
    // What cannot be removed now is removed by the next sweep.
    let _ = instance.remove();
}

/// Ends and removes private servers whose owner is gone; tells how many.
pub fn sweep() -> usize {
    let above = folder().join("private");
    let places = fs::read_dir(&above).into_iter().flatten().flatten().map(|entry| entry.path());
    places.filter(|place| sweep_one(place)).count()
}

fn sweep_one(place: &Path) -> bool {
    let first = place.file_name().and_then(|name| name.to_str()?.parse::<u16>().ok());
    let owner = place.join("owner");
    // One without an owner is being taken in this moment.
    let (Some(first), true) = (first, owner.exists()) else { return false };
    if Process::read(&owner).is_some() {
        return false;
    }
    // Whoever takes the owner away does the work.
    if fs::remove_file(&owner).is_err() {
        return false;
    }
    // One with a folder elsewhere says where; that it is named after the service is the custom.
    let elsewhere = fs::read_to_string(place.join("home")).map(PathBuf::from).ok();
    for service in Service::ALL {
        let home = match &elsewhere {
            Some(home) if home.ends_with(service.name()) => home.clone(),
            _ => place.join(service.name()),
        };
        if home.exists() {
            let ports = Ports::from(first, service.ports());
            discard(&Instance { service, ports, advertised: None, home });
        }
    }
    fs::remove_dir_all(place).is_ok()
}
