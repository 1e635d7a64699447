//! What can be chosen, and what it becomes in librdkafka's words.
//!
//! Every setting is looked at before anything is opened: a mistake is named with the value that
//! would do, not with what the client library says about it later.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

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

/// How the broker is reached and used. Times are in milliseconds.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `kafka://[user:password@]host:port[,host:port…]`, or `kafka+ssl://…` over TLS. Several hosts
    /// are several brokers of one cluster; one that lives is enough to find the others.
    pub url: String,
    /// The user, if it is not in the URL.
    pub user: Option<String>,
    /// The password, if it is not in the URL. Never printed.
    pub password: Option<String>,
    /// How user and password are shown to the broker.
    pub mechanism: Mechanism,
    /// The authority that signed the brokers' certificates, as a PEM file; without it the usual
    /// public authorities are trusted.
    pub certificate_authority: Option<PathBuf>,
    /// A certificate of this client, as a PEM file.
    pub certificate: Option<PathBuf>,
    /// The key of [`Self::certificate`], as a PEM file.
    pub certificate_key: Option<PathBuf>,
    /// How long the first answer of the cluster may take.
    pub connect_timeout_ms: u32,

    /// How many partitions a topic gets that does not exist. It bounds how many members of a group
    /// can work at a time, and must not be changed later: keys would change their partitions.
    pub partitions: u16,
    /// On how many brokers a topic is kept that does not exist; what the cluster says unless set.
    pub replication: Option<u16>,
    /// How many of them must have a message before it is confirmed; what the cluster says unless set.
    pub in_sync_replicas_min: Option<u16>,
    /// The largest [`Message::size`](antiphon_messaging::Message::size) that is taken, in bytes.
    pub message_bytes_max: usize,

    /// How records are compressed.
    pub compression: Compression,
    /// How long a record waits for others to share its request.
    pub linger_ms: u32,
    /// How large a request may grow meanwhile, in bytes.
    pub batch_bytes: usize,
    /// How many messages may wait to be confirmed; then publishing waits.
    pub queue_messages_max: usize,
    /// How long a message waits for room before it is refused.
    pub publish_wait_ms: u32,
    /// How long the broker may take to confirm; then the outcome is unknown.
    pub confirm_timeout_ms: u32,

    /// How long the cluster waits for a sign of life of a member before others get its partitions.
    pub session_timeout_ms: u32,
    /// How often a member gives one, and how soon it hears that others have joined.
    pub heartbeat_ms: u32,
    /// How long a member may be stuck before it is put out of the group. Handlers cannot make it so:
    /// they run elsewhere.
    pub poll_interval_max_ms: u32,
    /// How long handlers may take to finish with partitions that others take over.
    pub revoke_wait_ms: u32,
    /// How often the progress of a group is written down at the latest, if there is any.
    pub commit_interval_ms: u32,
    /// How many messages a member reads ahead of what it has handed out.
    pub read_ahead_max: usize,
    /// How many messages of a partition a member keeps, because earlier ones of their keys wait for
    /// a retry; then the partition is paused.
    pub kept_messages_max: usize,
    /// The same in bytes.
    pub kept_bytes_max: usize,
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
            certificate_authority: None,
            certificate: None,
            certificate_key: None,
            connect_timeout_ms: 10_000,
            partitions: 16,
            replication: None,
            in_sync_replicas_min: None,
            message_bytes_max: 1_000_000,
            compression: Compression::default(),
            linger_ms: 5,
            batch_bytes: 256 * 1_024,
            queue_messages_max: 100_000,
            publish_wait_ms: 5_000,
            confirm_timeout_ms: 30_000,
            session_timeout_ms: 10_000,
            heartbeat_ms: 1_000,
            poll_interval_max_ms: 300_000,
            revoke_wait_ms: 30_000,
            commit_interval_ms: 500,
            read_ahead_max: 2_000,
            kept_messages_max: 10_000,
            kept_bytes_max: 32 * 1_024 * 1_024,
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
                self.certificate_authority.is_none() || address.tls,
                "certificate_authority is for TLS; write kafka+ssl:// in the url",
            ),
            (
                self.certificate.is_some() == self.certificate_key.is_some(),
                "certificate and certificate_key go together; set both or none",
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
                (1_024..=900_000_000).contains(&self.message_bytes_max),
                "message_bytes_max must be between 1024 and 900000000",
            ),
            (
                (1_024..=100_000_000).contains(&self.batch_bytes),
                "batch_bytes must be between 1024 and 100000000",
            ),
            (self.linger_ms <= 10_000, "linger_ms must be at most 10000"),
            (
                self.queue_messages_max > 0
                    && self.read_ahead_max > 0
                    && self.kept_messages_max > 0,
                "queue_messages_max, read_ahead_max and kept_messages_max must be at least 1",
            ),
            (
                self.confirm_timeout_ms > self.linger_ms && self.commit_interval_ms > 0,
                "confirm_timeout_ms must be above linger_ms, and commit_interval_ms above 0",
            ),
            (
                self.heartbeat_ms > 0 && self.heartbeat_ms <= self.session_timeout_ms / 3,
                "heartbeat_ms must be at most a third of session_timeout_ms",
            ),
            (
                self.session_timeout_ms <= self.poll_interval_max_ms
                    && self.revoke_wait_ms <= self.poll_interval_max_ms / 2,
                "poll_interval_max_ms must be at least session_timeout_ms and twice revoke_wait_ms",
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
        address.password = self.password.clone().or(address.password);
        Ok(address)
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms.into())
    }

    /// The largest batch of records that the client sends and that a topic must take.
    pub(crate) fn wire_bytes_max(&self) -> usize {
        self.message_bytes_max + OVERHEAD_BYTES
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
            ("ssl.ca.location", &self.certificate_authority),
            ("ssl.certificate.location", &self.certificate),
            ("ssl.key.location", &self.certificate_key),
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
            .set("linger.ms", self.linger_ms.to_string())
            .set("batch.size", self.batch_bytes.to_string())
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
            .set("session.timeout.ms", self.session_timeout_ms.to_string())
            .set("heartbeat.interval.ms", self.heartbeat_ms.to_string())
            .set("max.poll.interval.ms", self.poll_interval_max_ms.to_string())
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

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let brokers = Address::parse(&self.url).map(|address| address.brokers);
        f.debug_struct("Settings")
            .field("brokers", &brokers.unwrap_or_default())
            .field("partitions", &self.partitions)
            .field("compression", &self.compression)
            .field("linger_ms", &self.linger_ms)
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
            (Settings { heartbeat_ms: 9_000, ..Settings::default() }, "heartbeat_ms"),
            (Settings { partitions: 0, ..Settings::default() }, "partitions"),
            (Settings { revoke_wait_ms: 200_000, ..Settings::default() }, "revoke_wait_ms"),
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
            password: Some("geheim".into()),
            ..Settings::at("kafka://antiphon:secret@x:1")
        };
        let shown = format!("{settings:?}");
        assert!(!shown.contains("secret") && !shown.contains("geheim"), "{shown}");
    }
}
