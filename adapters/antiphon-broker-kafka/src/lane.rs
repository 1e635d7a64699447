//! One partition in the hands of one member: what was read of it and is not done.
//!
//! Kafka has no way to give a single record back. So what is released waits here, in the order of
//! the partition; and what waits for a retry holds back the later messages of its key, if the group
//! is ordered. None of it is lost with the process, since the frontier stays below it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use antiphon_messaging::{Message, Settled};
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

use crate::frontier::Frontier;
use crate::progress::{self, Progress, TEXT_BYTES_MAX, Wait};

/// A record that is not done.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) offset: i64,
    pub(crate) message: Arc<Message>,
    /// How many attempts were made.
    pub(crate) attempts: u32,
}

/// A key with a message that waits for its retry.
#[derive(Debug, Default)]
struct HeldKey {
    waiting: usize,
    /// Later messages, and those whose wait is over, by offset.
    followers: BTreeMap<i64, Entry>,
}

/// What is to be written down of a lane.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) low: i64,
    pub(crate) text: String,
    version: u64,
    /// The last wait that has found room; those beyond are not promised.
    waits_until: Option<i64>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    /// Others take it over: nothing more is handed out.
    pub(crate) leaving: bool,
    /// Whether the client library was told to pause it.
    pub(crate) paused: bool,
    /// How many deliveries of it are out.
    pub(crate) out: usize,
    ordered: bool,
    /// Whether anything was read.
    began: bool,
    frontier: Frontier,
    /// What the next owner has to know of records that are not done.
    waits: BTreeMap<i64, Wait>,
    ready: VecDeque<Entry>,
    waiting: BTreeMap<(Instant, i64), Entry>,
    held: HashMap<String, HeldKey>,
    kept: usize,
    kept_bytes: usize,
    /// Counts changes of what is to be written down.
    version: u64,
    written: u64,
    /// Who waits to hear that a wait is written down.
    answers: Vec<(i64, oneshot::Sender<Settled>)>,
}

impl Lane {
    /// A partition that is ours from now on. `epoch` tells it from itself, when it comes back.
    pub(crate) fn new(
        topic: Arc<str>,
        partition: i32,
        ordered: bool,
        epoch: u32,
        progress: Progress,
    ) -> Self {
        let version = u64::from(epoch) << 32;
        let mut frontier = Frontier::new(progress.low);
        for done in progress.done {
            frontier.finish_all(done);
        }
        Self {
            topic,
            partition,
            leaving: false,
            paused: false,
            out: 0,
            ordered,
            began: false,
            frontier,
            waits: progress.waits,
            ready: VecDeque::new(),
            waiting: BTreeMap::new(),
            held: HashMap::new(),
            kept: 0,
            kept_bytes: 0,
            version,
            written: version,
            answers: Vec::new(),
        }
    }

    /// How many messages are ready to be handed out, or will turn out to be held.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// How many messages are kept here, how many bytes they take, and how far the lane is handled
    /// beyond its first message that is not.
    pub(crate) fn burden(&self) -> (usize, usize, u64) {
        (self.kept, self.kept_bytes, self.frontier.span())
    }

    /// A record was read.
    pub(crate) fn receive(
        &mut self,
        offset: i64,
        message: Arc<Message>,
        now: Instant,
        wall_ms: i64,
    ) {
        if !self.began && offset < self.frontier.low() {
            // The topic was made anew, and its offsets begin anew: what was written down is of the
            // other one.
            self.frontier = Frontier::new(offset);
            self.waits.clear();
        }
        self.began = true;
        if !self.frontier.receive(offset) {
            return;
        }
        self.kept += 1;
        self.kept_bytes += message.size();
        let mut entry = Entry { offset, message, attempts: 0 };
        match self.waits.get(&offset).copied() {
            Some(wait) => {
                entry.attempts = wait.attempts;
                let left = u64::try_from(wait.due_ms - wall_ms).unwrap_or(0);
                self.line_up(entry, now, Duration::from_millis(left));
            }
            // The newest record comes last.
            None => self.ready.push_back(entry),
        }
    }

    /// Lets a message wait, and its key with it; or puts it back in line at once.
    fn line_up(&mut self, entry: Entry, now: Instant, after: Duration) {
        if after.is_zero() {
            return self.put_ready(entry);
        }
        if self.ordered && !entry.message.key.is_empty() {
            self.held.entry(entry.message.key.clone()).or_default().waiting += 1;
        }
        self.waiting.insert((now + after, entry.offset), entry);
    }

    fn put_ready(&mut self, entry: Entry) {
        let at = self.ready.partition_point(|other| other.offset < entry.offset);
        self.ready.insert(at, entry);
    }

    /// Ends the waits that are over.
    pub(crate) fn advance(&mut self, now: Instant) {
        while let Some(first) = self.waiting.first_entry() {
            if first.key().0 > now {
                return;
            }
            let entry = first.remove();
            let Some(held) = self.held.get_mut(&entry.message.key) else {
                self.put_ready(entry);
                continue;
            };
            held.waiting -= 1;
            let key = entry.message.key.clone();
            held.followers.insert(entry.offset, entry);
            if held.waiting == 0 {
                let followers = self.held.remove(&key).map(|held| held.followers);
                for entry in followers.unwrap_or_default().into_values() {
                    self.put_ready(entry);
                }
            }
        }
    }

    /// When the next wait is over.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }

    /// The next message whose key nothing holds back; it is out from now on.
    pub(crate) fn hand_out(&mut self) -> Option<Entry> {
        loop {
            let entry = self.ready.pop_front()?;
            let holds =
                if self.held.is_empty() { None } else { self.held.get_mut(&entry.message.key) };
            match holds {
                Some(held) => {
                    held.followers.insert(entry.offset, entry);
                }
                None => {
                    self.kept -= 1;
                    self.kept_bytes -= entry.message.size();
                    self.out += 1;
                    return Some(entry);
                }
            }
        }
    }

    /// A delivery has ended well.
    pub(crate) fn finish(&mut self, entry: &Entry) {
        self.out -= 1;
        self.version += 1;
        self.frontier.finish(entry.offset);
        if !self.waits.is_empty() {
            self.waits.remove(&entry.offset);
        }
    }

    /// A delivery comes again at once.
    pub(crate) fn put_back(&mut self, entry: Entry) {
        self.take_in(&entry);
        self.put_ready(entry);
    }

    fn take_in(&mut self, entry: &Entry) {
        self.out -= 1;
        self.kept += 1;
        self.kept_bytes += entry.message.size();
    }

    /// A delivery comes again after a while, as a later attempt; the answer comes when that is
    /// written down.
    pub(crate) fn retry(
        &mut self,
        mut entry: Entry,
        attempts: u32,
        after: Duration,
        now: Instant,
        wall_ms: i64,
    ) -> Option<oneshot::Receiver<Settled>> {
        entry.attempts = entry.attempts.saturating_add(attempts);
        let mut answer = None;
        if attempts > 0 || !after.is_zero() {
            let after_ms = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
            let due_ms = wall_ms.saturating_add(after_ms);
            self.waits.insert(entry.offset, Wait { attempts: entry.attempts, due_ms });
            self.version += 1;
            let (sender, receiver) = oneshot::channel();
            self.answers.push((entry.offset, sender));
            answer = Some(receiver);
        }
        self.take_in(&entry);
        self.line_up(entry, now, after);
        answer
    }

    /// Whether all that has changed is written down.
    pub(crate) fn is_written(&self) -> bool {
        self.version == self.written
    }

    /// Whether somebody waits for the next report to be written down.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.answers.is_empty()
    }

    /// What is to be written down, if that has changed.
    pub(crate) fn report(&self) -> Option<Report> {
        (!self.is_written()).then(|| {
            let low = self.frontier.low();
            let done = self.frontier.done();
            let (text, written) = progress::write(low, &self.waits, done, TEXT_BYTES_MAX);
            let waits_until =
                written.checked_sub(1).and_then(|last| self.waits.keys().nth(last)).copied();
            Report { low, text, version: self.version, waits_until }
        })
    }

    /// A report is written down; without its text if the broker took only the offset.
    pub(crate) fn written(&mut self, report: &Report, with_text: bool) {
        if report.version >> 32 != self.version >> 32 {
            return;
        }
        self.written = report.version;
        let until = if with_text { report.waits_until } else { None };
        for (offset, answer) in std::mem::take(&mut self.answers) {
            let promised =
                until.is_some_and(|until| offset <= until) || self.frontier.is_done(offset);
            // What changed after the report was made waits for the next one.
            if !promised && self.version != report.version {
                self.answers.push((offset, answer));
            } else {
                let _ = answer.send(if promised { Settled::Confirmed } else { Settled::Stale });
            }
        }
    }
}
