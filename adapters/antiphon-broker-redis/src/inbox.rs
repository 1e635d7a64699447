//! Answers: a channel that this process alone listens to. Nothing of it is kept.

use std::sync::Arc;

use antiphon_core::{BoxError, BoxFuture};
use antiphon_messaging::{Inbox, Message, PublishError, PublishErrorKind, Sent, row};
use bytes::Bytes;
use futures_util::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};

use crate::connection::Link;
use crate::error::meaning;
use crate::names::Names;
use crate::publish::error;
use crate::settings::Settings;

/// The longest address that is believed.
const ADDRESS_BYTES_MAX: usize = 200;
const ID_BYTES: usize = 16;

/// An address of this process.
pub(crate) struct RedisInbox {
    address: String,
    answers: PubSubStream,
    _subscription: PubSubSink,
    link: Arc<Link>,
}

impl RedisInbox {
    pub(crate) async fn open(link: Arc<Link>, names: &Names) -> Result<Self, BoxError> {
        let address = format!("{}{}", names.inboxes(), uuid::Uuid::new_v4());
        let (mut subscription, answers) = link.pubsub().await?.split();
        subscription.subscribe(&address).await?;
        Ok(Self { address, answers, _subscription: subscription, link })
    }
}

impl Inbox for RedisInbox {
    fn address(&self) -> &str {
        &self.address
    }

    fn receive(&mut self) -> BoxFuture<'_, Option<Message>> {
        Box::pin(async move {
            loop {
                let answer = tokio::select! {
                    answer = self.answers.next() => answer?,
                    _ = self.link.lost() => return None,
                };
                // Anybody may write to a channel; what is no answer is none.
                match decode(Bytes::copy_from_slice(answer.get_payload_bytes())) {
                    Some(message) => return Some(message),
                    None => tracing::warn!("something that is no answer came to an inbox"),
                }
            }
        })
    }
}

/// The kind and the head, each after its length; the id; the body.
fn encode(message: &Message) -> Vec<u8> {
    let head = row::encode_head(message);
    let (kind, body) = (message.kind.as_bytes(), &message.body);
    let mut bytes = Vec::with_capacity(8 + kind.len() + head.len() + ID_BYTES + body.len());
    for part in [kind, &head] {
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes.extend_from_slice(message.id.as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn decode(mut bytes: Bytes) -> Option<Message> {
    let kind = String::from_utf8(part(&mut bytes)?.into()).ok()?;
    let head = part(&mut bytes)?;
    if bytes.len() < ID_BYTES {
        return None;
    }
    let id = row::decode_id(&bytes.split_to(ID_BYTES)).ok()?;
    row::decode(id, String::new(), kind, &head, bytes).ok()
}

fn part(bytes: &mut Bytes) -> Option<Bytes> {
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?);
    let end = usize::try_from(length).ok()?.checked_add(4)?;
    if bytes.len() < end {
        return None;
    }
    Some(bytes.split_to(end).slice(4..))
}

/// Whether an address is one of an inbox: nobody may make us publish anywhere else.
fn is_address(names: &Names, address: &str) -> bool {
    address.len() <= ADDRESS_BYTES_MAX
        && address
            .strip_prefix(&names.inboxes())
            .is_some_and(|rest| uuid::Uuid::parse_str(rest).is_ok())
}

/// Sends an answer, and waits until the server has it.
pub(crate) async fn answer(
    link: &Link,
    settings: &Settings,
    names: &Names,
    address: &str,
    message: &Message,
) -> Result<(), PublishError> {
    let fail = |kind, sent, why: BoxError| error(address.to_owned(), kind, sent, why);
    if !is_address(names, address) {
        let why = "it is no address of an inbox of this broker".into();
        return Err(fail(PublishErrorKind::Unroutable, Sent::No, why));
    }
    let (size, limit) = (message.size(), settings.message_max.0);
    if size > limit {
        let why = format!("it has {size} bytes; {limit} are allowed");
        return Err(fail(PublishErrorKind::TooLarge, Sent::No, why.into()));
    }
    let mut publish = redis::cmd("PUBLISH");
    publish.arg(address).arg(encode(message));
    match publish.query_async::<u64>(&mut link.publishing()).await {
        Ok(_) => Ok(()),
        Err(error) => {
            link.heed(&error);
            let (kind, sent) = match error.code() {
                Some(code) => meaning(code),
                None => (PublishErrorKind::Disconnected, Sent::Maybe),
            };
            Err(fail(kind, sent, error.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use antiphon_core::{MessageId, Timestamp};

    use super::*;

    #[test]
    fn an_answer_comes_back_as_it_was() {
        let sent = Message {
            id: MessageId::new(Timestamp::from_millis(1_700_000_000_000)),
            topic: String::new(),
            kind: "k".into(),
            source: "s".into(),
            key: "ä".into(),
            time: Timestamp::from_micros(1),
            not_before: None,
            attributes: [("note".to_owned(), "☃".to_owned())].into(),
            body: Bytes::from_static(b"body"),
        };
        let bytes = encode(&sent);
        assert_eq!(decode(bytes.clone().into()), Some(sent.clone()));
        for end in 0..bytes.len() - sent.body.len() {
            assert_eq!(decode(Bytes::copy_from_slice(&bytes[..end])), None, "{end}");
        }
    }

    #[test]
    fn only_an_inbox_is_an_address() {
        let names = Names::new("antiphon");
        let address = format!("antiphon:inbox:{}", uuid::Uuid::new_v4());
        assert!(is_address(&names, &address));
        for other in ["", "antiphon:inbox:", "antiphon:inbox:x", "other", "antiphon:topic:t"] {
            assert!(!is_address(&names, other), "{other}");
        }
    }
}
