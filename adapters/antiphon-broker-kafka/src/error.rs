//! What went wrong, by what the caller can do about it.

use antiphon_core::BoxError;
use antiphon_messaging::{OperateError, PublishError, PublishErrorKind, Sent, SubscribeError};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// Why a broker was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The settings do not fit each other.
    #[error("cannot use these settings for Kafka: {problem}")]
    Settings {
        /// What is wrong, and what would do.
        problem: String,
    },
    /// Nobody answers.
    #[error("no Kafka broker answers at {brokers}: {problem}; check that it runs and the url")]
    Unreachable {
        /// Where it was looked for.
        brokers: String,
        /// What was tried last.
        problem: String,
    },
    /// TLS could not be agreed on.
    #[error(
        "no TLS with the Kafka brokers at {brokers}: {problem}; check the port and \
         ca_file"
    )]
    Tls {
        /// Where it was tried.
        brokers: String,
        /// What the TLS library says.
        problem: String,
    },
    /// The credentials are wrong.
    #[error(
        "the Kafka brokers at {brokers} do not let us in: {problem}; check user, password and \
         mechanism"
    )]
    Unauthorized {
        /// Where it was tried.
        brokers: String,
        /// What the broker says.
        problem: String,
    },
    /// The brokers are too old.
    #[error("the Kafka brokers at {brokers} are older than 2.4 ({problem}); use a newer one")]
    TooOld {
        /// Where they are.
        brokers: String,
        /// What is missing.
        problem: String,
    },
    /// Anything else.
    #[error("cannot use the Kafka brokers at {brokers}: {source}")]
    Failed {
        /// Where they are.
        brokers: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
}

/// Whether the credentials or rights are to blame: waiting does not help, a person has to act.
pub(crate) fn is_unauthorized(code: Code) -> bool {
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::UnsupportedSASLMechanism
    )
}

/// Whether the topic is not there.
pub(crate) fn is_unknown_topic(code: Code) -> bool {
    matches!(
        code,
        Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::InvalidTopic
    )
}

/// What a failed delivery report means for the sender.
///
/// The producer retries by itself whatever may go well later, so what arrives here is a refusal, or
/// the end of the producer. [`Sent::No`] only where the broker itself has refused the record.
pub(crate) fn publish_error(topic: &str, error: KafkaError) -> PublishError {
    let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
    let (kind, sent) = match code {
        code if is_unknown_topic(code) => (PublishErrorKind::Unroutable, Sent::No),
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            (PublishErrorKind::Unauthorized, Sent::No)
        }
        // Every record of the request is told so, also those that are not to blame. The next try
        // knows the topic's limit and refuses the right one before it leaves.
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => {
            (PublishErrorKind::Overloaded, Sent::No)
        }
        Code::InvalidRecord | Code::PolicyViolation => (PublishErrorKind::Rejected, Sent::No),
        // Refused together with another record of its request, which is to blame.
        Code::InvalidDifferentRecord => (PublishErrorKind::Overloaded, Sent::No),
        // Also of what was purged while it waited: it may have been sent before.
        _ => (PublishErrorKind::Disconnected, Sent::Maybe),
    };
    PublishError { topic: topic.to_owned(), kind, sent, source: Some(error.into()) }
}

/// A refusal of our own, before anything was sent.
pub(crate) fn refusal(
    topic: &str,
    kind: PublishErrorKind,
    why: impl Into<BoxError>,
) -> PublishError {
    PublishError { topic: topic.to_owned(), kind, sent: Sent::No, source: Some(why.into()) }
}

/// A subscription or topology that is not possible, for ever.
pub(crate) fn impossible(context: impl Into<String>) -> SubscribeError {
    SubscribeError { context: context.into(), transient: false, source: None }
}

/// A failed request on the way to a subscription or topology.
pub(crate) fn subscribe_error(context: impl Into<String>, error: KafkaError) -> SubscribeError {
    let transient = !error.rdkafka_error_code().is_some_and(is_unauthorized);
    SubscribeError { context: context.into(), transient, source: Some(error.into()) }
}

/// Why the operator was not answered.
pub(crate) fn operate_error(action: &'static str) -> impl FnOnce(KafkaError) -> OperateError {
    move |error| OperateError { action, source: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_certain_refusal_is_not_sent() {
        let of = |code| {
            let error = publish_error("orders", KafkaError::MessageProduction(code));
            (error.kind, error.sent)
        };
        let table = [
            (Code::UnknownTopicOrPartition, PublishErrorKind::Unroutable, Sent::No),
            (Code::TopicAuthorizationFailed, PublishErrorKind::Unauthorized, Sent::No),
            (Code::InvalidRecord, PublishErrorKind::Rejected, Sent::No),
            (Code::InvalidDifferentRecord, PublishErrorKind::Overloaded, Sent::No),
            (Code::PurgeQueue, PublishErrorKind::Disconnected, Sent::Maybe),
            (Code::PurgeInflight, PublishErrorKind::Disconnected, Sent::Maybe),
            (Code::RequestTimedOut, PublishErrorKind::Disconnected, Sent::Maybe),
            (Code::NotEnoughReplicasAfterAppend, PublishErrorKind::Disconnected, Sent::Maybe),
            (Code::GaplessGuarantee, PublishErrorKind::Disconnected, Sent::Maybe),
        ];
        for (code, kind, sent) in table {
            assert_eq!(of(code), (kind, sent), "{code:?}");
        }
    }
}
