//! A member's end of a group: fetching, leaving.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxFuture;
use antiphon_messaging::{Delivery, Fetched, Settle, Source, SubscribeError, Subscription};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::cluster::Cluster;
use crate::error::{impossible, subscribe_error};
use crate::member::{Limits, Look, Member};
use crate::names;
use crate::offsets;
use crate::poller::{Poller, Shared, Times};
use crate::rebalance::Rebalancing;
use crate::settle::Settler;

/// The longest wait for a retry that a member takes. The group's offset stands still meanwhile, so
/// it is bounded by what is tolerable to read again after a crash.
pub(crate) const RETRY_DELAY_MAX: Duration = Duration::from_secs(300);

/// How long joining waits for the other members.
const JOIN_WAIT: Duration = Duration::from_secs(5);

/// Leaves the group when it is dropped.
struct Membership {
    shared: Arc<Shared>,
    /// Dropped when the group is left.
    left: watch::Receiver<()>,
    _wanted: watch::Sender<()>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut member = self.shared.member.lock();
        let lanes = member.lanes();
        // From now on somebody else may get what is out.
        member.give_up(&lanes);
        member.close();
        drop(member);
        self.shared.call_poller();
    }
}

/// See the module.
pub(crate) struct KafkaSource {
    membership: Membership,
    settler: Arc<dyn Settle>,
}

/// Joins a group that was declared. Asks the broker, and blocks meanwhile.
pub(crate) fn join(
    cluster: &Cluster,
    subscription: &Subscription,
) -> Result<KafkaSource, SubscribeError> {
    let Subscription { group, topics, ordered } = subscription;
    names::check_group(group).map_err(impossible)?;
    let context = || format!("group {group} cannot be joined");
    let consumer: BaseConsumer<Rebalancing> = cluster
        .consumer(group)
        .and_then(|config| config.create_with_context(Rebalancing::default()))
        .map_err(|error| subscribe_error(context(), error))?;
    let declared = is_declared(cluster, &consumer, topics);
    if !declared.map_err(|error| subscribe_error(context(), error))? {
        return Err(impossible(format!(
            "group {group} was not declared for {}; declare it before it is joined",
            topics.join(", ")
        )));
    }
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    consumer.subscribe(&names).map_err(|error| subscribe_error(context(), error))?;
    let settings = &cluster.settings;
    let shared = Arc::new(Shared::new(Member::new(Limits {
        ordered: *ordered,
        read_ahead_max: settings.read_ahead_max,
        kept_messages_max: settings.kept_messages_max,
        kept_bytes_max: settings.kept_max.0,
        span_max: settings.span_max.into(),
        retry_delay_max: RETRY_DELAY_MAX,
    })));
    let times = Times {
        commit_interval: settings.commit_interval.0,
        handover_timeout: settings.handover_timeout.0,
        heartbeat: settings.heartbeat.0,
    };
    let ((left, leaving), (wanted, wanting)) = (watch::channel(()), watch::channel(()));
    let topics = topics.iter().map(|topic| topic.as_str().into()).collect();
    Poller::start(consumer, Arc::clone(&shared), topics, times, left, wanting).map_err(
        |error| SubscribeError { context: context(), transient: true, source: Some(error.into()) },
    )?;
    let settler = Arc::new(Settler(Arc::clone(&shared)));
    let membership = Membership { shared, left: leaving, _wanted: wanted };
    Ok(KafkaSource { membership, settler })
}

/// Whether the group has written down how far it is in any of the topics, and all topics exist.
fn is_declared(
    cluster: &Cluster,
    consumer: &BaseConsumer<Rebalancing>,
    topics: &[String],
) -> Result<bool, KafkaError> {
    let mut partitions = Vec::with_capacity(topics.len());
    for topic in topics {
        match cluster.partitions(topic)? {
            Some(count) => partitions.push((topic.as_str(), count)),
            None => return Ok(false),
        }
    }
    let committed = offsets::committed(consumer, &partitions)?;
    Ok(committed.iter().any(|place| place.offset.is_some()))
}

impl KafkaSource {
    /// Waits until the group has taken the member in. Others may take long to finish with what they
    /// hold: then it becomes a member later.
    pub(crate) async fn joined(self, group: &str) -> Result<Self, SubscribeError> {
        let mut joined = self.membership.shared.joined.subscribe();
        let _ = timeout(JOIN_WAIT, joined.wait_for(|joined| *joined)).await;
        let lost = self.membership.shared.member.lock().lost();
        match lost {
            Some(why) => Err(SubscribeError {
                context: format!("group {group} cannot be joined: {why}"),
                transient: true,
                source: None,
            }),
            None => Ok(self),
        }
    }

    fn look(&self, credits: usize) -> Result<Fetched, Option<Instant>> {
        let shared = &self.membership.shared;
        let mut member = shared.member.lock();
        let found = member.look(credits, Instant::now());
        let room = member.has_room();
        drop(member);
        if room {
            shared.call_poller();
        }
        match found {
            Look::Found(taken) => {
                let delivery = |taken: crate::member::Taken| {
                    let settle = Arc::clone(&self.settler);
                    Delivery::new(taken.message, taken.attempt, taken.lane, taken.token, settle)
                };
                Ok(Fetched::Deliveries(taken.into_iter().map(delivery).collect()))
            }
            Look::Revoked(lanes) => {
                // The lanes go over when nothing of them is out, which says as much as `done`.
                let (done, _) = oneshot::channel();
                Ok(Fetched::Revoked { lanes, done })
            }
            Look::Lost(why) => Ok(Fetched::Lost(why)),
            Look::Nothing(due) => Err(due),
        }
    }
}

impl Source for KafkaSource {
    fn fetch(&mut self, credits: usize) -> BoxFuture<'_, Fetched> {
        Box::pin(async move {
            loop {
                let due = match self.look(credits) {
                    Ok(fetched) => return fetched,
                    Err(due) => due,
                };
                // A bell that rings in between is remembered: `notify_one` leaves a permit.
                let bell = self.membership.shared.bell.notified();
                match due {
                    None => bell.await,
                    Some(due) => tokio::select! {
                        biased;
                        () = bell => {}
                        () = tokio::time::sleep_until(due) => {}
                    },
                }
            }
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.membership.shared.member.lock().close();
        self.membership.shared.call_poller();
        Box::pin(async move {
            let mut left = self.membership.left.clone();
            // Nothing is ever sent: the channel closes when the group is left.
            while left.changed().await.is_ok() {}
        })
    }
}
