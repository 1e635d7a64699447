//! What a member of an ordered group does beside handing out messages: it shows that it is alive,
//! watches the others, takes and gives lanes, and writes down what is done.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxError;
use antiphon_messaging::{LANES, SubscribeError};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::kv::{Entry, Operation, Watch};
use async_nats::jetstream::stream::Stream;
use futures_util::future::{join_all, try_join_all};
use futures_util::{FutureExt, StreamExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use crate::connection::Link;
use crate::error::trouble;
use crate::member::{Core, OrderedSource, Reader};
use crate::pull::{Pull, spawn};
use crate::records::{self, GroupRecord, LaneRecord, Progress, Written};
use crate::roster::Roster;
use crate::settings::Settings;
use crate::{names, topology};

/// How often it is written down what is done.
const WRITE_EVERY: Duration = Duration::from_millis(200);
/// After how long without a pull the server forgets a reader.
const READER_IDLE_MAX: Duration = Duration::from_secs(60);

/// A topic as it was when the member joined.
struct Topic {
    stream: Stream,
    name: String,
    made: i128,
    last: u64,
}

/// See the module.
struct Keeper {
    core: Arc<Core>,
    link: Arc<Link>,
    settings: Arc<Settings>,
    record: GroupRecord,
    topics: Vec<Topic>,
    member: String,
    roster: Roster,
    owned: BTreeSet<u32>,
    revoking: BTreeSet<u32>,
    /// Lanes that are given up, when the engine is done with them or its time is up.
    revocations: JoinSet<Vec<u32>>,
    readers_made: u64,
}

/// Joins an ordered group.
pub(crate) async fn join(
    link: Arc<Link>,
    settings: Arc<Settings>,
    record: GroupRecord,
    topics: &[String],
) -> Result<OrderedSource, SubscribeError> {
    let mut streams = Vec::with_capacity(topics.len());
    for name in topics {
        let stream = topology::stream(&link, name).await?;
        let (made, last) = (topology::made(&stream), stream.cached_info().state.last_sequence);
        streams.push(Topic { stream, name: name.clone(), made, last });
    }
    let context = format!("group {} cannot be joined", record.name);
    start(link, settings, record, streams).await.map_err(|error| trouble(context, error))
}

async fn start(
    link: Arc<Link>,
    settings: Arc<Settings>,
    record: GroupRecord,
    topics: Vec<Topic>,
) -> Result<OrderedSource, BoxError> {
    let member = uuid::Uuid::now_v7().to_string();
    let inbox = link.client.new_inbox();
    let deliveries = link.client.subscribe(format!("{inbox}.*")).await?;
    let names = topics.iter().map(|topic| topic.name.clone()).collect();
    let core = Core::new(Arc::clone(&link), names, inbox, deliveries, settings.read_ahead);
    let mut keeper = Keeper {
        core: Arc::clone(&core),
        link: Arc::clone(&link),
        roster: Roster::new(member.clone(), settings.lease.0),
        settings,
        record,
        topics,
        member,
        owned: BTreeSet::new(),
        revoking: BTreeSet::new(),
        revocations: JoinSet::new(),
        readers_made: 0,
    };
    // Made first: if anything goes wrong from here on, dropping it ends the keeper.
    let source = OrderedSource::new(core);
    keeper.show_life().await?;
    let lanes = link.groups.watch_with_history(keeper.pattern("l")).await?;
    let members = link.live.watch_with_history(keeper.pattern("m")).await?;
    for entry in records::list(&link.groups, &keeper.pattern("l")).await? {
        keeper.lane_changed(&entry)?;
    }
    for entry in records::list(&link.live, &keeper.pattern("m")).await? {
        keeper.member_changed(&entry);
    }
    keeper.rebalance().await?;
    tokio::spawn(keeper.run(lanes, members));
    Ok(source)
}

impl Keeper {
    fn pattern(&self, kind: &str) -> String {
        format!("{kind}.{}.*", names::escaped(&self.record.name))
    }

    async fn run(mut self, mut lanes: Watch, mut members: Watch) {
        let why = self.keep(&mut lanes, &mut members).await.err();
        if let Some(why) = &why {
            self.core.lose(why.to_string());
        }
        if !self.link.is_lost() {
            self.leave().await;
        }
        self.core.left.send_replace(true);
    }

    /// Until the member leaves, or cannot go on.
    async fn keep(&mut self, lanes: &mut Watch, members: &mut Watch) -> Result<(), BoxError> {
        let ticker = |every: Duration| {
            let mut ticks = tokio::time::interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let mut beats = ticker(self.settings.lease.0 / 3);
        let mut writes = ticker(WRITE_EVERY);
        let link = Arc::clone(&self.link);
        loop {
            tokio::select! {
                why = link.lost() => return Err(why.into()),
                () = self.core.bell.notified() => {}
                _ = beats.tick() => self.beat().await?,
                _ = writes.tick() => self.write_down().await?,
                entry = lanes.next() => {
                    self.lane_changed(&entry.ok_or("the watch of the lanes has ended")??)?;
                }
                entry = members.next() => {
                    self.member_changed(&entry.ok_or("the watch of the members has ended")??);
                }
                Some(lanes) = self.revocations.join_next() => self.give_up(&lanes?).await?,
            }
            let call = self.core.call();
            if call.over {
                return Ok(());
            }
            if call.write {
                self.write_down().await?;
            }
            if call.reread {
                self.reread().await?;
            }
            self.rebalance().await?;
        }
    }

    async fn beat(&mut self) -> Result<(), BoxError> {
        let now = Instant::now();
        self.roster.forget(now);
        match timeout(self.patience(now), self.show_life()).await {
            Ok(Ok(())) => Ok(()),
            _ if self.core.is_overdue(Instant::now()) => {
                Err("it could not show in time that it is alive".into())
            }
            _ => Ok(()),
        }
    }

    /// How long the server may take to answer: no longer than others believe this member alive for
    /// sure, so that it knows that it has lost its lanes before they have them.
    fn patience(&self, now: Instant) -> Duration {
        let third = self.settings.lease.0 / 3;
        match self.core.certain_for(now) {
            Duration::ZERO => third,
            left => third.min(left),
        }
    }

    async fn show_life(&self) -> Result<(), BoxError> {
        let sent = Instant::now();
        let key = records::member_key(&self.record.name, &self.member);
        self.link.live.put(key, "alive".into()).await?;
        // Others count from when they see it, which is later; the rest is for clocks that differ.
        self.core.certain_until(sent + self.settings.lease.0.mul_f64(0.85));
        Ok(())
    }

    fn lane_changed(&mut self, entry: &Entry) -> Result<(), BoxError> {
        let Ok(lane) = records::last_word(&entry.key).parse::<u32>() else { return Ok(()) };
        if lane >= LANES {
            return Ok(());
        }
        let record = match entry.operation {
            Operation::Put => serde_json::from_slice(&entry.value)?,
            _ => LaneRecord::default(),
        };
        if self.roster.lane_seen(lane, entry.revision, record, Instant::now()) {
            return Err(format!("another member took over lane {lane}").into());
        }
        Ok(())
    }

    fn member_changed(&mut self, entry: &Entry) {
        let member = records::last_word(&entry.key);
        match entry.operation {
            Operation::Put => self.roster.alive(member, Instant::now()),
            _ => self.roster.left(member),
        }
    }

    async fn rebalance(&mut self) -> Result<(), BoxError> {
        let shift = self.roster.shift(Instant::now());
        let give: Vec<u32> =
            shift.give.into_iter().filter(|lane| self.revoking.insert(*lane)).collect();
        if !give.is_empty() {
            tracing::debug!(group = self.record.name, lanes = ?give, "lanes go to others");
            let done = self.core.revoke(give.clone());
            let done = timeout(self.settings.handover_timeout.0, done);
            self.revocations.spawn(done.map(|_| give));
        }
        if shift.take.is_empty() {
            return Ok(());
        }
        self.look_again(&shift.take).await?;
        let taken = try_join_all(shift.take.iter().map(|lane| self.take(*lane))).await?;
        let mut any = false;
        for (lane, revision, record, progress) in taken {
            self.roster.lane_seen(lane, revision, record, Instant::now());
            if let Some(progress) = progress {
                any = true;
                self.owned.insert(lane);
                self.core.own(lane, progress);
            }
        }
        if any { self.reread().await } else { Ok(()) }
    }

    /// Asks where the streams end if a lane claims to be further than they were: they grow.
    async fn look_again(&mut self, lanes: &[u32]) -> Result<(), BoxError> {
        for topic in &mut self.topics {
            let records = lanes.iter().map(|lane| &self.roster.lane(*lane).record);
            let floors = records.filter_map(|record| Some(record.topics.get(&topic.name)?.floor));
            if floors.max().is_some_and(|floor| floor > topic.last) {
                topic.last = topic.stream.get_info().await?.state.last_sequence;
            }
        }
        Ok(())
    }

    /// Tries to make a lane this member's; yields its record, and how far it is if that worked.
    async fn take(
        &self,
        lane: u32,
    ) -> Result<(u32, u64, LaneRecord, Option<Vec<Progress>>), BoxError> {
        let key = records::lane_key(&self.record.name, lane);
        let seen = self.roster.lane(lane);
        let mut record = seen.record.clone();
        record.owner = Some(self.member.clone());
        let progress: Vec<Progress> =
            self.topics.iter().map(|topic| self.progress(&record, topic)).collect();
        for (topic, progress) in self.topics.iter().zip(&progress) {
            record.topics.insert(topic.name.clone(), progress.clone());
        }
        match records::write(&self.link.groups, &key, &record, seen.revision).await? {
            Written::Done(revision) => Ok((lane, revision, record, Some(progress))),
            Written::Beaten => {
                let entry = self.link.groups.entry(key).await?;
                let Some(entry) = entry else { return Ok((lane, 0, LaneRecord::default(), None)) };
                let record = match entry.operation {
                    Operation::Put => serde_json::from_slice(&entry.value)?,
                    _ => LaneRecord::default(),
                };
                Ok((lane, entry.revision, record, None))
            }
        }
    }

    /// How far a lane is in a topic: as its record says, if that is about the stream as it is now.
    fn progress(&self, record: &LaneRecord, topic: &Topic) -> Progress {
        let kept = record.topics.get(&topic.name).filter(|kept| kept.stream == topic.made);
        let begin = self.record.topics.get(&topic.name).filter(|begin| begin.stream == topic.made);
        let mut progress = match (kept, begin) {
            (Some(kept), _) => kept.clone(),
            (None, Some(begin)) => Progress { floor: begin.floor, ..Progress::default() },
            (None, None) => Progress::default(),
        };
        progress.stream = topic.made;
        if progress.floor > topic.last {
            // The server has lost its latest messages; the new ones get their numbers.
            tracing::warn!(
                topic = topic.name,
                floor = progress.floor,
                last = topic.last,
                "the stream ends before what was done of it"
            );
            progress.floor = topic.last;
            progress.done.clear();
        }
        progress
    }

    async fn write_down(&mut self) -> Result<(), BoxError> {
        let lanes: Vec<u32> =
            self.core.dirty().into_iter().filter(|lane| self.owned.contains(lane)).collect();
        self.write(&lanes, true).await
    }

    async fn give_up(&mut self, lanes: &[u32]) -> Result<(), BoxError> {
        self.write(lanes, false).await?;
        self.reread().await
    }

    /// Writes the records of lanes, either as still owned or as free from now on.
    async fn write(&mut self, lanes: &[u32], owned: bool) -> Result<(), BoxError> {
        let mut records = Vec::with_capacity(lanes.len());
        for &lane in lanes {
            // Of a lane that is given up nothing more is done after what is written.
            let (progress, waiting) = self.core.progress(lane, owned);
            if !owned {
                self.owned.remove(&lane);
                self.revoking.remove(&lane);
            }
            let seen = self.roster.lane(lane);
            let mut record = seen.record.clone();
            record.owner = owned.then(|| self.member.clone());
            for (topic, progress) in progress {
                let topic = &self.topics[topic];
                let progress = Progress { stream: topic.made, ..progress };
                record.topics.insert(topic.name.clone(), progress);
            }
            records.push((lane, record, seen.revision, waiting));
        }
        let (name, store) = (&self.record.name, &self.link.groups);
        let written =
            join_all(records.into_iter().map(async |(lane, record, revision, waiting)| {
                let key = records::lane_key(name, lane);
                let written = records::write(store, &key, &record, revision).await;
                (lane, record, waiting, written)
            }));
        for (lane, record, waiting, written) in written.await {
            match written {
                Ok(Written::Done(revision)) => {
                    // Whoever of us wrote, it is as it should be.
                    self.roster.lane_seen(lane, revision, record, Instant::now());
                    for (_, answer) in waiting {
                        let _ = answer.send(antiphon_messaging::Settled::Confirmed);
                    }
                }
                Ok(Written::Beaten) => {
                    return Err(format!("another member took over lane {lane}").into());
                }
                Err(error) if owned => {
                    tracing::warn!(lane, %error, "it could not be written what is done");
                    self.core.soil(lane);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes the consumers that read what this member owns: one for everything, or one per lane.
    async fn reread(&mut self) -> Result<(), BoxError> {
        let (gone, from) = self.core.reread();
        self.forget(gone);
        let mut wanted = Vec::new();
        for (topic, from) in from.iter().enumerate() {
            let all: Option<Vec<u64>> = from.iter().copied().collect();
            match all.and_then(|all| all.into_iter().min()) {
                Some(least) => wanted.push((topic, None, least)),
                None => {
                    let lanes = (0..LANES).zip(from);
                    wanted.extend(
                        lanes.filter_map(|(lane, from)| Some((topic, Some(lane), (*from)?))),
                    );
                }
            }
        }
        let first = self.readers_made;
        self.readers_made += u64::try_from(wanted.len()).unwrap_or(0);
        let made = (first..)
            .zip(wanted)
            .map(|(number, (topic, lane, from))| self.reader(number, topic, lane, from));
        let readers = try_join_all(made).await?;
        self.core.read_with(readers);
        Ok(())
    }

    async fn reader(
        &self,
        number: u64,
        topic: usize,
        lane: Option<u32>,
        from: u64,
    ) -> Result<Reader, BoxError> {
        let Topic { stream, name, .. } = &self.topics[topic];
        let consumer = format!("{}-{}-{number}", names::escaped(&self.record.name), self.member);
        let config = pull::Config {
            name: Some(consumer.clone()),
            description: Some(format!("antiphon group {}", self.record.name)),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from + 1 },
            ack_policy: AckPolicy::None,
            filter_subject: lane.map(|lane| names::subject(name, lane)).unwrap_or_default(),
            inactive_threshold: READER_IDLE_MAX,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        stream.create_consumer(config).await?;
        let reply = format!("{}.{number}", self.core.inbox);
        let pull = Pull::new(&names::escaped(name), &consumer, reply);
        Ok(Reader::new(pull, consumer, topic, lane))
    }

    /// Removes consumers that nobody reads from any more; the server would do it by itself later.
    fn forget(&self, consumers: Vec<String>) {
        if consumers.is_empty() {
            return;
        }
        let streams: Vec<Stream> = self.topics.iter().map(|topic| topic.stream.clone()).collect();
        spawn(async move {
            for stream in &streams {
                for consumer in &consumers {
                    let _ = stream.delete_consumer(consumer).await;
                }
            }
        });
    }

    /// Lets others take over at once.
    async fn leave(&mut self) {
        let lanes: Vec<u32> = self.owned.iter().copied().collect();
        if let Err(error) = self.write(&lanes, false).await {
            tracing::warn!(group = self.record.name, %error, "lanes are free after their lease only");
        }
        let key = records::member_key(&self.record.name, &self.member);
        let _ = self.link.live.delete(key).await;
        let (gone, _) = self.core.reread();
        self.forget(gone);
    }
}
