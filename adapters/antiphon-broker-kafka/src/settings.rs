//! What can be chosen, and what it becomes in librdkafka's words.
//!
//! Every setting is looked at before anything is opened: a mistake is named with the value that
//! would do, not with what the client library says about it later.

use std::fmt;
use std::path::PathBuf;

use antiphon_config::{ByteSize, HumanDuration, Secret};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::error::OpenError;

/// What a batch of records needs besides the records, and what a record needs besides what
/// [`Message::size`](antiphon_messaging::Message::size) counts, unless it has hundreds of attributes.
pub(crate) const OVERHEAD_BYTES: usize = 16 * 1_024;

/// How records are made smaller on their way and on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// Fast, and good enough for protobuf.
    #[default]
    Lz4,
    /// Smaller, at several times the work.
    Gzip,
}

impl Compression {
    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Gzip => "gzip",
        }
    }
}

/// How user and password are shown to the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// As they are; over TLS only.
    #[default]
    Plain,
    /// By SCRAM with SHA-256.
    ScramSha256,
    /// By SCRAM with SHA-512.
    ScramSha512,
}

impl Mechanism {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// How the broker is reached and used. Kafka counts times in whole milliseconds.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `kafka://[user:password@]host:port[,host:port…]`, or `kafka+ssl://…` over TLS. Several hosts
    /// are several brokers of one cluster; one that lives is enough to find the others.
    pub url: String,
    /// The user, if it is not in the URL.
    pub user: Option<String>,
    /// The password, if it is not in the URL. Never printed.
    pub password: Option<Secret>,
    /// How user and password are shown to the broker.
    pub mechanism: Mechanism,
    /// The authority that signed the brokers' certificates, as a PEM file; without it the usual
    /// public authorities are trusted.
    pub ca_file: Option<PathBuf>,
    /// A certificate of this client, as a PEM file.
    pub certificate_file: Option<PathBuf>,
    /// The key of [`Self::certificate_file`], as a PEM file.
    pub key_file: Option<PathBuf>,
    /// How long the first answer of the cluster may take.
    pub connect_timeout: HumanDuration,

    /// How many partitions a topic gets that does not exist. It bounds how many members of a group
    /// can work at a time, and must not be changed later: keys would change their partitions.
    pub partitions: u16,
    /// On how many brokers a topic is kept that does not exist; what the cluster says unless set.
    pub replication: Option<u16>,
    /// How many of them must have a message before it is confirmed; what the cluster says unless set.
    pub in_sync_replicas_min: Option<u16>,
    /// The largest [`Message::size`](antiphon_messaging::Message::size) that is taken.
    pub message_max: ByteSize,

    /// How records are compressed.
    pub compression: Compression,
    /// How long a record waits for others to share its request.
    pub linger: HumanDuration,
    /// How large a request may grow meanwhile.
    pub batch_max: ByteSize,
    /// How many messages may wait to be confirmed; then publishing waits.
    pub queue_messages_max: usize,
    /// How long a message waits for room before it is refused.
    pub publish_wait: HumanDuration,
    /// How long the broker may take to confirm; then the outcome is unknown.
    pub publish_timeout: HumanDuration,

    /// How long the cluster waits for a sign of life of a member before others get its partitions.
    pub session_timeout: HumanDuration,
    /// How often a member gives one, and how soon it hears that others have joined.
    pub heartbeat: HumanDuration,
    /// How long a member may be stuck before it is put out of the group. Handlers cannot make it so:
    /// they run elsewhere.
    pub poll_interval_max: HumanDuration,
    /// How long handlers may take to finish with partitions that others take over.
    pub handover_timeout: HumanDuration,
    /// How often the progress of a group is written down at the latest, if there is any.
    pub commit_interval: HumanDuration,
    /// How many messages a member reads ahead of what it has handed out.
    pub read_ahead_max: usize,
    /// How many messages of a partition a member keeps, because earlier ones of their keys wait for
    /// a retry; then the partition is paused.
    pub kept_messages_max: usize,
    /// The same in bytes.
    pub kept_max: ByteSize,
    /// How far a partition may be handled beyond its first message that is not; then it is paused.
    pub span_max: u32,

    /// Further settings of librdkafka by their names, for what is not here. They win.
    pub client: std::collections::BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "kafka://127.0.0.1:9092".to_owned(),
            user: None,
            password: None,
            mechanism: Mechanism::default(),
            ca_file: None,
            certificate_file: None,
            key_file: None,
            connect_timeout: HumanDuration::from_secs(10),
            partitions: 16,
            replication: None,
            in_sync_replicas_min: None,
            message_max: ByteSize(1_000_000),
            compression: Compression::default(),
            linger: HumanDuration::from_millis(5),
            batch_max: ByteSize::kib(256),
            queue_messages_max: 100_000,
            publish_wait: HumanDuration::from_secs(5),
            publish_timeout: HumanDuration::from_secs(30),
            session_timeout: HumanDuration::from_secs(10),
            heartbeat: HumanDuration::from_secs(1),
            poll_interval_max: HumanDuration::from_secs(300),
            handover_timeout: HumanDuration::from_secs(30),
            commit_interval: HumanDuration::from_millis(500),
            read_ahead_max: 2_000,
            kept_messages_max: 10_000,
            kept_max: ByteSize::mib(32),
            span_max: 200_000,
            client: std::collections::BTreeMap::new(),
        }
    }
}

impl Settings {
    /// The defaults, with brokers at `url`.
    #[must_use]
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// Looks for mistakes.
    ///
    /// # Errors
    /// The first mistake, with what would do.
    pub fn check(&self) -> Result<(), OpenError> {
        let address = self.address()?;
        let rules: [(bool, &str); 14] = [
            (
                self.ca_file.is_none() || address.tls,
                "ca_file is for TLS; write kafka+ssl:// in the url",
            ),
            (
                self.certificate_file.is_some() == self.key_file.is_some(),
                "certificate_file and key_file go together; set both or none",
            ),
            (
                address.user.is_some() == address.password.is_some(),
                "user and password go together; set both or none",
            ),
            (
                address.user.is_none() || address.tls || self.mechanism != Mechanism::Plain,
                "mechanism plain shows the password to the network; write kafka+ssl:// in the \
                 url, or use scram-sha-512",
            ),
            (self.partitions > 0, "partitions must be at least 1"),
            (self.replication != Some(0), "replication must be at least 1"),
            (
                self.in_sync_replicas_min.is_none_or(|min| {
                    min > 0 && self.replication.is_none_or(|replication| min <= replication)
                }),
                "in_sync_replicas_min must be between 1 and replication",
            ),
            (
                (1_024..=900_000_000).contains(&self.message_max.0),
                "message_max must be between 1KiB and 900MB",
            ),
            (
                (1_024..=100_000_000).contains(&self.batch_max.0),
                "batch_max must be between 1KiB and 100MB",
            ),
            (self.linger <= HumanDuration::from_secs(10), "linger must be at most 10s"),
            (
                self.queue_messages_max > 0
                    && self.read_ahead_max > 0
                    && self.kept_messages_max > 0,
                "queue_messages_max, read_ahead_max and kept_messages_max must be at least 1",
            ),
            (
                self.publish_timeout > self.linger && !self.commit_interval.0.is_zero(),
                "publish_timeout must be above linger, and commit_interval above 0",
            ),
            (
                !self.heartbeat.0.is_zero() && self.heartbeat.0 <= self.session_timeout.0 / 3,
                "heartbeat must be at most a third of session_timeout",
            ),
            (
                self.session_timeout <= self.poll_interval_max
                    && self.handover_timeout.0 <= self.poll_interval_max.0 / 2,
                "poll_interval_max must be at least session_timeout and twice handover_timeout",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, problem)) => Err(OpenError::Settings { problem: (*problem).to_owned() }),
            None => Ok(()),
        }
    }

    /// Where the brokers are and who we are.
    pub(crate) fn address(&self) -> Result<Address, OpenError> {
        let mut address = Address::parse(&self.url)
            .map_err(|problem| OpenError::Settings { problem: format!("url: {problem}") })?;
        address.user = self.user.clone().or(address.user);
        let password = self.password.as_ref().map(|password| password.expose().to_owned());
        address.password = password.or(address.password);
        Ok(address)
    }

    /// The largest batch of records that the client sends and that a topic must take.
    pub(crate) fn wire_bytes_max(&self) -> usize {
        self.message_max.0 + OVERHEAD_BYTES
    }

    /// What every client of librdkafka is told.
    pub(crate) fn client(&self) -> Result<ClientConfig, OpenError> {
        let address = self.address()?;
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Info);
        config
            .set("bootstrap.servers", &address.brokers)
            .set("client.id", "antiphon")
            .set("socket.keepalive.enable", "true")
            .set("socket.nagle.disable", "true")
            .set("socket.timeout.ms", "10000")
            .set("socket.connection.setup.timeout.ms", "5000")
            // A broker that was restarted is to be found again soon.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("retry.backoff.ms", "20")
            .set("message.max.bytes", self.wire_bytes_max().to_string())
            .set("allow.auto.create.topics", "false");
        let protocol = match (address.tls, &address.user) {
            (false, None) => "plaintext",
            (true, None) => "ssl",
            (false, Some(_)) => "sasl_plaintext",
            (true, Some(_)) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let (Some(user), Some(password)) = (&address.user, &address.password) {
            config
                .set("sasl.mechanism", self.mechanism.name())
                .set("sasl.username", user)
                .set("sasl.password", password);
        }
        for (name, file) in [
            ("ssl.ca.location", &self.ca_file),
            ("ssl.certificate.location", &self.certificate_file),
            ("ssl.key.location", &self.key_file),
        ] {
            if let Some(file) = file {
                config.set(name, file.to_string_lossy());
            }
        }
        Ok(config)
    }

    /// What the producer is told besides.
    pub(crate) fn producer(&self) -> Result<ClientConfig, OpenError> {
        let mut config = self.client()?;
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // A record that fails for good must not let the next one of its key overtake: the
            // producer stops, and is replaced by another.
            .set("enable.gapless.guarantee", "true")
            // Time is kept by us, for the producer as a whole, for the same reason.
            .set("message.timeout.ms", "0")
            .set("max.in.flight.requests.per.connection", "5")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", millis(self.linger))
            .set("batch.size", self.batch_max.0.to_string())
            .set("compression.type", self.compression.name())
            .set("queue.buffering.max.messages", self.queue_messages_max.to_string())
            .set("queue.buffering.max.kbytes", self.queue_kilobytes().to_string());
        Ok(self.with_wishes(config))
    }

    /// At least a few of the largest messages fit, and no more than a gigabyte.
    fn queue_kilobytes(&self) -> usize {
        (64 * 1_024).max(4 * self.wire_bytes_max() / 1_024).min(1_024 * 1_024)
    }

    /// What a consumer of `group` is told besides.
    pub(crate) fn consumer(&self, group: &str) -> Result<ClientConfig, OpenError> {
        let mut config = self.client()?;
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // What was deleted by the topic's retention is gone; the rest is not skipped.
            .set("auto.offset.reset", "earliest")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", millis(self.session_timeout))
            .set("heartbeat.interval.ms", millis(self.heartbeat))
            .set("max.poll.interval.ms", millis(self.poll_interval_max))
            // A partition that is new to the member waits until the request that is out for the
            // others comes back.
            .set("fetch.wait.max.ms", "100")
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.error.backoff.ms", "100")
            .set("fetch.message.max.bytes", self.wire_bytes_max().to_string())
            .set("queued.min.messages", "10000")
            .set("queued.max.messages.kbytes", "16384")
            .set("topic.metadata.refresh.interval.ms", "60000");
        Ok(self.with_wishes(config))
    }

    fn with_wishes(&self, mut config: ClientConfig) -> ClientConfig {
        for (name, value) in &self.client {
            config.set(name, value);
        }
        config
    }
}

/// As librdkafka takes times.
fn millis(duration: HumanDuration) -> String {
    duration.0.as_millis().to_string()
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let brokers = Address::parse(&self.url).map(|address| address.brokers);
        f.debug_struct("Settings")
            .field("brokers", &brokers.unwrap_or_default())
            .field("partitions", &self.partitions)
            .field("compression", &self.compression)
            .field("linger", &self.linger)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_fine() {
        Settings::default().check().expect("fine");
        Settings::at("kafka+ssl://antiphon:secret@a:1,b:2").check().expect("fine");
    }

    #[test]
    fn a_mistake_is_named_with_what_would_do() {
        let wrong = [
            (Settings::at("amqp://x"), "kafka://"),
            (Settings::at("kafka://user@x:1"), "password"),
            (
                Settings { heartbeat: HumanDuration::from_secs(9), ..Settings::default() },
                "heartbeat",
            ),
            (Settings { partitions: 0, ..Settings::default() }, "partitions"),
            (
                Settings { handover_timeout: HumanDuration::from_secs(200), ..Settings::default() },
                "handover_timeout",
            ),
            (
                Settings { mechanism: Mechanism::Plain, ..Settings::at("kafka://u:p@x:1") },
                "kafka+ssl://",
            ),
            (
                Settings {
                    replication: Some(2),
                    in_sync_replicas_min: Some(3),
                    ..Settings::default()
                },
                "in_sync_replicas_min",
            ),
        ];
        for (settings, word) in wrong {
            let error = settings.check().expect_err("a mistake").to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_password_is_never_printed() {
        let settings = Settings {
            password: Some(Secret::new("geheim".into())),
            ..Settings::at("kafka://antiphon:secret@x:1")
        };
        let shown = format!("{settings:?}");
        assert!(!shown.contains("secret") && !shown.contains("geheim"), "{shown}");
    }
}
