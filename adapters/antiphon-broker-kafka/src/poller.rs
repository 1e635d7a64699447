//! The thread of a member that talks to Kafka: it reads, writes progress down, and gives partitions
//! up when others take them over.
//!
//! It never waits for handlers, so however long they take, the group keeps its member. When too much
//! was read and nobody takes it, it first reads a little later; only if that lasts are the partitions
//! paused, since pausing throws away what the client library has read ahead.

use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use antiphon_core::Clock;
use antiphon_messaging::Message;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::cluster::ASK;
use crate::committer::Commits;
use crate::member::Member;
use crate::names;
use crate::progress::{self, Progress};
use crate::rebalance::{Event, Rebalancing};
use crate::record;

/// How many records are read before anything else is looked at.
const READ_MAX: usize = 512;
/// How long reading waits for room before the partitions are paused.
const PAUSE_AFTER: Duration = Duration::from_millis(100);
/// How long the thread rests when nobody calls it.
const REST: Duration = Duration::from_millis(500);
/// How long a member that gives partitions up waits until its progress is written down.
const LAST_COMMIT: Duration = Duration::from_secs(5);
/// The same for a member that leaves: if it is just joining anew, the coordinator answers a commit
/// only after that, which takes as long as the other members take.
const FINAL_COMMIT: Duration = Duration::from_secs(20);
/// How often the library by itself looks whether a heartbeat is due.
const OWN_HEARTBEAT: Duration = Duration::from_secs(1);

/// What the thread, the source and the settlers of a member share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) member: Mutex<Member>,
    /// Rung when the source may find something.
    pub(crate) bell: Notify,
    pub(crate) clock: Clock,
    /// Whether the group has taken the member in, or will not.
    pub(crate) joined: watch::Sender<bool>,
    thread: OnceLock<Thread>,
}

impl Shared {
    pub(crate) fn new(member: Member) -> Self {
        let clock = Clock::system();
        let (joined, _) = watch::channel(false);
        let (member, bell) = (Mutex::new(member), Notify::new());
        Self { member, bell, clock, joined, thread: OnceLock::new() }
    }

    /// Lets the thread have another look.
    pub(crate) fn call_poller(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Milliseconds since 1970.
    pub(crate) fn wall_ms(&self) -> i64 {
        self.clock.now().as_millis()
    }
}

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) commit_interval: Duration,
    pub(crate) handover_timeout: Duration,
    pub(crate) heartbeat: Duration,
}

/// Partitions that others take over.
struct Leaving {
    partitions: TopicPartitionList,
    lanes: Vec<u32>,
    /// When handlers are no longer waited for.
    until: Instant,
    /// When writing down is no longer waited for; set once handlers are done.
    write_until: Option<Instant>,
}

/// The consumer, and who is told when it is gone.
pub(crate) struct Connection {
    pub(crate) consumer: BaseConsumer<Rebalancing>,
    /// Dropped after the consumer, which leaves the group.
    pub(crate) _left: watch::Sender<()>,
}

/// See the module.
pub(crate) struct Poller {
    connection: Arc<Connection>,
    commits: Commits,
    shared: Arc<Shared>,
    topics: Vec<Arc<str>>,
    times: Times,
    /// Closed by the source when it is dropped.
    wanted: watch::Receiver<()>,
    leaving: Option<Leaving>,
    /// Revocations that came while the member was leaving.
    unanswered: Vec<TopicPartitionList>,
    crowded_since: Option<Instant>,
    paused: bool,
    nudge_at: Instant,
}

impl Poller {
    /// Starts the thread. `wanted` ends it by being dropped at the other end; `left` tells by being
    /// dropped that it has ended.
    pub(crate) fn start(
        mut consumer: BaseConsumer<Rebalancing>,
        shared: Arc<Shared>,
        topics: Vec<Arc<str>>,
        times: Times,
        left: watch::Sender<()>,
        wanted: watch::Receiver<()>,
    ) -> std::io::Result<()> {
        let called = Arc::clone(&shared);
        consumer.set_nonempty_callback(move || called.call_poller());
        let connection = Arc::new(Connection { consumer, _left: left });
        let commits = Commits::start(&connection, &shared, times.commit_interval)?;
        let now = Instant::now();
        let poller = Self {
            connection,
            commits,
            shared,
            topics,
            times,
            wanted,
            leaving: None,
            unanswered: Vec::new(),
            crowded_since: None,
            paused: false,
            nudge_at: now,
        };
        let thread = std::thread::Builder::new().name("antiphon-kafka".to_owned());
        thread.spawn(move || {
            let _ = poller.shared.thread.set(std::thread::current());
            poller.run();
        })?;
        Ok(())
    }

    fn consumer(&self) -> &BaseConsumer<Rebalancing> {
        &self.connection.consumer
    }

    fn run(mut self) {
        let ended = Ended(Arc::clone(&self.shared));
        match self.work() {
            Ok(()) => self.write_the_rest(),
            Err(why) => {
                tracing::warn!(why, "kafka: a member has lost its group");
                self.shared.member.lock().lose(why);
                self.shared.bell.notify_one();
            }
        }
        self.leave();
        drop(ended);
    }

    /// Works until it is not wanted any more, or has lost its place in the group.
    fn work(&mut self) -> Result<(), String> {
        loop {
            while let Some(event) = self.consumer().context().next() {
                self.hear(event)?;
            }
            if self.consumer().assignment_lost() {
                return Err("the group has given our partitions to others".to_owned());
            }
            if self.wanted.has_changed().is_err() || self.shared.member.lock().is_done() {
                return Ok(());
            }
            self.nudge();
            self.give_up_when_settled();
            self.commits.make_when_due(&self.shared);
            self.switch()?;
            let read = self.may_read() && self.read()?;
            if !read && self.consumer().context().is_quiet() {
                std::thread::park_timeout(self.rest());
            }
        }
    }

    /// The library's own thread looks whether a heartbeat is due once a second, and whenever it is
    /// asked something. So it is asked something as often as we want heartbeats.
    fn nudge(&mut self) {
        let now = Instant::now();
        if self.times.heartbeat < OWN_HEARTBEAT && now >= self.nudge_at {
            let _ = self.consumer().subscription();
            self.nudge_at = now + self.times.heartbeat;
        }
    }

    /// How long there is nothing to do unless somebody calls.
    fn rest(&self) -> Duration {
        let now = Instant::now();
        let mut rest = REST.min(self.times.heartbeat);
        if self.crowded_since.is_some() && !self.paused {
            rest = rest.min(PAUSE_AFTER);
        }
        rest = rest.min(self.commits.rest());
        if let Some(leaving) = &self.leaving {
            rest = rest.min(leaving.write_until.unwrap_or(leaving.until) - now);
        }
        rest.max(Duration::from_millis(1))
    }

    fn hear(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Assign(partitions) => self.assign(&partitions),
            Event::Revoke(partitions) => {
                if self.consumer().assignment_lost() {
                    return Err("the group has given our partitions to others".to_owned());
                }
                self.revoke(partitions);
                Ok(())
            }
            Event::Committed(result) => {
                self.commits.answered(result, &self.shared);
                Ok(())
            }
        }
    }

    // Partitions come and go.

    fn assign(&mut self, partitions: &TopicPartitionList) -> Result<(), String> {
        let mut begins = TopicPartitionList::new();
        if partitions.count() > 0 {
            let asked = self.consumer().committed_offsets(partitions.clone(), ASK);
            let committed = asked.map_err(|error| format!("how far the group is: {error}"))?;
            let mut member = self.shared.member.lock();
            for element in committed.elements() {
                let (topic, partition) = (element.topic(), element.partition());
                let known = element.error().map(|()| element.offset());
                let progress = match known {
                    Ok(Offset::Offset(low)) => progress::read(low, element.metadata()),
                    Ok(_) => Progress { low: self.first(topic, partition)?, ..Progress::default() },
                    Err(error) => return Err(format!("how far the group is: {error}")),
                };
                let Some(index) = self.topics.iter().position(|known| **known == *topic) else {
                    continue;
                };
                begins
                    .add_partition_offset(topic, partition, Offset::Offset(progress.low))
                    .map_err(|error| error.to_string())?;
                let lane = names::lane(index, partition);
                member.assign(lane, &self.topics[index], partition, progress);
            }
        }
        tracing::debug!(count = partitions.count(), "kafka: partitions assigned");
        let assigned = self.consumer().incremental_assign(&begins);
        assigned.map_err(|error| format!("partitions could not be taken: {error}"))?;
        // The library remembers that we had paused a partition when we gave it up.
        let resumed = self.consumer().resume(&begins);
        resumed.map_err(|error| format!("partitions could not be resumed: {error}"))?;
        self.shared.joined.send_replace(true);
        Ok(())
    }

    /// Where a partition begins of which the group has nothing written down: it was added after the
    /// group was declared, so nothing of it may be missed.
    fn first(&self, topic: &str, partition: i32) -> Result<i64, String> {
        let range = self.consumer().fetch_watermarks(topic, partition, ASK);
        range.map(|(low, _)| low).map_err(|error| format!("where {topic} begins: {error}"))
    }

    fn revoke(&mut self, partitions: TopicPartitionList) {
        // The library waits for the answer to one before it comes with the next.
        self.give_up_now();
        let lanes: Vec<u32> = partitions
            .elements()
            .iter()
            .filter_map(|element| {
                let index = self.topics.iter().position(|known| **known == *element.topic())?;
                Some(names::lane(index, element.partition()))
            })
            .collect();
        tracing::debug!(?lanes, "kafka: partitions revoked");
        self.shared.member.lock().revoke(&lanes);
        self.shared.bell.notify_one();
        let until = Instant::now() + self.times.handover_timeout;
        self.leaving = Some(Leaving { partitions, lanes, until, write_until: None });
    }

    /// Gives partitions up when nothing of them is out, or for too long, and all is written down.
    fn give_up_when_settled(&mut self) {
        let Some(leaving) = &mut self.leaving else { return };
        let now = Instant::now();
        let mut member = self.shared.member.lock();
        let write_until = match leaving.write_until {
            Some(until) => until,
            None if member.is_settled(&leaving.lanes) || now >= leaving.until => {
                member.give_up(&leaving.lanes);
                *leaving.write_until.insert(now + LAST_COMMIT)
            }
            None => return,
        };
        let written = member.is_written(&leaving.lanes);
        drop(member);
        if written || now >= write_until {
            self.give_up_now();
        } else {
            self.commits.make(&self.shared);
        }
    }

    fn give_up_now(&mut self) {
        if let Some(leaving) = self.leaving.take() {
            self.shared.member.lock().remove(&leaving.lanes);
            if let Err(error) = self.consumer().incremental_unassign(&leaving.partitions) {
                tracing::warn!(%error, "kafka: partitions could not be given up");
            }
        }
    }

    // Reading.

    /// Whether there is room for more; while there is none for long, all partitions are paused and
    /// reading only brings what the library has to tell.
    fn may_read(&mut self) -> bool {
        let mut member = self.shared.member.lock();
        member.crowded = member.has_enough();
        if !member.crowded {
            self.crowded_since = None;
            return true;
        }
        let since = *self.crowded_since.get_or_insert_with(Instant::now);
        self.paused || since.elapsed() >= PAUSE_AFTER
    }

    fn switch(&mut self) -> Result<(), String> {
        let mut member = self.shared.member.lock();
        let enough = self.crowded_since.is_some_and(|since| since.elapsed() >= PAUSE_AFTER);
        // Paused until half of it is gone; `crowded` is cleared by whoever takes it.
        self.paused = enough && member.crowded;
        let switches = member.switches(self.paused);
        drop(member);
        for pause in [true, false] {
            let mut partitions = TopicPartitionList::new();
            for switch in switches.iter().filter(|switch| switch.pause == pause) {
                partitions.add_partition(&switch.topic, switch.partition);
            }
            if partitions.count() > 0 {
                let done = if pause {
                    self.consumer().pause(&partitions)
                } else {
                    self.consumer().resume(&partitions)
                };
                done.map_err(|error| format!("partitions could not be paused: {error}"))?;
            }
        }
        Ok(())
    }

    /// Reads what is there; whether there was anything.
    fn read(&mut self) -> Result<bool, String> {
        let mut batch: Vec<(u32, i64, Message)> = Vec::new();
        let mut trouble = None;
        while batch.len() < READ_MAX {
            let told = self.consumer().context().told();
            match self.consumer().poll(Duration::ZERO) {
                Some(Ok(record)) => {
                    let place = self.topics.iter().position(|known| **known == *record.topic());
                    if let Some(index) = place {
                        let lane = names::lane(index, record.partition());
                        let message = record::message(&self.topics[index], &record);
                        batch.push((lane, record.offset(), message));
                    }
                }
                Some(Err(error)) => {
                    trouble = lost_by(&error, self.consumer().context());
                    if trouble.is_some() {
                        break;
                    }
                }
                // Something else than a record: there may be more behind it.
                None if self.consumer().context().told() != told => {}
                None => break,
            }
        }
        let read = !batch.is_empty();
        if read {
            let (now, wall_ms) = (Instant::now(), self.shared.wall_ms());
            let mut member = self.shared.member.lock();
            for (lane, offset, message) in batch {
                member.receive(lane, offset, message, now, wall_ms);
            }
            drop(member);
            self.shared.bell.notify_one();
        }
        trouble.map_or(Ok(read), Err)
    }

    // The end.

    /// What was settled is written down; what is out cannot be settled any more.
    fn write_the_rest(&mut self) {
        let lanes = {
            let mut member = self.shared.member.lock();
            let lanes = member.lanes();
            member.give_up(&lanes);
            lanes
        };
        let until = Instant::now() + FINAL_COMMIT;
        while !self.shared.member.lock().is_written(&lanes) && Instant::now() < until {
            if self.consumer().assignment_lost() {
                return;
            }
            self.commits.make(&self.shared);
            // What is read comes again to somebody else.
            let _ = self.consumer().poll(Duration::from_millis(2));
            while let Some(event) = self.consumer().context().next() {
                match event {
                    Event::Committed(result) => self.commits.answered(result, &self.shared),
                    // Others must not begin before all is written down.
                    Event::Revoke(partitions) => self.unanswered.push(partitions),
                    Event::Assign(partitions) => self.answer(&Event::Assign(partitions)),
                }
            }
        }
    }

    /// Answers a rebalance without waiting for anything.
    fn answer(&self, event: &Event) {
        let answered = match event {
            Event::Assign(partitions) => self.consumer().incremental_assign(partitions),
            Event::Revoke(partitions) => self.consumer().incremental_unassign(partitions),
            Event::Committed(_) => Ok(()),
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "kafka: a rebalance while leaving was not answered");
        }
    }

    fn leave(mut self) {
        self.consumer().context().leave();
        self.give_up_now();
        for partitions in std::mem::take(&mut self.unanswered) {
            self.answer(&Event::Revoke(partitions));
        }
        while let Some(event) = self.consumer().context().next() {
            self.answer(&event);
        }
        // A consumer that is closed without partitions does not tell the group that it leaves, and
        // all others wait for it until its session is over. One that unsubscribes does.
        self.consumer().unsubscribe();
        // Whoever lets go of the consumer last waits until the group is left.
    }
}

/// Ends the member also when its thread panics: nobody may wait for it for ever.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.member.lock().lose("the member has ended");
        self.0.bell.notify_one();
        self.0.joined.send_replace(true);
    }
}

/// Whether an error ends the membership, and why. Brokers that are away come back.
fn lost_by(error: &KafkaError, context: &Rebalancing) -> Option<String> {
    let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
    let code = error.rdkafka_error_code()?;
    let why = match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            "a topic of the group was deleted".to_owned()
        }
        Code::InconsistentGroupProtocol => "other members of the group use another protocol; they \
                                            must use the strategy `cooperative-sticky`"
            .to_owned(),
        Code::PollExceeded => "the member was stuck for longer than poll_interval_max".to_owned(),
        code if crate::error::is_unauthorized(code) || fatal => {
            let told = context.troubles().latest().map(|trouble| trouble.text);
            format!("{code}: {}", told.unwrap_or_default())
        }
        _ => {
            tracing::debug!(%error, "kafka: reading goes on after a trouble");
            return None;
        }
    };
    Some(why)
}
