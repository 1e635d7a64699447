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
use antiphon_rpc::ServiceInfo;
use antiphon_rpc::client::{Channel, Discovery};

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
    channels: Vec<(&'static ServiceInfo, Channel)>,
    discovery: Discovery,
}

impl Reload {
    /// The version that the process began with was read before this, and may be another one by now: the
    /// first look reads the file in any case.
    pub(super) fn new(
        sources: Sources,
        path: PathBuf,
        channels: Vec<(&'static ServiceInfo, Channel)>,
        discovery: Discovery,
    ) -> Self {
        Self { sources, path, seen: None, channels, discovery }
    }

    /// Reads the settings and takes them over. The services whose calls changed.
    fn reload(&self) -> Result<Vec<&'static str>, BoxError> {
        let settings = Settings::load(&self.sources)?;
        let sections = Sections::read(&settings)?;
        let read = self.channels.iter().map(|(service, channel)| {
            let section = sections.clients.of(service.name);
            let target = section.target(service.name, &sections.discovery)?;
            sections.clients.check_methods(service)?;
            // Whether it is in a registry that there is; nobody is asked yet.
            self.discovery.answers(&target)?;
            Ok((service.name, channel, target, section.settings(service.name)?))
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

#[cfg(test)]
mod tests {
    use antiphon_core::ShutdownHandle;
    use antiphon_rpc::client::ClientSettings;
    use antiphon_telemetry::Telemetry;

    use super::*;

    const fn service(name: &'static str) -> ServiceInfo {
        ServiceInfo { name, methods: &[], descriptor_set: &[] }
    }

    static SERVICES: [ServiceInfo; 2] = [service("a.A"), service("b.B")];

    /// A file of settings, and two channels as the process that read it has them.
    struct Desk {
        _folder: tempfile::TempDir,
        path: PathBuf,
        reload: Reload,
    }

    impl Desk {
        fn with(text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("antiphon.toml");
            std::fs::write(&path, text).unwrap();
            let sources = Sources::new().file(&path);
            let sections = Sections::read(&Settings::load(&sources).unwrap()).unwrap();
            let discovery = Discovery::new(sections.discovery.clone());
            let channels = SERVICES.each_ref().map(|service| {
                let section = sections.clients.of(service.name);
                let target = section.target(service.name, &sections.discovery).unwrap();
                let settings = section.settings(service.name).unwrap();
                let channel = Channel::new(&target, settings, &discovery, &Telemetry::new());
                (service, channel.unwrap())
            });
            let reload = Reload::new(sources, path.clone(), channels.into(), discovery);
            Self { _folder: folder, path, reload }
        }

        fn write(&self, text: &str) {
            std::fs::write(&self.path, text).unwrap();
        }
    }

    fn text(first: &str, second: &str) -> String {
        format!(
            "[clients.\"a.A\"]\ntarget = \"{first}\"\n[clients.\"b.B\"]\ntarget = \"{second}\"\n"
        )
    }

    #[tokio::test]
    async fn what_changed_is_taken_over_and_a_mistake_leaves_everything_as_it_was() {
        let desk = Desk::with(&text("static:a:1", "static:b:1"));
        assert!(desk.reload.reload().unwrap().is_empty());
        // The first of them is right, and the second is in a registry that there is not.
        desk.write(&text("static:a:2", "etcd:///b.B"));
        assert!(desk.reload.reload().unwrap_err().to_string().contains("etcd"));
        desk.write(&text("static:a:1", "static:b:1"));
        assert!(desk.reload.reload().unwrap().is_empty(), "the first was taken over");
        desk.write(&format!("{}methods.Get.hedge = true", text("static:a:2", "static:b:2")));
        let mistake = desk.reload.reload().unwrap_err().to_string();
        assert!(mistake.contains("b.B has no such method"), "{mistake}");
        desk.write(&text("static:a:1", "static:b:2"));
        assert_eq!(desk.reload.reload().unwrap(), ["b.B"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_changed_while_the_process_started_is_taken_over_too() {
        let desk = Desk::with(&text("static:a:1", "static:b:1"));
        let Desk { _folder, path, reload } = desk;
        std::fs::write(&path, text("static:a:2", "static:b:1")).unwrap();
        // As though it was looked at only now.
        let discovery = reload.discovery.clone();
        let reload = Reload::new(reload.sources, path, reload.channels, discovery);
        let channel = reload.channels[0].1.clone();
        let (handle, shutdown) = ShutdownHandle::new();
        let running = tokio::spawn(reload.run(shutdown));
        tokio::time::sleep(2 * LOOK).await;
        let settings = ClientSettings::default();
        assert!(!channel.reload(&"static:a:2".parse().unwrap(), settings).unwrap());
        handle.drain(LOOK);
        running.await.unwrap().unwrap();
    }
}
