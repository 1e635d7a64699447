//! Where answers to this process arrive: a queue that nobody else may read and that ends with the
//! connection.

use std::sync::Arc;

use antiphon_core::BoxFuture;
use antiphon_messaging::{Inbox, Message};
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use uuid::Uuid;

use crate::connection::Live;
use crate::{envelope, names};

/// How many answers lie here that nobody has received.
const PREFETCH: u16 = 256;
/// How many more the server keeps; then it drops the oldest.
const WAITING_MAX: i64 = 10_000;

pub(crate) struct AnswerQueue {
    address: String,
    channel: Channel,
    answers: Consumer,
    _live: Arc<Live>,
}

impl AnswerQueue {
    pub(crate) async fn open(live: Arc<Live>) -> lapin::Result<Self> {
        let channel = live.channel().await?;
        let address = format!("{}{}", names::INBOX, Uuid::new_v4());
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(WAITING_MAX));
        let options = QueueDeclareOptions::exclusive().auto_delete();
        channel.queue_declare(address.as_str().into(), options, arguments).await?;
        channel.basic_qos(PREFETCH, BasicQosOptions { global: false }).await?;
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let queue = address.as_str().into();
        let answers =
            channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?;
        Ok(Self { address, channel, answers, _live: live })
    }
}

impl Inbox for AnswerQueue {
    fn address(&self) -> &str {
        &self.address
    }

    fn receive(&mut self) -> BoxFuture<'_, Option<Message>> {
        Box::pin(async move {
            let arrived = self.answers.next().await?.ok()?;
            // The first poll puts it in line. Lost, it makes room for one answer less.
            let _ = self
                .channel
                .basic_ack(arrived.delivery_tag, BasicAckOptions::default())
                .now_or_never();
            Some(envelope::message(&self.address, &self.address, arrived))
        })
    }
}
