//! Exchanges, queues and bindings: how topics and groups are made at the server, and made again.
//!
//! What exists with other settings is an error that names the difference; nothing is ever deleted.
//! An ordered group and an unordered one of the same name, or an ordered one with another number of
//! lanes, would leave a part of their messages unread, so that is looked for before anything is made.

use std::collections::{BTreeMap, BTreeSet};

use antiphon_messaging::{Group, SubscribeError, Topology};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use parking_lot::Mutex;

use crate::connection::Live;
use crate::error::{Fault, refused};
use crate::names;

/// How queues are made on this server.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) lanes: u32,
    /// After how many milliseconds an unread queue is forgotten.
    pub(crate) expiry_ms: Option<i64>,
    /// Since 4.0 a message that came back twenty times is dropped unless the queue says otherwise.
    pub(crate) unlimited: bool,
}

/// What was declared by this process, for declaring it again on a new connection.
#[derive(Debug, Default)]
pub(crate) struct Declared(Mutex<Known>);

#[derive(Clone, Debug, Default)]
struct Known {
    topics: BTreeSet<String>,
    groups: BTreeMap<String, Group>,
}

impl Declared {
    pub(crate) fn remember(&self, topology: &Topology) {
        let mut known = self.0.lock();
        let topics = topology.topics.iter().chain(topology.groups.iter().flat_map(|g| &g.topics));
        known.topics.extend(topics.cloned());
        let groups = topology.groups.iter().map(|group| (group.name.clone(), group.clone()));
        known.groups.extend(groups);
    }

    /// Whether this process has declared this very group.
    pub(crate) fn knows_group(&self, group: &Group) -> bool {
        self.0.lock().groups.get(&group.name).is_some_and(|known| known == group)
    }

    /// Whether this process has declared a group of this topic.
    pub(crate) fn reads_topic(&self, topic: &str) -> bool {
        let known = self.0.lock();
        known.groups.values().any(|group| group.topics.iter().any(|name| name == topic))
    }

    pub(crate) fn knows_topic(&self, topic: &str) -> bool {
        self.0.lock().topics.contains(topic)
    }

    /// Makes everything again that this process has declared. What the server refuses is left out:
    /// whoever declared it hears of it when declaring it again.
    pub(crate) async fn restore(&self, live: &Live, layout: &Layout) -> Result<(), String> {
        let known = self.0.lock().clone();
        let mut maker = Maker::new(live, layout);
        for topic in &known.topics {
            let made = maker.make_topic(topic).await;
            maker.or_leave(topic, made)?;
        }
        for group in known.groups.values() {
            let made = maker.make_group(group).await;
            maker.or_leave(&group.name, made)?;
        }
        Ok(())
    }
}

/// Makes sure that topics and groups exist.
pub(crate) async fn declare(
    live: &Live,
    layout: &Layout,
    declared: &Declared,
    topology: &Topology,
) -> Result<(), SubscribeError> {
    let mut maker = Maker::new(live, layout);
    let named =
        topology.topics.iter().chain(topology.groups.iter().flat_map(|group| &group.topics));
    for topic in named {
        check_name("topic", topic)?;
        let made = maker.make_topic(topic).await;
        made.map_err(|fault| refused(&format!("topic {topic}"), &fault))?;
    }
    for group in &topology.groups {
        check_name("group", &group.name)?;
        if !declared.knows_group(group) {
            maker.check_shape(group).await?;
        }
        let made = maker.make_group(group).await;
        made.map_err(|fault| refused(&format!("group {}", group.name), &fault))?;
    }
    Ok(())
}

fn check_name(what: &str, name: &str) -> Result<(), SubscribeError> {
    names::check(name).map_err(|problem| SubscribeError {
        context: format!("{what} `{name}`: {problem}"),
        transient: false,
        source: None,
    })
}

/// Makes things on one channel, or on the next one when the server closes it.
pub(crate) struct Maker<'a> {
    live: &'a Live,
    layout: &'a Layout,
    channel: Option<Channel>,
}

/// How many messages are ready in a queue, and how many consumers it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Depth {
    pub(crate) ready: u32,
    pub(crate) consumers: u32,
}

impl<'a> Maker<'a> {
    pub(crate) fn new(live: &'a Live, layout: &'a Layout) -> Self {
        Self { live, layout, channel: None }
    }

    async fn channel(&mut self) -> Result<Channel, Fault> {
        if let Some(channel) = self.channel.as_ref().filter(|channel| channel.status().connected())
        {
            return Ok(channel.clone());
        }
        let channel = self.live.channel().await.map_err(|error| Fault::of(&error))?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    /// What is in a queue; `None` if it does not exist.
    pub(crate) async fn depth(&mut self, queue: &str) -> Result<Option<Depth>, Fault> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions::durable().passive();
        let looked = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        match looked.map_err(|error| Fault::of(&error)) {
            Ok(queue) => {
                Ok(Some(Depth { ready: queue.message_count(), consumers: queue.consumer_count() }))
            }
            Err(Fault::NotFound(_)) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Whether an exchange exists.
    pub(crate) async fn has_exchange(&mut self, name: &str) -> Result<bool, Fault> {
        let channel = self.channel().await?;
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let kind = ExchangeKind::Topic;
        let looked =
            channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await;
        match looked.map_err(|error| Fault::of(&error)) {
            Ok(()) => Ok(true),
            Err(Fault::NotFound(_)) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    pub(crate) async fn make_topic(&mut self, topic: &str) -> Result<(), Fault> {
        let channel = self.channel().await?;
        // An exchange that outlived its expired groups would be left behind for ever.
        let auto_delete = self.layout.expiry_ms.is_some();
        let options = ExchangeDeclareOptions {
            durable: true,
            auto_delete,
            ..ExchangeDeclareOptions::default()
        };
        let made = channel
            .exchange_declare(topic.into(), ExchangeKind::Topic, options, FieldTable::default())
            .await;
        made.map_err(|error| Fault::of(&error))
    }

    async fn make_group(&mut self, group: &Group) -> Result<(), Fault> {
        if !group.ordered {
            self.make_queue(&group.name, false).await?;
            return self.bind(&group.name, &group.topics, names::EVERYTHING).await;
        }
        // The first lane last: where it is, all are.
        for lane in (0..self.layout.lanes).rev() {
            let queue = names::lane_queue(&group.name, lane);
            self.make_queue(&queue, true).await?;
            let pattern = names::pattern(lane, self.layout.lanes);
            self.bind(&queue, &group.topics, &pattern).await?;
        }
        Ok(())
    }

    /// The queue that keeps what was declared.
    pub(crate) async fn make_registry(&mut self) -> Result<(), Fault> {
        self.make_queue(names::REGISTRY, false).await
    }

    async fn make_queue(&mut self, queue: &str, single_active: bool) -> Result<(), Fault> {
        let mut arguments = FieldTable::default();
        let text = |text: &str| AMQPValue::LongString(text.into());
        arguments.insert("x-queue-type".into(), text("quorum"));
        if single_active {
            arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        }
        if let Some(expiry) = self.layout.expiry_ms {
            arguments.insert("x-expires".into(), AMQPValue::LongLongInt(expiry));
        }
        let plain = arguments.clone();
        if self.layout.unlimited {
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(-1));
        }
        match self.declare_queue(queue, arguments).await {
            // It was made by an older server, which knew no limit that had to be lifted.
            Err(Fault::Precondition(text)) if text.contains("x-delivery-limit") => {
                tracing::warn!(
                    queue,
                    "the queue has a delivery limit: a message that comes back too often is dropped \
                     by the server; set a policy with delivery-limit -1"
                );
                self.declare_queue(queue, plain).await
            }
            other => other,
        }
    }

    async fn declare_queue(&mut self, queue: &str, arguments: FieldTable) -> Result<(), Fault> {
        let channel = self.channel().await?;
        let made =
            channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await;
        made.map(drop).map_err(|error| Fault::of(&error))
    }

    async fn bind(&mut self, queue: &str, topics: &[String], pattern: &str) -> Result<(), Fault> {
        for topic in topics {
            let channel = self.channel().await?;
            let options = QueueBindOptions::default();
            let bound = channel
                .queue_bind(
                    queue.into(),
                    topic.as_str().into(),
                    pattern.into(),
                    options,
                    FieldTable::default(),
                )
                .await;
            bound.map_err(|error| Fault::of(&error))?;
        }
        Ok(())
    }

    /// Refuses a group that exists in another shape. Looking for a queue that is not there costs a
    /// channel and a line in the server's log, so an unordered group that is there is believed.
    async fn check_shape(&mut self, group: &Group) -> Result<(), SubscribeError> {
        let lanes = self.layout.lanes;
        let asked = match self.depth(&group.name).await {
            Ok(Some(_)) if !group.ordered => return Ok(()),
            Ok(found) => self.shape(&group.name, found.is_some(), lanes).await,
            Err(fault) => Err(fault),
        };
        let shape = asked.map_err(|fault| refused(&format!("group {}", group.name), &fault))?;
        judge(&group.name, group.ordered, lanes, shape).map_err(|context| SubscribeError {
            context,
            transient: false,
            source: None,
        })
    }

    /// What is there of a group.
    async fn shape(&mut self, group: &str, plain: bool, lanes: u32) -> Result<Shape, Fault> {
        let first = self.depth(&names::lane_queue(group, 0)).await?.is_some();
        if !first {
            return Ok(Shape { plain, first, last: false, beyond: false });
        }
        let last = self.depth(&names::lane_queue(group, lanes - 1)).await?.is_some();
        let beyond = self.depth(&names::lane_queue(group, lanes)).await?.is_some();
        Ok(Shape { plain, first, last, beyond })
    }

    /// Passes an error on only if it says that the connection is gone.
    fn or_leave(&self, what: &str, made: Result<(), Fault>) -> Result<(), String> {
        match made {
            Err(Fault::Gone(why)) => Err(why),
            Err(fault) => {
                tracing::warn!(
                    what,
                    why = fault.text(),
                    "RabbitMQ refuses what was declared before"
                );
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// What there is of a group: the queue of an unordered one; the first lane, the last one by these
/// settings, and one beyond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) plain: bool,
    pub(crate) first: bool,
    pub(crate) last: bool,
    pub(crate) beyond: bool,
}

/// Whether a group can be declared or joined, when this is there; why not.
fn judge(group: &str, ordered: bool, lanes: u32, there: Shape) -> Result<(), String> {
    let differs = |what: String| {
        Err(format!(
            "group {group} {what}; let it run empty and delete its queues, or take another name"
        ))
    };
    match (ordered, there) {
        (true, Shape { plain: true, .. }) => {
            differs("was declared as unordered, and is to be ordered now".to_owned())
        }
        (false, Shape { first: true, .. }) => {
            differs("was declared as ordered, and is to be unordered now".to_owned())
        }
        (true, Shape { first: true, last: false, .. }) => {
            differs(format!("has fewer than the {lanes} lanes that `broker.rabbitmq.lanes` says"))
        }
        (true, Shape { first: true, beyond: true, .. }) => {
            differs(format!("has more than the {lanes} lanes that `broker.rabbitmq.lanes` says"))
        }
        _ => Ok(()),
    }
}

/// The queues of a group that is to be joined; why it cannot be.
pub(crate) async fn queues_of(
    live: &Live,
    layout: &Layout,
    group: &str,
    ordered: bool,
) -> Result<Vec<String>, SubscribeError> {
    let what = format!("group {group}");
    let mut maker = Maker::new(live, layout);
    let queues: Vec<String> = if ordered {
        (0..layout.lanes).map(|lane| names::lane_queue(group, lane)).collect()
    } else {
        vec![group.to_owned()]
    };
    let mut missing = false;
    for queue in &queues {
        let found = maker.depth(queue).await.map_err(|fault| refused(&what, &fault))?;
        missing |= found.is_none();
    }
    if !missing {
        return Ok(queues);
    }
    let found = maker.depth(group).await.map_err(|fault| refused(&what, &fault))?;
    let asked = maker.shape(group, found.is_some(), layout.lanes).await;
    let shape = asked.map_err(|fault| refused(&what, &fault))?;
    let context = match judge(group, ordered, layout.lanes, shape) {
        Ok(()) => format!("{what} was not declared"),
        Err(context) => context,
    };
    Err(SubscribeError { context, transient: false, source: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_keeps_its_shape() {
        let nothing = Shape::default();
        let plain = Shape { plain: true, ..nothing };
        let four = Shape { first: true, last: true, ..nothing };
        let fewer = Shape { first: true, ..nothing };
        let more = Shape { beyond: true, ..four };
        for (ordered, there, problem) in [
            (true, nothing, None),
            (false, nothing, None),
            (false, plain, None),
            (true, four, None),
            (true, plain, Some("was declared as unordered")),
            (false, four, Some("was declared as ordered")),
            (true, fewer, Some("fewer than the 4 lanes")),
            (true, more, Some("more than the 4 lanes")),
        ] {
            let judged = judge("billing", ordered, 4, there);
            match problem {
                None => assert_eq!(judged, Ok(()), "{there:?}"),
                Some(text) => assert!(judged.unwrap_err().contains(text), "{there:?}"),
            }
        }
    }
}
