//! What this process has had of the processor, and how much it may use.
//!
//! Reads the files of Linux's scheduler and control groups. Where there are none, the time that was
//! used and the cores that the process may run on are what is known.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::CpuUse;

/// What this process has had of the processor by now.
///
/// Looks into a few files for each thread: some microseconds, to be done a few times a second.
#[must_use]
pub fn read() -> CpuUse {
    let root = Path::new("/");
    CpuUse { used: used(root), waited: waited(root), cores: cores() }
}

/// The processor time that this process has used since it began, of all its threads, also those that
/// have ended; in steps of 10 ms.
///
/// The clock of the process would have finer steps, but Valgrind does not have that clock.
#[cfg(target_os = "linux")]
fn used(root: &Path) -> Duration {
    // Linux counts time for programs in hundredths of a second, whatever it counts by itself (time(7)).
    const TICK_MILLIS: u64 = 10;
    let line = fs::read_to_string(root.join("proc/self/stat")).unwrap_or_default();
    // The second field is the name of the program in parentheses, with whatever is in it. utime and
    // stime are fields 14 and 15 (proc_pid_stat(5)).
    let after_name = line.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = after_name.split_ascii_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks.saturating_mul(TICK_MILLIS))
}

#[cfg(not(target_os = "linux"))]
fn used(_: &Path) -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

/// The time that the threads which there are now waited for a processor.
fn waited(root: &Path) -> Duration {
    let Ok(threads) = fs::read_dir(root.join("proc/self/task")) else {
        return Duration::ZERO;
    };
    // "used waited times", in nanoseconds. A thread may end before it is looked at.
    let waited = |thread: fs::DirEntry| -> Option<u64> {
        let line = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        line.split(' ').nth(1)?.parse().ok()
    };
    Duration::from_nanos(threads.flatten().filter_map(waited).sum())
}

/// How many cores this process may keep busy: the smallest quota of its control group and of those
/// above it, no more than the cores it may run on. May be a part of a core.
///
/// A quota can be changed while the process runs, so this is asked each time.
fn cores() -> f64 {
    // The standard library counts whole cores, and takes quotas into account as such.
    let whole = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
    quota(Path::new("/")).map_or(whole, |quota| if whole < quota.floor() { whole } else { quota })
}

/// The smallest quota that holds for this process, in cores. `root` is where `/proc` and `/sys` are.
fn quota(root: &Path) -> Option<f64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let quotas = groups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let below =
            |mount: &str, read| smallest(&root.join("sys/fs/cgroup").join(mount), path, read);
        if controllers.is_empty() {
            below("", quota_v2).or_else(|| below("unified", quota_v2))
        } else if controllers.split(',').any(|controller| controller == "cpu") {
            below("cpu", quota_v1).or_else(|| below("cpu,cpuacct", quota_v1))
        } else {
            None
        }
    });
    quotas.reduce(f64::min)
}

/// The smallest quota of the group and of all groups around it. In a container the path may be that of
/// the host, and not there: the mount itself is the container's group then.
fn smallest(mount: &Path, path: &str, read: fn(&Path) -> Option<f64>) -> Option<f64> {
    let path = PathBuf::from(path.trim_start_matches('/'));
    path.ancestors().filter_map(|group| read(&mount.join(group))).reduce(f64::min)
}

/// `cpu.max` says "quota period", or "max period" where there is none.
fn quota_v2(group: &Path) -> Option<f64> {
    let line = fs::read_to_string(group.join("cpu.max")).ok()?;
    let (quota, period) = line.trim().split_once(' ')?;
    part(quota, period)
}

/// Two files; the quota is -1 where there is none.
fn quota_v1(group: &Path) -> Option<f64> {
    let read = |name| fs::read_to_string(group.join(name)).ok();
    part(read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?.trim())
}

fn part(quota: &str, period: &str) -> Option<f64> {
    let (quota, period) = (quota.parse::<u32>().ok()?, period.parse::<u32>().ok()?);
    (quota > 0 && period > 0).then(|| f64::from(quota) / f64::from(period))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn the_smallest_quota_of_the_group_and_those_around_it_holds() {
        let cgroup = ("proc/self/cgroup", "0::/pod/app\n");
        let app = "sys/fs/cgroup/pod/app/cpu.max";
        let cases = [
            (vec![], None),
            (vec![cgroup], None),
            (vec![cgroup, (app, "max 100000\n")], None),
            (vec![cgroup, (app, "150000 100000\n")], Some(1.5)),
            (
                vec![
                    cgroup,
                    (app, "150000 100000\n"),
                    ("sys/fs/cgroup/pod/cpu.max", "50000 100000\n"),
                ],
                Some(0.5),
            ),
            // A container that sees the path of its host.
            (vec![cgroup, ("sys/fs/cgroup/cpu.max", "200000 100000\n")], Some(2.0)),
            (vec![cgroup, ("sys/fs/cgroup/cpu.max", "nonsense")], None),
        ];
        for (files, expected) in cases {
            assert_eq!(quota(root(&files).path()), expected, "{files:?}");
        }
    }

    #[test]
    fn groups_of_the_first_version_are_read_too() {
        let cgroup = ("proc/self/cgroup", "4:memory:/m\n3:cpu,cpuacct:/pod\n0::/\n");
        let group = "sys/fs/cgroup/cpu,cpuacct/pod";
        let with = |quota: &str| {
            let (one, other) =
                (format!("{group}/cpu.cfs_quota_us"), format!("{group}/cpu.cfs_period_us"));
            super::quota(root(&[cgroup, (&one, quota), (&other, "100000\n")]).path())
        };
        assert_eq!(with("250000\n"), Some(2.5));
        assert_eq!(with("-1\n"), None);
        assert_eq!(with("0\n"), None);
    }

    #[test]
    fn what_every_thread_waited_is_added_up() {
        let files = [
            ("proc/self/task/1/schedstat", "5000 300 7\n"),
            ("proc/self/task/2/schedstat", "1 20 1\n"),
            ("proc/self/task/3/schedstat", "nonsense"),
            ("proc/self/task/4/status", ""),
        ];
        assert_eq!(waited(root(&files).path()), Duration::from_nanos(320));
        assert_eq!(waited(root(&[]).path()), Duration::ZERO);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_time_of_the_process_is_read_whatever_its_name_is() {
        let numbers = "S 1 2 2 0 -1 4194560 9 8 7 6 250 75 30 20 20 0 4 0 100 1 1\n";
        for name in ["shop", "a b) 1 2 3 (c", ""] {
            let stat = format!("17 ({name}) {numbers}");
            let root = root(&[("proc/self/stat", &stat)]);
            assert_eq!(used(root.path()), Duration::from_millis(3_250), "{name}");
        }
        // Two years of a processor.
        let long = root(&[(
            "proc/self/stat",
            &format!("17 (shop) {numbers}").replace("250", "6000000000"),
        )]);
        assert_eq!(used(long.path()), Duration::from_millis(60_000_000_750));
        for nonsense in ["", "17 (shop", "17 (shop) S 1 2", "17 (shop) S x x x x x x x x x x x x x"]
        {
            let root = root(&[("proc/self/stat", nonsense)]);
            assert_eq!(used(root.path()), Duration::ZERO, "{nonsense}");
        }
        assert_eq!(used(root(&[]).path()), Duration::ZERO);
    }

    #[test]
    fn this_process_uses_time_and_may_use_some() {
        assert!(read().cores > 0.0);
        let before = read().used;
        let mut work = 1_u64;
        while read().used == before {
            work = std::hint::black_box(work.wrapping_mul(31));
        }
        assert!(read().used > before);
    }
}
