//! The operator's view: topics, groups with what they have not handled, and what a person should know
//! of the server.

use std::sync::Arc;

use antiphon_config::without_login;
use antiphon_core::{BoxError, BoxFuture, Finding};
use antiphon_messaging::{Durability, GroupState, Operate, OperateError, TopicState};
use redis::Value;
use tokio::time::Instant;

use crate::broker::{Shared, durability};
use crate::connection::{self, Link};
use crate::error::OpenError;
use crate::names::Names;
use crate::settings::Settings;
use crate::topology::{self, GroupRecord};
use crate::{keeper, scripts, trim, wire};

/// How many entries are counted in one go.
const COUNT_MAX: usize = 1_000;

/// See the module.
pub(crate) struct Operator(pub(crate) Arc<Shared>);

impl Operate for Operator {
    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicState>, OperateError>> {
        Box::pin(async move {
            let failed = |source| OperateError { action: "listing the topics", source };
            topics(&*self.link().await.map_err(failed)?, &self.0.names).await.map_err(failed)
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupState>, OperateError>> {
        Box::pin(async move {
            let failed = |source| OperateError { action: "listing the groups", source };
            groups(&*self.link().await.map_err(failed)?, &self.0.names).await.map_err(failed)
        })
    }

    fn findings(&self) -> BoxFuture<'_, Vec<Finding>> {
        Box::pin(async move {
            // What the server is and how it is set may have changed since the last connection.
            match connection::connect(&self.0.settings).await {
                Ok(link) => findings(&link, &self.0.settings).await,
                Err(error) => vec![refusal(&self.0.settings, &error)],
            }
        })
    }
}

impl Operator {
    async fn link(&self) -> Result<Arc<Link>, BoxError> {
        let deadline = Instant::now() + self.0.settings.connect_timeout.0;
        let link = self.0.supervisor.by(deadline).await;
        link.ok_or_else(|| "there is no connection to the Redis server".into())
    }
}

async fn topics(link: &Link, names: &Names) -> Result<Vec<TopicState>, BoxError> {
    let mut control = link.control();
    let mut all: Vec<String> =
        redis::cmd("SMEMBERS").arg(names.topics()).query_async(&mut control).await?;
    all.sort();
    let mut found = Vec::with_capacity(all.len());
    for name in all {
        let mut count = redis::cmd("XLEN");
        count.arg(names.stream(&name));
        let messages = count.query_async::<u64>(&mut control).await.ok();
        found.push(TopicState { name, messages });
    }
    Ok(found)
}

async fn groups(link: &Link, names: &Names) -> Result<Vec<GroupState>, BoxError> {
    let mut control = link.control();
    let all = topology::groups(&mut control, names).await?;
    let mut found = Vec::with_capacity(all.len());
    for (name, record) in all {
        let mut count = redis::cmd("ZCARD");
        count.arg(names.members(&name));
        let members = count.query_async::<u32>(&mut control).await.ok();
        let (lag, waiting) = match record.ordered {
            true => (ordered_lag(link, names, &name, &record).await?, None),
            false => shared_lag(link, names, &name, &record).await?,
        };
        let topics = record.topics.into_keys().collect();
        found.push(GroupState { name, topics, members, lag, waiting });
    }
    Ok(found)
}

/// What the consumer groups of a group have not acknowledged, and how much of it waits.
async fn shared_lag(
    link: &Link,
    names: &Names,
    group: &str,
    record: &GroupRecord,
) -> Result<(Option<u64>, Option<u64>), BoxError> {
    let mut control = link.control();
    let (mut lag, mut waiting) = (Some(0), Some(0));
    for topic in record.topics.keys() {
        let info = trim::consumer_group(&mut control, names, group, topic).await?;
        let open = match info {
            Some(info) => match info.lag {
                Some(lag) => Some(lag + info.pending),
                // After a removal in the middle the server cannot say.
                None => Some(after(link, names, topic, &info.last).await? + info.pending),
            },
            None => None,
        };
        lag = lag.zip(open).map(|(lag, open)| lag + open);
        let (seconds, _): (u64, u64) = redis::cmd("TIME").query_async(&mut control).await?;
        let mut count = redis::cmd("ZCOUNT");
        count.arg(names.back(group, topic)).arg(seconds * 1_000).arg("+inf");
        let later: u64 = count.query_async(&mut control).await?;
        waiting = waiting.map(|waiting| waiting + later);
    }
    Ok((lag, waiting))
}

/// How many entries come after an id.
async fn after(link: &Link, names: &Names, topic: &str, id: &str) -> Result<u64, BoxError> {
    let from = wire::position(id).unwrap_or(0);
    Ok(count(link, names, topic, &[from; LANES]).await?.into_iter().sum())
}

const LANES: usize = antiphon_messaging::LANES as usize;

/// What lies beyond what the records of the lanes say is done.
async fn ordered_lag(
    link: &Link,
    names: &Names,
    group: &str,
    record: &GroupRecord,
) -> Result<Option<u64>, BoxError> {
    let mut lag: u64 = 0;
    for (topic, begin) in &record.topics {
        let lanes = keeper::floors(link, names, group, topic, *begin).await?;
        let mut floors = [0; LANES];
        for (floor, progress) in floors.iter_mut().zip(&lanes) {
            *floor = progress.floor;
        }
        let counts = count(link, names, topic, &floors).await?;
        for (open, progress) in counts.into_iter().zip(&lanes) {
            lag += open.saturating_sub(progress.done.len() as u64);
        }
    }
    Ok(Some(lag))
}

/// Counts at the server, lane by lane, what lies above the floors.
async fn count(
    link: &Link,
    names: &Names,
    topic: &str,
    floors: &[u64; LANES],
) -> Result<Vec<u64>, BoxError> {
    let mut counts = vec![0; LANES];
    let mut from = Some(wire::id(floors.iter().copied().min().unwrap_or(0)));
    while let Some(after) = from.take() {
        let mut call = scripts::COUNT.prepare_invoke();
        call.key(names.stream(topic)).arg(after).arg(COUNT_MAX);
        for floor in floors {
            let id = wire::id(*floor);
            let (millis, number) = id.split_once('-').unwrap_or((&id, "0"));
            call.arg(millis).arg(number);
        }
        let answer: Value = call.invoke_async(&mut link.control()).await?;
        let (last, some): (Option<String>, Vec<u64>) = redis::from_redis_value(answer)?;
        for (count, more) in counts.iter_mut().zip(some) {
            *count += more;
        }
        from = last;
    }
    Ok(counts)
}

fn refusal(settings: &Settings, error: &OpenError) -> Finding {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(one) = cause {
        text = format!("{text}: {one}");
        cause = one.source();
    }
    let advice = match error {
        OpenError::Unreachable { .. } => "start the server, or correct `url`",
        OpenError::Credentials { .. } => "correct the user and password",
        OpenError::Tls { .. } => "check `ca_file`, the server's certificate and the port",
        OpenError::TooOld { .. } => "use a server of at least 7.0",
        OpenError::Replica { .. } => "connect to the primary",
        OpenError::Evicts { .. } => "set `maxmemory-policy noeviction`",
        OpenError::Settings(_) | OpenError::Server { .. } => "see the server's log",
    };
    Finding::problem(format!("Redis {}", without_login(&settings.url)), text, advice)
}

async fn findings(link: &Link, settings: &Settings) -> Vec<Finding> {
    let facts = &link.facts;
    let at = without_login(&settings.url);
    let mut found = vec![
        Finding::fine("connection", format!("Redis at {at}")),
        Finding::fine("version", facts.version.clone()),
        durable(link),
        memory(link),
    ];
    if !settings.server().is_tls()
        && !["127.0.0.1", "localhost", "[::1]"].iter().any(|here| at.contains(here))
    {
        found.push(Finding::warning(
            "TLS",
            "the connection to another machine is not encrypted",
            "use rediss:// in `url`",
        ));
    }
    if facts.get("cluster_enabled") == Some("1") {
        found.push(Finding::problem(
            "cluster",
            "the server is part of a Redis cluster, and groups use keys of several slots",
            "use a server that is no cluster, or a primary with replicas",
        ));
    }
    if facts.get("rdb_last_bgsave_status").is_some_and(|status| status != "ok") {
        found.push(Finding::problem(
            "disk",
            "the last snapshot could not be written",
            "see the server's log; the disk may be full",
        ));
    }
    found
}

fn durable(link: &Link) -> Finding {
    let fsync = link.facts.get("appendfsync").unwrap_or("unknown");
    match durability(&link.facts) {
        Durability::Disk | Durability::Quorum => {
            Finding::fine("durability", "every message is on the disk before it is confirmed")
        }
        Durability::PageCache => Finding::warning(
            "durability",
            format!("a message is confirmed before it is on the disk: appendfsync is {fsync}"),
            "set `appendfsync always`, or live with the loss of a second when the power fails",
        ),
        Durability::Memory => Finding::warning(
            "durability",
            "the server keeps messages in memory; what came after the last snapshot is lost when it ends",
            "set `appendonly yes` and `appendfsync always`",
        ),
    }
}

fn memory(link: &Link) -> Finding {
    let number = |name: &str| link.facts.get(name).and_then(|text| text.parse::<u64>().ok());
    let used = number("used_memory").unwrap_or(0);
    match number("maxmemory") {
        Some(limit) if limit > 0 && used > limit / 10 * 9 => Finding::warning(
            "memory",
            format!("{used} of {limit} bytes are used; when it is full nothing can be published"),
            "raise maxmemory, shorten `retention`, or see which group has fallen behind",
        ),
        Some(limit) if limit > 0 => {
            Finding::fine("memory", format!("{used} of {limit} bytes are used"))
        }
        _ => Finding::note("memory", format!("{used} bytes are used, and there is no maxmemory")),
    }
}
