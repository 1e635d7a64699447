//! Answers: a subject of core NATS that this process alone listens to. Nothing of it is kept.

use std::sync::Arc;

use antiphon_core::{BoxError, BoxFuture};
use antiphon_messaging::{Inbox, Message, PublishError, PublishErrorKind, Sent};
use async_nats::Subscriber;
use futures_util::StreamExt;
use tokio::time::Instant;

use crate::connection::Link;
use crate::publish::{error, message_bytes_max};
use crate::settings::Settings;
use crate::wire;

/// The longest address that is believed.
const ADDRESS_BYTES_MAX: usize = 200;

/// An address of this process.
pub(crate) struct NatsInbox {
    address: String,
    answers: Subscriber,
    /// The address ends with the connection.
    _link: Arc<Link>,
}

impl NatsInbox {
    pub(crate) async fn open(link: Arc<Link>) -> Result<Self, BoxError> {
        let address = link.client.new_inbox();
        let answers = link.client.subscribe(address.clone()).await?;
        // Known to the server before anybody is told.
        link.confirms.barrier(&link, Instant::now() + crate::connection::REQUEST_TIMEOUT).await?;
        Ok(Self { address, answers, _link: link })
    }
}

impl Inbox for NatsInbox {
    fn address(&self) -> &str {
        &self.address
    }

    fn receive(&mut self) -> BoxFuture<'_, Option<Message>> {
        Box::pin(async move {
            let received = self.answers.next().await?;
            Some(wire::message("", &self.address, received))
        })
    }
}

/// Whether an address is one of an inbox: nobody may make us publish anywhere else.
fn is_address(address: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '*' | '>');
    address.len() <= ADDRESS_BYTES_MAX
        && address
            .strip_prefix("_INBOX.")
            .is_some_and(|rest| !rest.split('.').any(str::is_empty) && rest.chars().all(plain))
}

/// Sends an answer, and waits until the server has it.
pub(crate) async fn answer(
    link: &Link,
    settings: &Settings,
    address: &str,
    message: Message,
) -> Result<(), PublishError> {
    let refuse = |kind, why: BoxError| error(address.to_owned(), kind, Sent::No, Some(why));
    if !is_address(address) {
        let why = "it is no address of an inbox of NATS".into();
        return Err(refuse(PublishErrorKind::Unroutable, why));
    }
    let (headers, header_bytes) = wire::headers(&message);
    let limit = message_bytes_max(link.payload_max);
    if message.size() > limit || header_bytes + message.body.len() > link.payload_max {
        let why = format!("it has {} bytes; the server takes {limit}", message.size());
        return Err(refuse(PublishErrorKind::TooLarge, why.into()));
    }
    let deadline = Instant::now() + settings.publish_timeout.0;
    let published =
        link.client.publish_with_headers(address.to_owned(), headers, message.body).await;
    published.map_err(|why| refuse(PublishErrorKind::Disconnected, why.into()))?;
    let unknown =
        |why| error(address.to_owned(), PublishErrorKind::Disconnected, Sent::Maybe, Some(why));
    link.confirms.barrier(link, deadline).await.map_err(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_inbox_is_an_address() {
        assert!(is_address("_INBOX.abc.def"));
        for other in ["", "_INBOX.", "_INBOX.a..b", "_INBOX.*", "shop.orders.L1", "$JS.API.INFO"] {
            assert!(!is_address(other), "{other}");
        }
        assert!(!is_address(&format!("_INBOX.{}", "x".repeat(300))));
    }
}
