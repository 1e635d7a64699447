//! Settlements on their way to the server: what piles up while one command is answered goes with the
//! next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_messaging::Settled;
use redis::RedisError;
use tokio::sync::{mpsc, oneshot};

use crate::connection::Link;
use crate::names::Names;
use crate::scripts;

/// How many settlements go in one command.
const BATCH_MAX: usize = 1_024;

/// A message that goes back.
pub(crate) struct Back {
    pub(crate) topic: usize,
    pub(crate) id: String,
    pub(crate) after: Duration,
    /// Attempts in all, if they have changed.
    pub(crate) attempts: Option<u32>,
    pub(crate) answer: Option<oneshot::Sender<Settled>>,
}

pub(crate) enum Order {
    /// It is done; the flag says whether attempts of it are kept.
    Ack {
        topic: usize,
        id: String,
        attempted: bool,
    },
    Back(Back),
    /// Tell when everything before this is at the server.
    Flush(oneshot::Sender<()>),
    /// The member leaves.
    Leave,
}

/// Whose settlements they are.
pub(crate) struct Outbox {
    pub(crate) link: Arc<Link>,
    pub(crate) names: Names,
    pub(crate) group: String,
    pub(crate) member: String,
    pub(crate) topics: Vec<String>,
}

impl Outbox {
    /// Carries out orders until nobody can give any.
    pub(crate) async fn run(self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while orders.recv_many(&mut batch, BATCH_MAX).await > 0 {
            let mut acks: BTreeMap<usize, Vec<String>> = BTreeMap::new();
            let mut attempted: BTreeMap<usize, Vec<String>> = BTreeMap::new();
            let mut backs: BTreeMap<usize, Vec<Back>> = BTreeMap::new();
            let (mut flushes, mut leave) = (Vec::new(), false);
            for order in batch.drain(..) {
                match order {
                    Order::Ack { topic, id, attempted: kept } => {
                        if kept {
                            attempted.entry(topic).or_default().push(id.clone());
                        }
                        acks.entry(topic).or_default().push(id);
                    }
                    Order::Back(back) => backs.entry(back.topic).or_default().push(back),
                    Order::Flush(answer) => flushes.push(answer),
                    Order::Leave => leave = true,
                }
            }
            let acked = self.acknowledge(acks, attempted).await;
            let given = self.give_back(backs).await;
            let left = if leave { self.leave().await } else { Ok(()) };
            for error in [acked, given, left].into_iter().filter_map(Result::err) {
                // What did not arrive comes again when this member is given up.
                self.link.heed(&error);
                tracing::warn!(group = self.group, %error, "settlements did not arrive");
            }
            for answer in flushes {
                let _ = answer.send(());
            }
        }
    }

    async fn acknowledge(
        &self,
        acks: BTreeMap<usize, Vec<String>>,
        attempted: BTreeMap<usize, Vec<String>>,
    ) -> Result<(), RedisError> {
        if acks.is_empty() {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        for (topic, ids) in acks {
            let stream = self.names.stream(&self.topics[topic]);
            pipe.cmd("XACK").arg(stream).arg(&self.group).arg(ids).ignore();
        }
        for (topic, ids) in attempted {
            let attempts = self.names.attempts(&self.group, &self.topics[topic]);
            pipe.cmd("HDEL").arg(attempts).arg(ids).ignore();
        }
        pipe.query_async(&mut self.link.control()).await
    }

    async fn give_back(&self, backs: BTreeMap<usize, Vec<Back>>) -> Result<(), RedisError> {
        for (topic, backs) in backs {
            let topic = &self.topics[topic];
            let mut call = scripts::GIVE_BACK.prepare_invoke();
            call.key(self.names.back(&self.group, topic));
            call.key(self.names.attempts(&self.group, topic));
            let mut answers = Vec::with_capacity(backs.len());
            for back in backs {
                let millis = u64::try_from(back.after.as_millis()).unwrap_or(u64::MAX);
                call.arg(back.id).arg(millis).arg(back.attempts.map_or(-1, i64::from));
                answers.extend(back.answer);
            }
            call.invoke_async::<()>(&mut self.link.control()).await?;
            for answer in answers {
                let _ = answer.send(Settled::Confirmed);
            }
        }
        Ok(())
    }

    async fn leave(&self) -> Result<(), RedisError> {
        let mut leave = redis::cmd("ZREM");
        leave.arg(self.names.members(&self.group)).arg(&self.member);
        leave.query_async(&mut self.link.control()).await
    }
}
