//! What a member of an ordered group does beside handing out messages: it shows that it is alive, looks
//! at who else is, takes and gives lanes, and writes down what is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxError;
use antiphon_messaging::{LANES, Settled, shift};
use futures_util::FutureExt;
use redis::{RedisError, Value};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use crate::connection::Link;
use crate::member::{self, BLOCK, Core, OrderedSource, Progress};
use crate::names::Names;
use crate::scripts;
use crate::settings::Settings;
use crate::topology::GroupRecord;

/// How often the others are looked at, and what is done is written.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Who is alive, and who owns which lane, as the server says.
#[derive(Debug, Default)]
struct Roster {
    members: Vec<String>,
    owners: Vec<String>,
}

/// See the module.
struct Keeper {
    core: Arc<Core>,
    link: Arc<Link>,
    names: Names,
    settings: Arc<Settings>,
    group: String,
    member: String,
    /// Where the group begins in each topic.
    floors: Vec<u64>,
    roster: Roster,
    owned: BTreeSet<u32>,
    revoking: BTreeSet<u32>,
    /// Lanes that are given up, when the engine is done with them or its time is up.
    revocations: JoinSet<Vec<u32>>,
}

/// Joins an ordered group.
pub(crate) async fn join(
    link: Arc<Link>,
    settings: Arc<Settings>,
    group: String,
    record: &GroupRecord,
    topics: Vec<String>,
) -> Result<OrderedSource, BoxError> {
    let names = Names::new(&settings.prefix);
    let floors = topics.iter().map(|topic| record.topics.get(topic).copied().unwrap_or(0));
    let floors = floors.collect();
    let core = Core::new(Arc::clone(&link), names.clone(), topics, settings.read_ahead);
    let mut keeper = Keeper {
        core: Arc::clone(&core),
        link: Arc::clone(&link),
        names,
        settings,
        group,
        member: uuid::Uuid::now_v7().to_string(),
        floors,
        roster: Roster::default(),
        owned: BTreeSet::new(),
        revoking: BTreeSet::new(),
        revocations: JoinSet::new(),
    };
    // Made first: if anything goes wrong from here on, dropping it ends the others.
    let source = OrderedSource::new(Arc::clone(&core));
    let connection = link.blocking(BLOCK).await?;
    keeper.look().await?;
    keeper.rebalance().await?;
    tokio::spawn(member::read(core, connection));
    tokio::spawn(keeper.run());
    Ok(source)
}

impl Keeper {
    async fn run(mut self) {
        if let Err(why) = self.keep().await {
            self.core.lose(why.to_string());
        }
        if !self.link.is_lost()
            && let Err(error) = self.leave().await
        {
            tracing::warn!(group = self.group, %error, "lanes are free after their lease only");
        }
        self.core.left.send_replace(true);
    }

    /// Until the member leaves, or cannot go on.
    async fn keep(&mut self) -> Result<(), BoxError> {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let link = Arc::clone(&self.link);
        loop {
            tokio::select! {
                why = link.lost() => return Err(why.into()),
                () = self.core.bell.notified() => {}
                _ = looks.tick() => {
                    match timeout(self.patience(), self.look()).await {
                        Ok(looked) => looked?,
                        Err(_) if self.core.is_overdue(Instant::now()) => {
                            return Err("it could not show in time that it is alive".into());
                        }
                        Err(_) => continue,
                    }
                }
                Some(lanes) = self.revocations.join_next() => self.write(&lanes?, false).await?,
            }
            if self.core.is_over() {
                return Ok(());
            }
            let dirty: Vec<u32> =
                self.core.dirty().into_iter().filter(|lane| self.owned.contains(lane)).collect();
            self.write(&dirty, true).await?;
            if !self.core.is_closing() {
                self.rebalance().await?;
            }
        }
    }

    /// How long the server may take to answer: no longer than the leases last for sure, so that the
    /// member knows that it has lost its lanes before others have them.
    fn patience(&self) -> Duration {
        let third = self.settings.lease.0 / 3;
        match self.core.certain_for(Instant::now()) {
            Duration::ZERO => third,
            left => third.min(left),
        }
    }

    /// Shows that the member is alive, renews its leases, and looks at the others.
    async fn look(&mut self) -> Result<(), BoxError> {
        let sent = Instant::now();
        let mut call = scripts::ROSTER.prepare_invoke();
        call.key(self.names.members(&self.group));
        for lane in 0..LANES {
            call.key(self.names.lease(&self.group, lane));
        }
        call.arg(&self.member).arg(millis(self.settings.lease.0));
        let (members, owners): (Vec<String>, Vec<String>) =
            call.invoke_async(&mut self.link.control()).await.inspect_err(|e| self.link.heed(e))?;
        for lane in &self.owned {
            if owners.get(*lane as usize) != Some(&self.member) {
                return Err(format!("lane {lane} is not its own any more").into());
            }
        }
        // The server counts from later on; the rest is for clocks that differ.
        self.core.certain_until(sent + self.settings.lease.0.mul_f64(0.85));
        self.roster = Roster { members, owners };
        Ok(())
    }

    async fn rebalance(&mut self) -> Result<(), BoxError> {
        let mut living: BTreeSet<&str> = self.roster.members.iter().map(String::as_str).collect();
        living.insert(&self.member);
        let owners = &self.roster.owners;
        let mine = |lane: u32| self.owned.contains(&lane).then_some(self.member.as_str());
        // A lease outlives its member by a little; only the server ends it.
        let others = |lane: u32| {
            let owner = owners.get(lane as usize).map(String::as_str);
            owner.filter(|owner| !owner.is_empty() && *owner != self.member)
        };
        let shift = shift(&self.member, &living, |lane| mine(lane).or_else(|| others(lane)));
        let give: Vec<u32> =
            shift.give.into_iter().filter(|lane| self.revoking.insert(*lane)).collect();
        if !give.is_empty() {
            tracing::debug!(group = self.group, lanes = ?give, "lanes go to others");
            let done = timeout(self.settings.handover_timeout.0, self.core.revoke(give.clone()));
            self.revocations.spawn(done.map(|_| give));
        }
        for lane in shift.take {
            if let Some(progress) = self.take(lane).await? {
                self.owned.insert(lane);
                self.core.own(lane, progress);
            }
        }
        Ok(())
    }

    /// Takes a lane, if nobody has it; yields how far it is.
    async fn take(&self, lane: u32) -> Result<Option<Vec<Progress>>, BoxError> {
        let mut call = scripts::TAKE_LANE.prepare_invoke();
        call.key(self.names.lease(&self.group, lane)).key(self.names.lane(&self.group, lane));
        call.arg(&self.member).arg(millis(self.settings.lease.0));
        let taken: Option<BTreeMap<String, String>> =
            call.invoke_async(&mut self.link.control()).await.inspect_err(|e| self.link.heed(e))?;
        let Some(kept) = taken else { return Ok(None) };
        let topics = self.core.topics.iter().zip(&self.floors);
        let progress = topics.map(|(topic, floor)| match kept.get(topic) {
            Some(text) => serde_json::from_str(text),
            None => Ok(Progress { floor: *floor, ..Progress::default() }),
        });
        Ok(Some(progress.collect::<Result<_, _>>()?))
    }

    /// Writes how far lanes are, as still owned or as free from now on.
    async fn write(&mut self, lanes: &[u32], owned: bool) -> Result<(), BoxError> {
        if lanes.is_empty() {
            return Ok(());
        }
        let mut call = scripts::WRITE_LANES.prepare_invoke();
        call.arg(&self.member).arg(u8::from(!owned));
        let mut waiting = Vec::new();
        for &lane in lanes {
            call.key(self.names.lease(&self.group, lane)).key(self.names.lane(&self.group, lane));
            // Of a lane that is given up nothing more is done after what is written.
            let (progress, answers) = self.core.progress(lane, owned);
            if !owned {
                self.owned.remove(&lane);
                self.revoking.remove(&lane);
            }
            call.arg(progress.len());
            for (topic, progress) in progress {
                call.arg(&self.core.topics[topic]).arg(serde_json::to_string(&progress)?);
            }
            waiting.extend(answers);
        }
        let written: Result<Vec<u8>, RedisError> =
            call.invoke_async(&mut self.link.control()).await;
        match written {
            Ok(written) => {
                let lost = lanes.iter().zip(written).find(|(_, written)| *written == 0);
                if let Some((lane, _)) = lost {
                    return Err(format!("lane {lane} is not its own any more").into());
                }
                for (_, answer) in waiting {
                    let _ = answer.send(Settled::Confirmed);
                }
                Ok(())
            }
            Err(error) => {
                self.link.heed(&error);
                if !owned {
                    return Err(error.into());
                }
                tracing::warn!(%error, "it could not be written what is done");
                lanes.iter().for_each(|lane| self.core.soil(*lane));
                Ok(())
            }
        }
    }

    /// Lets others take over at once.
    async fn leave(&mut self) -> Result<(), BoxError> {
        let lanes: Vec<u32> = self.owned.iter().copied().collect();
        let written = self.write(&lanes, false).await;
        let mut forget = redis::cmd("ZREM");
        forget.arg(self.names.members(&self.group)).arg(&self.member);
        forget.query_async::<()>(&mut self.link.control()).await?;
        written
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How far all lanes of a group are in a topic, for whoever counts or trims.
pub(crate) async fn floors(
    link: &Link,
    names: &Names,
    group: &str,
    topic: &str,
    begin: u64,
) -> Result<Vec<Progress>, BoxError> {
    let mut pipe = redis::pipe();
    for lane in 0..LANES {
        pipe.cmd("HGET").arg(names.lane(group, lane)).arg(topic);
    }
    let kept: Vec<Value> = pipe.query_async(&mut link.control()).await?;
    let progress = kept.into_iter().map(|kept| -> Result<Progress, BoxError> {
        match kept {
            Value::BulkString(text) => Ok(serde_json::from_slice(&text)?),
            _ => Ok(Progress { floor: begin, ..Progress::default() }),
        }
    });
    progress.collect()
}
