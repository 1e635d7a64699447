//! Takes over changed settings of calls without a restart.
//!
//! The file of the settings is looked at now and then: whatever replaces it, by whatever means, it is
//! another one then. All of it is read again, and only when all of it is right are `[client]` and
//! `[clients.…]` taken over; else the old ones stay, and the mistake is logged. Other sections are for
//! the next start.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use antiphon_config::{Settings, Sources};
use antiphon_core::{BoxError, Component, Shutdown, Stage};
use antiphon_rpc::client::Channel;

use crate::settings::Sections;

/// How often it is looked whether the file is another one.
const LOOK: Duration = Duration::from_secs(2);

/// A version of a file, as far as can be told without reading it.
type Stamp = Option<(SystemTime, u64)>;

/// Watches the file of the settings.
pub(super) struct Reload {
    sources: Sources,
    path: PathBuf,
    seen: Stamp,
    channels: Vec<(&'static str, Channel)>,
}

impl Reload {
    pub(super) fn new(
        sources: Sources,
        path: PathBuf,
        channels: Vec<(&'static str, Channel)>,
    ) -> Self {
        let seen = stamp(&path);
        Self { sources, path, seen, channels }
    }

    /// Reads the settings and takes them over. The services whose calls changed.
    fn reload(&self) -> Result<Vec<&'static str>, BoxError> {
        let settings = Settings::load(&self.sources)?;
        let sections = Sections::read(&settings)?;
        let read = self.channels.iter().map(|(service, channel)| {
            let section = sections.clients.of(service);
            let target = section.target(service, &sections.discovery)?;
            Ok((*service, channel, target, section.settings(service)?))
        });
        // All of them before any is changed.
        let read: Vec<_> = read.collect::<Result<_, BoxError>>()?;
        let mut changed = Vec::new();
        for (service, channel, target, settings) in read {
            if channel.reload(&target, settings)? {
                changed.push(service);
            }
        }
        Ok(changed)
    }
}

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

impl Component for Reload {
    fn name(&self) -> &str {
        "settings"
    }

    fn stage(&self) -> Stage {
        Stage::Serve
    }

    async fn run(mut self, shutdown: Shutdown) -> Result<(), BoxError> {
        let file = self.path.display().to_string();
        while shutdown.unless_draining(tokio::time::sleep(LOOK)).await.is_some() {
            let now = stamp(&self.path);
            // One that is missing is being replaced.
            if now.is_none() || now == self.seen {
                continue;
            }
            self.seen = now;
            match self.reload() {
                Ok(changed) if changed.is_empty() => {}
                Ok(changed) => tracing::info!(file, ?changed, "settings of calls changed"),
                Err(error) => tracing::error!(file, %error, "the settings stay as they were"),
            }
        }
        Ok(())
    }
}
