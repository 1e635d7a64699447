//! How fast the adapter publishes with confirms and consumes with acknowledgements, beside the bare
//! client library with the same window, on the same quorum queue layout.
//!
//! `cargo run --release -p antiphon-broker-rabbitmq --example throughput -- [URL] [MESSAGES]`

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

fn rate(count: usize, begun: Instant) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / begun.elapsed().as_secs_f64()
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

async fn bare(url: &str, count: usize) -> Result<(f64, f64), BoxError> {
    let topic = format!("bench.bare.{}", MessageId::new(Clock::system().now()));
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    bare_queue(&channel, &topic).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let body = vec![7; BODY];
    let begun = Instant::now();
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
    let published = rate(count, begun);

    let second = Connection::connect(url, ConnectionProperties::default()).await?;
    let reading = second.create_channel().await?;
    let prefetch = u16::try_from(WINDOW)?;
    reading.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
    let begun = Instant::now();
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
    let consumed = rate(count, begun);
    channel.exchange_delete(topic.as_str().into(), Default::default()).await?;
    channel.queue_delete(topic.as_str().into(), Default::default()).await?;
    Ok((published, consumed))
}

async fn adapter(url: &str, count: usize) -> Result<(f64, f64), BoxError> {
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

    let begun = Instant::now();
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
    let published = rate(count, begun);

    let begun = Instant::now();
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
    Ok((published, rate(total, begun)))
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
        println!("publish: bare {publish:>8.0}/s, adapter {publish_ours:>8.0}/s");
        println!("consume: bare {consume:>8.0}/s, adapter {consume_ours:>8.0}/s");
    }
    Ok(())
}
