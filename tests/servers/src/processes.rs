//! Processes of servers: found again after a restart of ours, signalled with their children.
//!
//! A process id may be used again for another process, so it is remembered together with the time
//! when the process began. Some servers put their children into sessions of their own (PostgreSQL),
//! some run behind a script (RabbitMQ): what is killed or paused is always the whole family.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Trouble;

/// A process that will not be mistaken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) id: u32,
    /// When it began, in ticks since the system started.
    began: u64,
}

/// What the system says about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    ended: bool,
    stopped: bool,
    parent: u32,
    group: u32,
    began: u64,
}

impl Process {
    /// The process with that id.
    pub(crate) fn of(id: u32) -> Option<Self> {
        let stat = stat(id).filter(|stat| !stat.ended)?;
        Some(Self { id, began: stat.began })
    }

    /// This process.
    pub(crate) fn own() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Whether it still runs.
    pub(crate) fn runs(self) -> bool {
        Self::of(self.id) == Some(self)
    }

    /// Writes it into a file, where [`Self::read`] finds it.
    pub(crate) fn write(self, file: &Path) -> Result<(), Trouble> {
        crate::place::write(file, &format!("{} {}\n", self.id, self.began))
    }

    /// The process in a file, if it still runs.
    pub(crate) fn read(file: &Path) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        let mut words = text.split_whitespace();
        let id = words.next()?.parse().ok()?;
        let began = words.next()?.parse().ok()?;
        Some(Self { id, began }).filter(|process| process.runs())
    }

    /// Signals this process alone.
    pub(crate) fn signal(self, signal: Signal) {
        if self.runs() {
            send(self.id, signal);
        }
    }

    /// Signals it and all that belongs to it.
    pub(crate) fn signal_family(self, signal: Signal) {
        if self.runs() {
            for id in family(self.id) {
                send(id, signal);
            }
        }
    }

    /// Stops it and all that belongs to it where they are, and waits until they have stopped.
    pub(crate) fn pause(self) {
        self.signal_family(Signal::STOP);
        wait(Duration::from_secs(5), || {
            family(self.id).into_iter().filter_map(stat).all(|stat| stat.ended || stat.stopped)
        });
    }

    /// Kills it and all that belongs to it.
    pub(crate) fn kill(self) {
        if !self.runs() {
            return;
        }
        let members = family(self.id);
        // What is stopped begins no more children while it is killed.
        members.iter().for_each(|id| send(*id, Signal::STOP));
        members.union(&family(self.id)).for_each(|id| send(*id, Signal::KILL));
    }

    /// Waits until it has ended; tells whether it has.
    pub(crate) fn wait(self, limit: Duration) -> bool {
        wait(limit, || !self.runs())
    }
}

/// Waits until something holds; tells whether it does.
pub(crate) fn wait(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let begun = now();
    let mut pause = Duration::from_millis(2);
    while !holds() {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    true
}

/// The time, for limits of waiting for other processes.
#[expect(clippy::disallowed_methods, reason = "other processes know no paused clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// How much memory a process and all that belongs to it use, in bytes; shared pages count by share
/// where the system tells.
#[must_use]
pub fn memory(id: u32) -> u64 {
    family(id).into_iter().map(memory_of).sum()
}

fn memory_of(id: u32) -> u64 {
    let read = |file: &str, label: &str| {
        let text = fs::read_to_string(format!("/proc/{id}/{file}")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(label))?.to_owned();
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let kilobytes = read("smaps_rollup", "Pss:").or_else(|| read("status", "VmRSS:"));
    kilobytes.unwrap_or(0) * 1024
}

fn send(id: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // It may have ended in this moment, which is as good.
        let _ = kill_process(pid, signal);
    }
}

/// A process, its descendants, and those in its process group.
fn family(id: u32) -> BTreeSet<u32> {
    let all: BTreeMap<u32, Stat> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|id| Some((id, stat(id)?)))
        .collect();
    members(id, &all)
}

fn members(id: u32, all: &BTreeMap<u32, Stat>) -> BTreeSet<u32> {
    let mut members: BTreeSet<u32> =
        all.iter().filter(|(_, stat)| stat.group == id).map(|(id, _)| *id).collect();
    members.insert(id);
    loop {
        let children: Vec<u32> = all
            .iter()
            .filter(|(child, stat)| members.contains(&stat.parent) && !members.contains(child))
            .map(|(child, _)| *child)
            .collect();
        if children.is_empty() {
            return members;
        }
        members.extend(children);
    }
}

fn stat(id: u32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
}

/// Reads `/proc/<id>/stat`. The name of the program stands in parentheses and may contain anything.
fn parse(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    Some(Stat {
        ended: matches!(*words.first()?, "Z" | "X"),
        stopped: *words.first()? == "T",
        parent: words.get(1)?.parse().ok()?,
        group: words.get(2)?.parse().ok()?,
        began: words.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_name_with_parentheses_is_no_trouble() {
        let text = "42 (a ) b) S 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 99 1000 1 18";
        let stat = parse(text).unwrap();
        assert_eq!(stat, Stat { ended: false, stopped: false, parent: 7, group: 8, began: 99 });
    }

    #[test]
    fn a_family_is_the_group_and_the_descendants() {
        let stat = |parent, group| Stat { ended: false, stopped: false, parent, group, began: 0 };
        let all = [
            (1, stat(0, 1)),
            (10, stat(1, 10)),
            // A child in a session of its own, and its child.
            (11, stat(10, 11)),
            (12, stat(11, 11)),
            // Lost its parent, but is in the group.
            (13, stat(1, 10)),
            (20, stat(1, 20)),
        ];
        assert_eq!(members(10, &BTreeMap::from(all)), BTreeSet::from([10, 11, 12, 13]));
    }

    #[test]
    fn a_family_is_killed_and_another_process_of_the_same_id_is_not() {
        let mut child = Command::new("sh")
            .args(["-c", "setsid sleep 600 & sleep 600"])
            .process_group(0)
            .spawn()
            .unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(wait(Duration::from_secs(5), || family(process.id).len() == 3));
        let members = family(process.id);
        let other = Process { began: process.began + 1, ..process };
        assert!(!other.runs());
        other.kill();
        assert!(process.runs());
        process.kill();
        child.wait().unwrap();
        assert!(process.wait(Duration::from_secs(5)));
        assert!(wait(Duration::from_secs(5), || members
            .iter()
            .all(|id| Process::of(*id).is_none())));
    }
}
