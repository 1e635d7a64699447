//! Messages per second against the bare client, with the same packets and the same window, on a
//! Mosquitto of its own that keeps everything in memory.
//!
//! `cargo run --release -p antiphon-broker-mqtt --example mqtt_throughput [MESSAGES] [WINDOW]`

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_broker_mqtt::{MqttBroker, Settings, Unread};
use antiphon_core::{BoxError, Clock, Context, MessageId};
use antiphon_messaging::{
    Broker, Fetched, Group, Message, Settlement, Start, Subscription, Topology, envelope, lane_of,
    settle_all,
};
use antiphon_testing::services::{Private, Service};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use tokio::time::Instant;

const TOPIC: &str = "bench";
const BATCH: usize = 250;
const SINGLES: usize = 2_000;
/// Sixteen lanes of 64.
const RECEIVE_MAX: u16 = 1_024;

fn message(clock: &Clock, context: &Context, n: usize) -> Message {
    let time = clock.now();
    let mut message = Message {
        id: MessageId::new(time),
        topic: TOPIC.to_owned(),
        kind: "bench.v1.OrderPlaced".to_owned(),
        source: "bench".to_owned(),
        key: format!("order-{}", n % 1_000),
        time,
        not_before: None,
        attributes: BTreeMap::new(),
        body: vec![0; 200].into(),
    };
    message.inject(context);
    message
}

/// What the adapter makes of a message, for the bare client.
fn properties(message: &Message) -> PublishProperties {
    let all = envelope::attributes(message).into_iter();
    PublishProperties {
        content_type: Some(envelope::CONTENT_TYPE.to_owned()),
        user_properties: all.map(|(name, value)| (name.to_owned(), value.into_owned())).collect(),
        ..PublishProperties::default()
    }
}

fn client(url: &str, id: &str, window: u16) -> Result<(AsyncClient, EventLoop), BoxError> {
    let (_, port) = url.rsplit_once(':').ok_or("an address without a port")?;
    let mut options = MqttOptions::new(id, "127.0.0.1", port.parse()?);
    options.set_outgoing_inflight_upper_limit(window).set_keep_alive(Duration::from_secs(60));
    Ok(AsyncClient::new(options, usize::from(window)))
}

async fn bare_publish(url: &str, count: usize, window: u16) -> Result<f64, BoxError> {
    let (client, mut events) = client(url, "bare-publisher", window)?;
    events.poll().await?;
    let begun = Instant::now();
    let send = async {
        let (clock, context) = (Clock::system(), Context::root());
        for n in 0..count {
            let message = message(&clock, &context, n);
            let topic = format!("antiphon/t/{TOPIC}/{}", lane_of(&message.key));
            let properties = properties(&message);
            let body = message.body;
            client
                .publish_with_properties(topic, QoS::AtLeastOnce, false, body, properties)
                .await?;
        }
        Ok::<_, BoxError>(())
    };
    let confirm = async {
        let mut confirmed = 0;
        while confirmed < count {
            if let Event::Incoming(Packet::PubAck(_)) = events.poll().await? {
                confirmed += 1;
            }
        }
        Ok::<_, BoxError>(())
    };
    tokio::try_join!(send, confirm)?;
    Ok(rate(count, begun))
}

async fn adapter_publish(broker: &MqttBroker, count: usize, window: u16) -> Result<f64, BoxError> {
    let begun = Instant::now();
    let tasks = usize::from(window).div_ceil(BATCH).max(1) * 2;
    let publishers = (0..tasks).map(async |task| {
        let (clock, context) = (Clock::system(), Context::root());
        let mut sent = task * BATCH;
        while sent < count {
            let some = sent..(sent + BATCH).min(count);
            let batch = some.map(|n| message(&clock, &context, n)).collect();
            for answer in broker.publish(batch).await {
                let _receipt = answer?;
            }
            sent += tasks * BATCH;
        }
        Ok::<_, BoxError>(())
    });
    futures_util::future::try_join_all(publishers).await?;
    Ok(rate(count, begun))
}

/// As one has to use it: the event loop on a task of its own.
async fn bare_latency(url: &str) -> Result<Duration, BoxError> {
    let (client, mut events) = client(url, "bare-single", 10)?;
    events.poll().await?;
    let (confirm, mut confirmed) = tokio::sync::mpsc::unbounded_channel();
    let polling = tokio::spawn(async move {
        while let Ok(event) = events.poll().await {
            if matches!(event, Event::Incoming(Packet::PubAck(_))) && confirm.send(()).is_err() {
                return;
            }
        }
    });
    let (clock, context) = (Clock::system(), Context::root());
    let mut times = Vec::with_capacity(SINGLES);
    for n in 0..SINGLES {
        let message = message(&clock, &context, n);
        let topic = format!("antiphon/t/{TOPIC}/{}", lane_of(&message.key));
        let begun = Instant::now();
        let properties = properties(&message);
        let body = message.body;
        client.publish_with_properties(topic, QoS::AtLeastOnce, false, body, properties).await?;
        confirmed.recv().await.ok_or("the bare client lost its connection")?;
        times.push(begun.elapsed());
    }
    polling.abort();
    Ok(median(times))
}

async fn adapter_latency(broker: &MqttBroker) -> Result<Duration, BoxError> {
    let (clock, context) = (Clock::system(), Context::root());
    let mut times = Vec::with_capacity(SINGLES);
    for n in 0..SINGLES {
        let message = message(&clock, &context, n);
        let begun = Instant::now();
        for answer in broker.publish(vec![message]).await {
            let _receipt = answer?;
        }
        times.push(begun.elapsed());
    }
    Ok(median(times))
}

/// One session that keeps everything, then read by one connection with manual acknowledgements.
async fn bare_consume(url: &str, broker: &MqttBroker, count: usize) -> Result<f64, BoxError> {
    let session = || -> Result<_, BoxError> {
        let (_, port) = url.rsplit_once(':').ok_or("an address without a port")?;
        let mut options = MqttOptions::new("bare-consumer", "127.0.0.1", port.parse()?);
        options.set_manual_acks(true).set_clean_start(false).set_receive_maximum(Some(RECEIVE_MAX));
        options.set_session_expiry_interval(Some(3_600));
        // With room for fewer acknowledgements than there are messages it comes to a stop: its
        // loop hands out what it has read before it takes what is to be written.
        Ok(AsyncClient::new(options, count + 10))
    };
    let (client, mut events) = session()?;
    client.subscribe(format!("antiphon/t/{TOPIC}/+"), QoS::AtLeastOnce).await?;
    while !matches!(events.poll().await?, Event::Incoming(Packet::SubAck(_))) {}
    drop((client, events));
    adapter_publish(broker, count, 1_000).await?;
    let (client, mut events) = session()?;
    let begun = Instant::now();
    let mut read = 0;
    while read < count {
        if let Event::Incoming(Packet::Publish(publish)) = events.poll().await? {
            client.try_ack(&publish)?;
            read += 1;
        }
    }
    Ok(rate(count, begun))
}

async fn adapter_consume(broker: &MqttBroker, count: usize) -> Result<f64, BoxError> {
    let topics = vec![TOPIC.to_owned()];
    let group = "readers".to_owned();
    let start = Start::Latest;
    let declared = Group { name: group.clone(), topics: topics.clone(), start, ordered: true };
    let topology = Topology { topics: topics.clone(), groups: vec![declared] };
    broker.declare(&topology).await?;
    adapter_publish(broker, count, 1_000).await?;
    let mut source = broker.subscribe(Subscription { group, topics, ordered: true }).await?;
    let begun = Instant::now();
    let mut read = 0;
    while read < count {
        match source.fetch(256).await {
            Fetched::Deliveries(deliveries) => {
                read += deliveries.len();
                let all = deliveries.into_iter().map(|delivery| (delivery, Settlement::Ack));
                drop(settle_all(all.collect()));
            }
            Fetched::Revoked { .. } => {}
            Fetched::Lost(reason) => return Err(reason.into()),
        }
    }
    Ok(rate(count, begun))
}

fn rate(count: usize, begun: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let count = count as f64;
    count / begun.elapsed().as_secs_f64()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "figures are what it is for")]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let count = arguments.next().map_or(Ok(200_000), |text| text.parse())?;
    let window: u16 = arguments.next().map_or(Ok(1_000), |text| text.parse())?;
    let server = Private::start(Service::Mosquitto).await?;
    let mut settings = Settings::at(server.url());
    settings.publish_window = window;
    settings.unread = Unread::Drop;
    let broker = MqttBroker::open(settings).await?;
    broker.declare(&Topology { topics: vec![TOPIC.to_owned()], groups: Vec::new() }).await?;
    println!("{count} messages, {window} on their way, Mosquitto in memory");
    for _ in 0..3 {
        let bare = bare_publish(&server.url(), count, window).await?;
        let ours = adapter_publish(&broker, count, window).await?;
        println!("publish, confirmed   bare {bare:>9.0}/s  ours {ours:>9.0}/s  {:.2}", ours / bare);
        let (bare, ours) = (bare_latency(&server.url()).await?, adapter_latency(&broker).await?);
        println!("one at a time, p50   bare {bare:>9.1?}    ours {ours:>9.1?}");
    }
    let bare = bare_consume(&server.url(), &broker, count).await?;
    let (client, mut events) = client(&server.url(), "bare-consumer", 10)?;
    while !matches!(events.poll().await?, Event::Incoming(Packet::ConnAck(_))) {}
    drop((client, events));
    let ours = adapter_consume(&broker, count).await?;
    println!("consume, acknowledged  bare {bare:>7.0}/s  ours {ours:>9.0}/s  {:.2}", ours / bare);
    Ok(())
}
