//! Removing messages that are old enough and that every group has handled. Never anything else: Redis
//! would remove what is still in somebody's hands.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_core::BoxError;
use redis::Value;
use redis::aio::MultiplexedConnection;

use crate::connection::{Declared, Link};
use crate::keeper;
use crate::names::Names;
use crate::settings::Settings;
use crate::topology;
use crate::wire;

/// How often it is looked for something to remove.
const TRIM_EVERY: Duration = Duration::from_secs(10);

/// Removes what nobody needs of the topics that were declared, for as long as the connection lasts.
pub(crate) async fn keep_trimming(link: &Link, settings: &Settings, declared: &Declared) {
    let names = Names::new(&settings.prefix);
    let every = (settings.retention.0 / 4).clamp(Duration::from_millis(100), TRIM_EVERY);
    loop {
        // Processes begin at different moments, so that not all of them look at the same time.
        tokio::time::sleep(every.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
        let topics = declared.lock().topics.clone();
        let trimmed = trim(link, settings, &names, &topics).await;
        if let Err(error) = trimmed {
            tracing::warn!(%error, "old messages are not removed");
        }
    }
}

async fn trim(
    link: &Link,
    settings: &Settings,
    names: &Names,
    topics: &[String],
) -> Result<(), BoxError> {
    let mut control = link.control();
    let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(&mut control).await?;
    let now = seconds * 1_000 + micros / 1_000;
    let retention = u64::try_from(settings.retention.0.as_millis()).unwrap_or(u64::MAX);
    let old = wire::at_millis(now.saturating_sub(retention));
    let groups = topology::groups(&mut control, names).await?;
    for topic in topics {
        let mut bound = old;
        for (group, record) in &groups {
            let Some(begin) = record.topics.get(topic) else { continue };
            let needed = match record.ordered {
                true => ordered(link, names, group, topic, *begin).await?,
                false => shared(&mut control, names, group, topic).await?,
            };
            bound = bound.min(needed);
        }
        let mut command = redis::cmd("XTRIM");
        command.arg(names.stream(topic)).arg("MINID").arg(wire::id(bound));
        let removed: u64 = command.query_async(&mut control).await?;
        if removed > 0 {
            tracing::debug!(topic, removed, "old messages removed");
        }
    }
    Ok(())
}

/// The first place that an ordered group still needs.
async fn ordered(
    link: &Link,
    names: &Names,
    group: &str,
    topic: &str,
    begin: u64,
) -> Result<u64, BoxError> {
    let lanes = keeper::floors(link, names, group, topic, begin).await?;
    let least = lanes.iter().map(|progress| progress.floor).min().unwrap_or(begin);
    Ok(least.saturating_add(1))
}

/// The first place that the consumers of a group still need; zero when nobody knows.
async fn shared(
    control: &mut MultiplexedConnection,
    names: &Names,
    group: &str,
    topic: &str,
) -> Result<u64, BoxError> {
    let Some(info) = consumer_group(control, names, group, topic).await? else { return Ok(0) };
    let mut ask = redis::cmd("XPENDING");
    ask.arg(names.stream(topic)).arg(group);
    let pending: Vec<Value> = ask.query_async(control).await?;
    let first = pending.into_iter().nth(1).unwrap_or_default();
    let first: Option<String> = redis::from_redis_value(first)?;
    let place = |id: &str| wire::position(id).unwrap_or(0);
    Ok(match first {
        Some(first) => place(&first),
        None => place(&info.last).saturating_add(1),
    })
}

/// What the server knows of a consumer group.
pub(crate) struct ConsumerGroup {
    /// The id of the last message that was delivered.
    pub(crate) last: String,
    pub(crate) pending: u64,
    /// How many were not delivered, if the server can say.
    pub(crate) lag: Option<u64>,
}

/// Asks for a consumer group; `None` when it does not exist.
pub(crate) async fn consumer_group(
    control: &mut MultiplexedConnection,
    names: &Names,
    group: &str,
    topic: &str,
) -> Result<Option<ConsumerGroup>, BoxError> {
    let mut ask = redis::cmd("XINFO");
    ask.arg("GROUPS").arg(names.stream(topic));
    let all: Vec<BTreeMap<String, Value>> = match ask.query_async(control).await {
        Ok(all) => all,
        Err(error) if topology::is_gone(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    for mut info in all {
        let mut take = |name: &str| info.remove(name).unwrap_or_default();
        let name: String = redis::from_redis_value(take("name"))?;
        if name == group {
            return Ok(Some(ConsumerGroup {
                last: redis::from_redis_value(take("last-delivered-id"))?,
                pending: redis::from_redis_value(take("pending"))?,
                lag: redis::from_redis_value(take("lag"))?,
            }));
        }
    }
    Ok(None)
}
