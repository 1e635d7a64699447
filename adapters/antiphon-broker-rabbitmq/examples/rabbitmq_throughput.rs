//! How fast the adapter publishes with confirms and consumes with acknowledgements, beside the bare
//! client library with the same window, on the same quorum queue layout.
//!
//! `cargo run --release -p antiphon-broker-rabbitmq --example rabbitmq_throughput -- [URL] [MESSAGES]`

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use antiphon_broker_rabbitmq::{RabbitmqBroker, Settings};
use antiphon_core::{BoxError, Clock, MessageId};
use antiphon_messaging::{
    Broker, Delivery, Fetched, Group, Message, Settlement, Start, Subscription, Topology,
    settle_all,
};
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::time::Instant;

const WINDOW: usize = 500;
const BODY: usize = 200;
const ACK_EVERY: usize = 50;

fn message(topic: &str, n: usize) -> Message {
    let time = Clock::system().now();
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    Message {
        id: MessageId::new(time),
        topic: topic.to_owned(),
        kind: "bench.v1.OrderPlaced".to_owned(),
        source: "bench".to_owned(),
        key: format!("order-{}", n % 1_000),
        time,
        not_before: None,
        attributes: BTreeMap::from([("traceparent".to_owned(), traceparent.to_owned())]),
        body: vec![7; BODY].into(),
    }
}

/// What one phase came to.
struct Figure {
    per_second: f64,
    /// Of this process, in microseconds per message: what a busy machine does not change.
    cpu: f64,
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>8.0}/s with {:>5.1} µs of processor each", self.per_second, self.cpu)
    }
}

/// The beginning of a phase.
struct Phase {
    begun: Instant,
    cpu: f64,
}

impl Phase {
    fn begin() -> Self {
        Self { begun: Instant::now(), cpu: cpu_seconds() }
    }

    fn end(self, count: usize) -> Figure {
        let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let per_second = count / self.begun.elapsed().as_secs_f64();
        Figure { per_second, cpu: (cpu_seconds() - self.cpu) * 1e6 / count }
    }
}

/// The processor time of this process, where Linux tells it; in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

async fn bare_queue(channel: &Channel, topic: &str) -> lapin::Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let none = FieldTable::default;
    channel.exchange_declare(topic.into(), ExchangeKind::Topic, durable, none()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-expires".into(), AMQPValue::LongLongInt(60_000));
    channel.queue_declare(topic.into(), QueueDeclareOptions::durable(), arguments).await?;
    let bind = QueueBindOptions::default();
    channel.queue_bind(topic.into(), topic.into(), "#".into(), bind, none()).await
}

async fn bare(url: &str, count: usize) -> Result<(Figure, Figure), BoxError> {
    let topic = format!("bench.bare.{}", MessageId::new(Clock::system().now()));
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    bare_queue(&channel, &topic).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let body = vec![7; BODY];
    let phase = Phase::begin();
    let mut unconfirmed = VecDeque::with_capacity(WINDOW);
    for _ in 0..count {
        if unconfirmed.len() == WINDOW
            && let Some(oldest) = unconfirmed.pop_front()
        {
            let oldest: lapin::PublisherConfirm = oldest;
            oldest.await?;
        }
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let exchange = topic.as_str().into();
        let confirm =
            channel.basic_publish(exchange, "0.0.0.0".into(), options, &body, properties).await?;
        unconfirmed.push_back(confirm);
    }
    for confirm in unconfirmed {
        confirm.await?;
    }
    let published = phase.end(count);

    let second = Connection::connect(url, ConnectionProperties::default()).await?;
    let reading = second.create_channel().await?;
    let prefetch = u16::try_from(WINDOW)?;
    reading.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
    let phase = Phase::begin();
    let options = BasicConsumeOptions::default();
    let mut consumer = reading
        .basic_consume(topic.as_str().into(), "".into(), options, FieldTable::default())
        .await?;
    for n in 1..=count {
        let delivery = consumer.next().await.ok_or("the consumer ended")??;
        if n % ACK_EVERY == 0 || n == count {
            let options = BasicAckOptions { multiple: true };
            reading.basic_ack(delivery.delivery_tag, options).await?;
        }
    }
    let consumed = phase.end(count);
    channel.exchange_delete(topic.as_str().into(), Default::default()).await?;
    channel.queue_delete(topic.as_str().into(), Default::default()).await?;
    Ok((published, consumed))
}

async fn adapter(url: &str, count: usize) -> Result<(Figure, Figure), BoxError> {
    let mut settings = Settings::at(url);
    settings.publish_window = WINDOW;
    settings.group_expiry = Some(Duration::from_secs(60).into());
    let broker = RabbitmqBroker::open(settings).await?;
    let topic = format!("bench.adapter.{}", MessageId::new(Clock::system().now()));
    let (topics, start) = (vec![topic.clone()], Start::Earliest);
    let group = Group { name: format!("{topic}.group"), topics, start, ordered: false };
    let subscription =
        Subscription { group: group.name.clone(), topics: group.topics.clone(), ordered: false };
    broker.declare(&Topology { topics: vec![topic.clone()], groups: vec![group] }).await?;

    let phase = Phase::begin();
    let publishers = (0..2).map(|half| {
        let (broker, topic) = (broker.clone(), topic.clone());
        tokio::spawn(async move {
            for first in (0..count / 2).step_by(WINDOW) {
                let numbers = first..(first + WINDOW).min(count / 2);
                let batch = numbers.map(|n| message(&topic, half * count / 2 + n)).collect();
                for answer in broker.publish(batch).await {
                    let _receipt = answer?;
                }
            }
            Ok::<_, BoxError>(())
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await??;
    }
    let published = phase.end(count);

    let phase = Phase::begin();
    let mut source = broker.subscribe(subscription).await?;
    let (mut handled, total) = (0, count / 2 * 2);
    while handled < total {
        let Fetched::Deliveries(deliveries) = source.fetch(WINDOW).await else {
            return Err("the source ended".into());
        };
        handled += deliveries.len();
        let acks = |delivery: Delivery| (delivery, Settlement::Ack);
        drop(settle_all(deliveries.into_iter().map(acks).collect()));
    }
    Ok((published, phase.end(total)))
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "amqp://127.0.0.1:25673".to_owned());
    let count = arguments.next().map_or(Ok(20_000), |text| text.parse())?;
    println!("{count} messages of {BODY} bytes, window {WINDOW}, quorum queue, persistent");
    for _ in 0..3 {
        let (publish, consume) = bare(&url, count).await?;
        let (publish_ours, consume_ours) = adapter(&url, count).await?;
        println!("publish: bare {publish}, adapter {publish_ours}");
        println!("consume: bare {consume}, adapter {consume_ours}");
    }
    Ok(())
}
