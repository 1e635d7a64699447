//! The operator's view: topics, groups with what they have not handled, and what a person should know
//! of the server.

use std::collections::BTreeMap;
use std::sync::Arc;

use antiphon_config::without_login;
use antiphon_core::{BoxError, BoxFuture, Finding};
use antiphon_messaging::{GroupState, LANES, Operate, OperateError, TopicState};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::Stream;
use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt};
use std::time::Duration;
use tokio::time::Instant;

use crate::broker::Shared;
use crate::connection::{self, Link};
use crate::error::OpenError;
use crate::records::{self, GroupRecord, LaneRecord, Mode, Progress};
use crate::settings::Settings;
use crate::{names, topology};

/// See the module.
pub(crate) struct Operator(pub(crate) Arc<Shared>);

impl Operate for Operator {
    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicState>, OperateError>> {
        Box::pin(async move {
            let failed = |source| OperateError { action: "listing the topics", source };
            topics(&*self.link().await.map_err(failed)?).await.map_err(failed)
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupState>, OperateError>> {
        Box::pin(async move {
            let failed = |source| OperateError { action: "listing the groups", source };
            groups(&*self.link().await.map_err(failed)?).await.map_err(failed)
        })
    }

    fn findings(&self) -> BoxFuture<'_, Vec<Finding>> {
        Box::pin(async move {
            match self.link().await {
                Ok(link) => findings(&link, &self.0.settings).await,
                // What hinders it is best said by trying.
                Err(_) => match connection::connect(&self.0.settings).await {
                    Ok(link) => findings(&link, &self.0.settings).await,
                    Err(error) => vec![unreachable(&self.0.settings, &error)],
                },
            }
        })
    }
}

impl Operator {
    async fn link(&self) -> Result<Arc<Link>, BoxError> {
        let deadline = Instant::now() + self.0.settings.connect_timeout.0;
        let link = self.0.supervisor.by(deadline).await;
        link.ok_or_else(|| "there is no connection to the NATS server".into())
    }
}

async fn topics(link: &Link) -> Result<Vec<TopicState>, BoxError> {
    let mut found: Vec<TopicState> = Vec::new();
    let mut streams = link.jetstream.streams();
    while let Some(info) = streams.try_next().await? {
        if let Some(topic) = names::topic_of(info.config.description.as_deref()) {
            found.push(TopicState { name: topic.to_owned(), messages: Some(info.state.messages) });
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

async fn groups(link: &Link) -> Result<Vec<GroupState>, BoxError> {
    let mut found = Vec::new();
    for entry in records::list(&link.groups, "g.*").await? {
        let record: GroupRecord = serde_json::from_slice(&entry.value)?;
        let state = match record.mode {
            Mode::Ordered => ordered(link, &record).await?,
            Mode::Shared => shared(link, &record).await,
        };
        found.push(state);
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

fn state_of(record: &GroupRecord) -> GroupState {
    let topics = record.topics.keys().cloned().collect();
    GroupState { name: record.name.clone(), topics, ..GroupState::default() }
}

/// A group whose members share consumers: those know.
async fn shared(link: &Link, record: &GroupRecord) -> GroupState {
    let name = names::escaped(&record.name);
    let mut lag = Some(0);
    for topic in record.topics.keys() {
        let info = match topology::stream(link, topic).await {
            Ok(stream) => stream.consumer_info(&name).await.ok(),
            Err(_) => None,
        };
        let open = info.map(|info| info.num_pending + info.num_ack_pending as u64);
        lag = lag.zip(open).map(|(lag, open)| lag + open);
    }
    // A waiting retry and a message in somebody's hands look the same, and members come and go
    // without a word.
    GroupState { lag, ..state_of(record) }
}

/// A group with lanes: what lies beyond what their records say is done.
async fn ordered(link: &Link, record: &GroupRecord) -> Result<GroupState, BoxError> {
    let name = names::escaped(&record.name);
    let mut lanes: BTreeMap<u32, LaneRecord> = BTreeMap::new();
    for entry in records::list(&link.groups, &format!("l.{name}.*")).await? {
        if let Ok(lane) = records::last_word(&entry.key).parse() {
            lanes.insert(lane, serde_json::from_slice(&entry.value)?);
        }
    }
    let members = records::list(&link.live, &format!("m.{name}.*")).await?.len();
    let mut lag = Some(0);
    for topic in record.topics.keys() {
        let Ok(stream) = topology::stream(link, topic).await else {
            lag = None;
            continue;
        };
        let made = topology::made(&stream);
        let counts = (0..LANES)
            .map(|lane| open_in(&stream, topic, lane, progress(record, &lanes, topic, made, lane)));
        let open: u64 = try_join_all(counts).await?.into_iter().sum();
        lag = lag.map(|lag| lag + open);
    }
    Ok(GroupState { lag, members: u32::try_from(members).ok(), ..state_of(record) })
}

fn progress(
    record: &GroupRecord,
    lanes: &BTreeMap<u32, LaneRecord>,
    topic: &str,
    made: i128,
    lane: u32,
) -> Progress {
    let kept = lanes.get(&lane).and_then(|record| record.topics.get(topic));
    if let Some(kept) = kept.filter(|kept| kept.stream == made) {
        return kept.clone();
    }
    let begin = record.topics.get(topic).filter(|begin| begin.stream == made);
    Progress { floor: begin.map_or(0, |begin| begin.floor), ..Progress::default() }
}

/// How many messages of a lane are not done: the server counts when it makes a consumer, which is
/// removed at once.
async fn open_in(
    stream: &Stream,
    topic: &str,
    lane: u32,
    progress: Progress,
) -> Result<u64, BoxError> {
    let config = pull::Config {
        name: Some(format!("count-{}", uuid::Uuid::new_v4())),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: progress.floor + 1 },
        ack_policy: AckPolicy::None,
        filter_subject: names::subject(topic, lane),
        inactive_threshold: Duration::from_secs(5),
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await?;
    let info = consumer.cached_info();
    let _ = stream.delete_consumer(&info.name).await;
    Ok(info.num_pending.saturating_sub(progress.done.len() as u64))
}

fn unreachable(settings: &Settings, error: &OpenError) -> Finding {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(one) = cause {
        text = format!("{text}: {one}");
        cause = one.source();
    }
    let advice = match error {
        OpenError::Unreachable { .. } => "start the server, or correct `url`",
        OpenError::Credentials { .. } => "correct the user, password, token or credentials file",
        OpenError::Tls { .. } => "check `ca_file` and the server's certificate",
        OpenError::TooOld { .. } => "use a server of at least 2.9",
        OpenError::NoJetStream { .. } => "start the server with -js",
        OpenError::Settings(_) | OpenError::Server { .. } => "see the server's log",
    };
    Finding::problem(format!("NATS {}", without_login(&settings.url)), text, advice)
}

async fn findings(link: &Link, settings: &Settings) -> Vec<Finding> {
    let info = link.client.server_info();
    let mut found = vec![Finding::fine(
        "connection",
        format!("NATS {} at {}", info.server_name, without_login(&settings.url)),
    )];
    let version = connection::version(&info.version);
    found.push(if version < (2, 10, 0) {
        Finding::note(
            "version",
            format!("{}; 2.10 and later are faster with many consumers", info.version),
        )
    } else {
        Finding::fine("version", info.version.clone())
    });
    found.push(durability(settings));
    if info.cluster.is_some() && settings.replicas == 1 {
        found.push(Finding::warning(
            "replicas",
            "the server is part of a cluster, and each message is kept by one server only",
            "set `replicas = 3` before topics are made",
        ));
    }
    if !settings.url.contains("tls://") && !is_local(&settings.url) {
        found.push(Finding::warning(
            "TLS",
            "the connection to another machine is not encrypted",
            "use tls:// in `url`",
        ));
    }
    account(link, &mut found).await;
    streams(link, settings, &mut found).await;
    found
}

fn is_local(url: &str) -> bool {
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| url.contains(host))
}

fn durability(settings: &Settings) -> Finding {
    match (settings.replicas, settings.sync_always) {
        (2.., _) => Finding::fine(
            "durability",
            format!("{} servers have each message before it is confirmed", settings.replicas),
        ),
        (_, true) => Finding::fine("durability", "the settings say sync_interval: always"),
        _ => Finding::warning(
            "durability",
            "a message is confirmed before it is on the disk: the server syncs every two minutes \
             unless it is told otherwise",
            "set `sync_interval: always` in the server's jetstream block and `sync_always = true` \
             here, or use three replicas",
        ),
    }
}

async fn account(link: &Link, found: &mut Vec<Finding>) {
    let account = match topology::account(&link.client).await {
        Ok(account) => account,
        Err(error) => {
            let advice = "see the server's log";
            found.push(Finding::problem("JetStream", error.to_string(), advice));
            return;
        }
    };
    let (used, limit) = (account.storage, account.limits.max_storage);
    found.push(match u64::try_from(limit).ok() {
        Some(limit) if limit > 0 && used > limit / 10 * 9 => Finding::warning(
            "storage",
            format!("{used} of {limit} bytes are used"),
            "raise max_file_store, or shorten `max_age`",
        ),
        _ => Finding::fine("storage", format!("{used} bytes are used")),
    });
}

/// The streams of topics, against the settings.
async fn streams(link: &Link, settings: &Settings, found: &mut Vec<Finding>) {
    let mut streams = link.jetstream.streams();
    while let Some(info) = streams.next().await {
        let info = match info {
            Ok(info) => info,
            Err(error) => {
                let advice = "see the server's log";
                found.push(Finding::problem("streams", error.to_string(), advice));
                return;
            }
        };
        let Some(topic) = names::topic_of(info.config.description.as_deref()) else { continue };
        if let Some(difference) = topology::different(settings, topic, &info.config) {
            found.push(Finding::problem(
                format!("topic {topic}"),
                difference,
                format!("change the settings, or `nats stream edit {}`", info.config.name),
            ));
        }
    }
}
