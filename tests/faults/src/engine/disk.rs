//! A small disk in memory that can be filled, where root may mount one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use antiphon_testing::services::Service;
use tokio::process::Command;

use crate::Result;

/// How much it holds while it is not full.
const SIZE: &str = "1500m";

/// Where disks are; their names go on with the process that they belong to.
const ABOVE: &str = "/var/tmp";
const PREFIX: &str = "antiphon-disk-";

/// A disk. It is taken away when this is dropped.
#[derive(Debug)]
pub struct Disk {
    place: PathBuf,
    filled: AtomicU64,
}

impl Disk {
    /// A new disk; `None` where none can be had.
    pub(super) async fn mount() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        sweep().await;
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(ABOVE).ok()?;
        let place = folder.keep();
        // Some servers run as another user.
        let open = fs::Permissions::from_mode(0o755);
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={SIZE},mode=755"), "tmpfs"]).arg(&place);
        let mounted = fs::set_permissions(&place, open).is_ok() && succeeds(&mut mount).await;
        if !mounted {
            // An empty folder that stays would be untidy, no more.
            let _ = fs::remove_dir(&place);
            return None;
        }
        Some(Self { place, filled: AtomicU64::new(0) })
    }

    /// The folder for a server.
    pub(super) fn home(&self, service: Service) -> PathBuf {
        self.place.join(service.name())
    }

    /// How often it was full.
    #[must_use]
    pub fn filled(&self) -> u64 {
        self.filled.load(Ordering::Relaxed)
    }

    /// Makes it so small that no more than `left` bytes fit.
    ///
    /// # Errors
    ///
    /// When that does not succeed, or something still fits.
    ///
    /// # Cancel safety
    ///
    /// It may be full.
    pub async fn fill(&self, left: usize) -> Result<()> {
        // The server may write in between, and a disk cannot be smaller than what is on it.
        for _ in 0..20 {
            let size = used(&self.place).await? + left as u64;
            let mut mount = Command::new("mount");
            mount.args(["-o", &format!("remount,size={size}")]).arg(&self.place);
            if succeeds(&mut mount).await {
                let probe = self.place.join("probe");
                let full = fs::write(&probe, vec![0; left + (1 << 20)]).is_err();
                // What did not fit is in the way of nobody.
                let _ = fs::remove_file(probe);
                if full {
                    self.filled.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
            }
        }
        Err(format!("{} cannot be filled", self.place.display()).into())
    }

    /// Makes it large again.
    ///
    /// # Errors
    ///
    /// When that does not succeed.
    ///
    /// # Cancel safety
    ///
    /// It may still be full.
    pub async fn empty(&self) -> Result<()> {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,size={SIZE}")]).arg(&self.place);
        if succeeds(&mut mount).await {
            return Ok(());
        }
        Err(format!("{} cannot be made large again", self.place.display()).into())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the server on it may be on its way out.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.place).status();
        let _ = fs::remove_dir(&self.place);
    }
}

/// Takes away the disks of processes that were killed.
async fn sweep() {
    for entry in fs::read_dir(ABOVE).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(owner);
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            succeeds(Command::new("umount").arg("--lazy").arg(entry.path())).await;
            // Only an empty folder is removed.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The process that a disk belongs to.
fn owner(name: &str) -> Option<&str> {
    let (owner, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    owner.bytes().all(|byte| byte.is_ascii_digit()).then_some(owner)
}

async fn used(place: &Path) -> Result<u64> {
    let mut df = Command::new("df");
    let output = df.args(["--output=used", "-B1"]).arg(place).output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let used = text.lines().nth(1).ok_or("df says nothing")?;
    Ok(used.trim().parse()?)
}

async fn succeeds(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stderr(Stdio::null()).status().await;
    status.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_disk_is_in_its_name() {
        assert_eq!(owner("antiphon-disk-123-abc"), Some("123"));
        assert_eq!(owner("antiphon-disk-abc"), None);
        assert_eq!(owner("systemd-private-1-2"), None);
    }

    #[tokio::test]
    async fn a_full_disk_takes_nothing_and_an_emptied_one_does() {
        // Without the right to mount, runs under faults leave disks alone, and so does this.
        let Some(disk) = Disk::mount().await else { return };
        let file = disk.place.join("file");
        fs::write(&file, vec![1; 100_000]).unwrap();
        disk.fill(0).await.unwrap();
        assert!(fs::write(disk.place.join("more"), vec![1; 100_000]).is_err());
        assert_eq!(disk.filled(), 1);
        disk.empty().await.unwrap();
        fs::write(disk.place.join("more"), vec![1; 100_000]).unwrap();
        assert_eq!(fs::read(&file).unwrap().len(), 100_000);
        let place = disk.place.clone();
        drop(disk);
        assert!(!place.exists());
    }
}
