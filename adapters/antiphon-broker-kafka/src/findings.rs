//! What a person should know of the cluster and its settings.

use std::sync::Arc;

use antiphon_config::HumanDuration;
use antiphon_core::Finding;
use rdkafka::admin::{ConfigEntry, ResourceSpecifier};

use crate::cluster::{self, Cluster, number, text};
use crate::error::OpenError;
use crate::operate::user_topics;
use crate::progress::TEXT_BYTES_MAX;
use crate::settings::Settings;

/// How many topics are looked at one by one.
const TOPICS_MAX: usize = 500;

/// Everything, also when the cluster cannot be reached: that is what it then says.
pub(crate) async fn all(cluster: &Arc<Cluster>) -> Vec<Finding> {
    let id = match reach(cluster).await {
        Ok(id) => id,
        Err(error) => return vec![problem(&error)],
    };
    let brokers = &cluster.brokers;
    let mut findings = vec![Finding::fine("connection", format!("reached at {brokers}"))];
    match cluster.configuration(&ResourceSpecifier::Broker(id)).await {
        Ok(entries) => findings.extend(broker(&cluster.settings, brokers, &entries)),
        Err(error) => findings.push(Finding::note(
            "settings",
            format!("the brokers' settings cannot be looked at ({error})"),
        )),
    }
    findings.extend(topics(cluster).await);
    findings
}

async fn reach(cluster: &Arc<Cluster>) -> Result<i32, OpenError> {
    let (client, within) = (cluster.settings.client()?, cluster.settings.connect_timeout.0);
    let brokers = cluster.brokers.clone();
    let probed = tokio::task::spawn_blocking(move || cluster::probe(&client, within, &brokers));
    probed.await.map_err(|error| OpenError::Failed {
        brokers: cluster.brokers.clone(),
        source: error.into(),
    })?
}

fn problem(error: &OpenError) -> Finding {
    let advice = match error {
        OpenError::Unauthorized { .. } => "check user, password and mechanism",
        OpenError::Tls { .. } => "check the port and ca_file",
        _ => "start the brokers, or correct the url",
    };
    Finding::problem("connection", error.to_string(), advice)
}

/// What the settings of a broker say.
fn broker(settings: &Settings, brokers: &str, entries: &[ConfigEntry]) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(match cluster::check_version(brokers, entries) {
        Ok(()) => Finding::fine("version", "2.4 or newer"),
        Err(error) => Finding::problem("version", error.to_string(), "use newer brokers"),
    });
    let replication = settings.replication.map(u64::from);
    let replication = replication.or_else(|| number(entries, "default.replication.factor"));
    let in_sync = settings.in_sync_replicas_min.map(u64::from);
    let in_sync = in_sync.or_else(|| number(entries, "min.insync.replicas"));
    findings.push(kept("new topics", replication, in_sync));
    if text(entries, "unclean.leader.election.enable") == Some("true") {
        findings.push(Finding::warning(
            "durability",
            "a replica that lags may become the leader, and confirmed messages are lost then",
            "set unclean.leader.election.enable = false",
        ));
    }
    if let Some(max) = number(entries, "offset.metadata.max.bytes")
        && max < TEXT_BYTES_MAX as u64
    {
        findings.push(Finding::warning(
            "retries",
            format!("{max} bytes may be written down with an offset: attempts are forgotten"),
            "set offset.metadata.max.bytes = 4096, as it is by default",
        ));
    }
    if let Some(minutes) = number(entries, "offsets.retention.minutes") {
        let text = format!("a group without members is forgotten after {} hours", minutes / 60);
        findings.push(if minutes < 24 * 60 {
            let advice = "set offsets.retention.minutes to more than a service may be stopped";
            Finding::warning("groups", text, advice)
        } else {
            Finding::note("groups", text)
        });
    }
    findings.extend(session(settings, entries));
    if text(entries, "auto.create.topics.enable") == Some("true") {
        findings.push(Finding::note(
            "topics",
            "other programs make a topic by misspelling its name (auto.create.topics.enable)",
        ));
    }
    findings
}

fn session(settings: &Settings, entries: &[ConfigEntry]) -> Option<Finding> {
    let min = HumanDuration::from_millis(number(entries, "group.min.session.timeout.ms")?);
    let max = HumanDuration::from_millis(number(entries, "group.max.session.timeout.ms")?);
    let ours = settings.session_timeout;
    (!(min..=max).contains(&ours)).then(|| {
        Finding::problem(
            "groups",
            format!("session_timeout is {ours}, and the brokers take {min} to {max}"),
            "set it between them, or change group.min.session.timeout.ms of the brokers",
        )
    })
}

/// What becomes of confirmed messages when a broker is lost.
fn kept(subject: &str, replication: Option<u64>, in_sync: Option<u64>) -> Finding {
    match (replication, in_sync) {
        (Some(0 | 1), _) => Finding::warning(
            subject,
            "kept on one broker: confirmed messages are lost with its disk, and the last ones with \
             its power",
            "use three brokers, replication = 3 and in_sync_replicas_min = 2",
        ),
        (Some(replication), Some(0 | 1)) => Finding::warning(
            subject,
            format!(
                "kept on {replication} brokers, and confirmed when one has them \
                 (min.insync.replicas = 1)"
            ),
            "set min.insync.replicas = 2",
        ),
        (Some(replication), Some(in_sync)) => {
            Finding::fine(subject, format!("kept on {replication} brokers, confirmed by {in_sync}"))
        }
        _ => Finding::note(subject, "on how many brokers messages are kept cannot be looked at"),
    }
}

async fn topics(cluster: &Arc<Cluster>) -> Vec<Finding> {
    let names = match cluster.ask(user_topics).await {
        Ok(names) => names,
        Err(error) => {
            let advice = "look at the brokers' logs";
            return vec![Finding::problem("topics", error.to_string(), advice)];
        }
    };
    let mut findings = Vec::new();
    if names.len() > TOPICS_MAX {
        let text = format!("{} of {} topics were looked at", TOPICS_MAX, names.len());
        findings.push(Finding::note("topics", text));
    }
    let some: Vec<&String> = names.keys().take(TOPICS_MAX).collect();
    let resources: Vec<ResourceSpecifier<'_>> =
        some.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    let replicas = cluster.ask(replicas).await.unwrap_or_default();
    let settings = cluster.configurations(&resources).await.unwrap_or_default();
    for (name, entries) in some.iter().zip(settings) {
        let entries = entries.map(|resource| resource.entries).unwrap_or_default();
        let replication = replicas.get(name.as_str()).copied();
        findings.extend(topic(&cluster.settings, name, replication, &entries));
    }
    findings
}

/// On how many brokers each topic is.
fn replicas(
    cluster: &Cluster,
) -> Result<std::collections::BTreeMap<String, u64>, rdkafka::error::KafkaError> {
    let metadata = cluster.admin().inner().fetch_metadata(None, cluster::ASK)?;
    let least = |topic: &rdkafka::metadata::MetadataTopic| {
        topic.partitions().iter().map(|partition| partition.replicas().len() as u64).min()
    };
    Ok(metadata
        .topics()
        .iter()
        .filter_map(|topic| Some((topic.name().to_owned(), least(topic)?)))
        .collect())
}

/// What is wrong with a topic; nothing if it is as it should be.
fn topic(
    settings: &Settings,
    name: &str,
    replication: Option<u64>,
    entries: &[ConfigEntry],
) -> Vec<Finding> {
    let subject = format!("topic {name}");
    let mut findings = Vec::new();
    let kept = kept(&subject, replication, number(entries, "min.insync.replicas"));
    if kept.severity > antiphon_core::Severity::Note {
        findings.push(kept);
    }
    if text(entries, "cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
        findings.push(Finding::warning(
            &*subject,
            "is compacted: of the messages of a key only the last is kept, handled or not",
            "set cleanup.policy = delete",
        ));
    }
    let batch = settings.batch_max.0 as u64;
    if let Some(max) = number(entries, "max.message.bytes").filter(|max| *max < batch) {
        findings.push(Finding::problem(
            &*subject,
            format!("takes {max} bytes at a time, and batch_max is {batch}"),
            "raise max.message.bytes of the topic, or lower batch_max",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use antiphon_core::Severity;

    use super::*;

    #[test]
    fn what_may_lose_messages_is_a_warning() {
        let severity = |replication, in_sync| kept("topic x", replication, in_sync).severity;
        assert_eq!(severity(Some(1), Some(1)), Severity::Warning);
        assert_eq!(severity(Some(3), Some(1)), Severity::Warning);
        assert_eq!(severity(Some(3), Some(2)), Severity::Fine);
        assert_eq!(severity(None, None), Severity::Note);
    }
}
