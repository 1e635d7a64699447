//! Messages per second, published with confirmations and consumed with commits, and how long a single
//! one takes, beside the bare client library with the same settings, window and records.
//!
//! Rounds of the adapter and of the bare client take turns; what is printed are medians.
//!
//! `cargo run --release -p antiphon-broker-kafka --example kafka_throughput [URL] [MESSAGES]`

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use antiphon_broker_kafka::{KafkaBroker, Settings};
use antiphon_config::HumanDuration;
use antiphon_core::{BoxError, Clock, MessageId};
use antiphon_messaging::{
    Broker, Delivery, Fetched, Group, Message, Settlement, Source, Start, Subscription, Topology,
    envelope, settle_all,
};
use futures_util::StreamExt;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::message::{Header, Headers, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Message as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const BATCH: usize = 512;
const WINDOW: usize = 4_096;
const BODY: usize = 200;
const ROUNDS: usize = 5;
/// How many messages go one at a time in each round.
const SINGLES: usize = 100;
/// After how many messages progress is committed, as the adapter does.
const COMMIT_EVERY: usize = 1_000;

/// When messages arrived.
type Heard = mpsc::UnboundedSender<Instant>;
type Hears = mpsc::UnboundedReceiver<Instant>;

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

/// What both publish is there before the clock runs.
fn batches(topic: &str, count: usize) -> Vec<Vec<Message>> {
    let batch = |first| (first..count.min(first + BATCH)).map(|n| message(topic, n)).collect();
    (0..count).step_by(BATCH).map(batch).collect()
}

// The bare client.

/// What the adapter tells every client of librdkafka.
fn client(url: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", url.trim_start_matches("kafka://"))
        .set("socket.nagle.disable", "true")
        .set("allow.auto.create.topics", "false");
    config
}

fn producer(settings: &Settings) -> Result<FutureProducer, BoxError> {
    let mut config = client(&settings.url);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("enable.gapless.guarantee", "true")
        .set("message.timeout.ms", "0")
        .set("max.in.flight.requests.per.connection", "5")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", settings.linger.0.as_millis().to_string())
        .set("batch.size", settings.batch_max.0.to_string())
        .set("compression.type", "lz4");
    Ok(config.create()?)
}

fn consumer(url: &str, group: &str, topic: &str) -> Result<StreamConsumer, BoxError> {
    let mut config = client(url);
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.queue.backoff.ms", "10")
        .set("queued.min.messages", "10000")
        .set("queued.max.messages.kbytes", "16384");
    let consumer: StreamConsumer = config.create()?;
    consumer.subscribe(&[topic])?;
    Ok(consumer)
}

/// The same headers as the adapter's.
fn headers(message: &Message) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new_with_capacity(10);
    for (name, value) in envelope::attributes(message) {
        headers = headers.insert(Header { key: &format!("ce_{name}"), value: Some(&*value) });
    }
    headers.insert(Header { key: "content-type", value: Some(envelope::CONTENT_TYPE) })
}

fn send(
    producer: &FutureProducer,
    message: &Message,
) -> Result<rdkafka::producer::DeliveryFuture, BoxError> {
    let record = FutureRecord::to(&message.topic)
        .key(message.key.as_str())
        .payload(&message.body[..])
        .headers(headers(message));
    producer.send_result(record).map_err(|(error, _)| error.into())
}

async fn bare_publish(
    producer: &FutureProducer,
    topic: &str,
    count: usize,
) -> Result<f64, BoxError> {
    let batches = batches(topic, count);
    let begun = Instant::now();
    let mut unconfirmed = VecDeque::with_capacity(WINDOW);
    for message in batches.into_iter().flatten() {
        if unconfirmed.len() == WINDOW
            && let Some(oldest) = unconfirmed.pop_front()
        {
            let oldest: rdkafka::producer::DeliveryFuture = oldest;
            oldest.await?.map_err(|(error, _)| error)?;
        }
        unconfirmed.push_back(send(producer, &message)?);
    }
    for confirm in unconfirmed {
        confirm.await?.map_err(|(error, _)| error)?;
    }
    Ok(rate(count, begun))
}

/// Takes each record out of the client's buffers, as one must to hand it to a handler, and looks at
/// its headers.
async fn bare_consume(url: &str, group: &str, topic: &str, count: usize) -> Result<f64, BoxError> {
    let consumer = consumer(url, group, topic)?;
    let mut bytes = 0;
    let mut take = |record: &rdkafka::message::BorrowedMessage<'_>| {
        let record = record.detach();
        for header in record.headers().into_iter().flat_map(Headers::iter) {
            bytes += header.key.len() + header.value.map_or(0, <[u8]>::len);
        }
    };
    take(&consumer.recv().await?);
    let begun = Instant::now();
    for n in 1..count {
        take(&consumer.recv().await?);
        if n % COMMIT_EVERY == 0 || n == count - 1 {
            consumer.commit_consumer_state(CommitMode::Async)?;
        }
    }
    let consumed = rate(count - 1, begun);
    assert!(bytes > 0, "the records have headers");
    Ok(consumed)
}

async fn bare_singles(producer: &FutureProducer, topic: &str) -> Result<f64, BoxError> {
    let mut times = Vec::with_capacity(SINGLES);
    for n in 0..SINGLES {
        let message = message(topic, n);
        let begun = Instant::now();
        send(producer, &message)?.await?.map_err(|(error, _)| error)?;
        times.push(millis(begun.elapsed()));
    }
    Ok(median(times))
}

/// Hears of each message when it is there.
async fn bare_listen(consumer: StreamConsumer, heard: Heard) -> Result<(), BoxError> {
    loop {
        let record = consumer.recv().await?.detach();
        let _ = heard.send(Instant::now());
        drop(record);
    }
}

async fn bare_deliveries(
    producer: &FutureProducer,
    heard: &mut Hears,
    topic: &str,
) -> Result<f64, BoxError> {
    let mut times = Vec::with_capacity(SINGLES);
    for n in 0..SINGLES {
        let message = message(topic, n);
        let begun = Instant::now();
        send(producer, &message)?.await?.map_err(|(error, _)| error)?;
        let arrived = heard.recv().await.ok_or("a delivery")?;
        times.push(millis(arrived - begun));
    }
    Ok(median(times))
}

// The adapter.

async fn publish(broker: &KafkaBroker, topic: &str, count: usize) -> Result<f64, BoxError> {
    let batches = batches(topic, count);
    let begun = Instant::now();
    let batches = batches.into_iter().map(|batch| broker.publish(batch));
    let mut batches = futures_util::stream::iter(batches).buffered(WINDOW / BATCH);
    while let Some(answers) = batches.next().await {
        for answer in answers {
            let _receipt = answer?;
        }
    }
    Ok(rate(count, begun))
}

async fn take(source: &mut dyn Source) -> Result<Vec<Delivery>, BoxError> {
    loop {
        match source.fetch(BATCH).await {
            Fetched::Deliveries(deliveries) => return Ok(deliveries),
            Fetched::Revoked { done, .. } => drop(done),
            Fetched::Lost(why) => return Err(why.into()),
        }
    }
}

fn ack(deliveries: Vec<Delivery>) {
    let acks = deliveries.into_iter().map(|one| (one, Settlement::Ack)).collect();
    drop(settle_all(acks));
}

async fn consume(
    broker: &KafkaBroker,
    subscription: Subscription,
    count: usize,
) -> Result<f64, BoxError> {
    let mut source = broker.subscribe(subscription).await?;
    let first = take(&mut *source).await?;
    let before = first.len();
    let begun = Instant::now();
    let mut handled = before;
    ack(first);
    while handled < count {
        let deliveries = take(&mut *source).await?;
        handled += deliveries.len();
        ack(deliveries);
    }
    let consumed = rate(count - before, begun);
    source.close().await;
    Ok(consumed)
}

async fn singles(broker: &KafkaBroker, topic: &str) -> Result<f64, BoxError> {
    let mut times = Vec::with_capacity(SINGLES);
    for n in 0..SINGLES {
        let message = message(topic, n);
        let begun = Instant::now();
        for answer in broker.publish(vec![message]).await {
            let _receipt = answer?;
        }
        times.push(millis(begun.elapsed()));
    }
    Ok(median(times))
}

/// Hears of each message when it is there.
async fn listen(mut source: Box<dyn Source>, heard: Heard) -> Result<(), BoxError> {
    loop {
        let taken = take(&mut *source).await?;
        let now = Instant::now();
        for _ in &taken {
            let _ = heard.send(now);
        }
        ack(taken);
    }
}

async fn deliveries(broker: &KafkaBroker, heard: &mut Hears, topic: &str) -> Result<f64, BoxError> {
    let mut times = Vec::with_capacity(SINGLES);
    for n in 0..SINGLES {
        let message = message(topic, n);
        let begun = Instant::now();
        for answer in broker.publish(vec![message]).await {
            let _receipt = answer?;
        }
        let arrived = heard.recv().await.ok_or("a delivery")?;
        times.push(millis(arrived - begun));
    }
    Ok(median(times))
}

// Figures.

fn rate(count: usize, begun: Instant) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / begun.elapsed().as_secs_f64()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// One measurement: adapter and bare client, round by round.
struct Measured {
    name: &'static str,
    unit: &'static str,
    rounds: Vec<(f64, f64)>,
}

/// All measurements, in the order in which they are printed.
#[derive(Default)]
struct Figures(Vec<Measured>);

impl Figures {
    fn note(&mut self, name: &'static str, unit: &'static str, pair: (f64, f64)) {
        match self.0.iter_mut().find(|known| known.name == name) {
            Some(known) => known.rounds.push(pair),
            None => self.0.push(Measured { name, unit, rounds: vec![pair] }),
        }
    }

    #[expect(clippy::print_stdout, reason = "the figures are what it is for")]
    fn print(&self) {
        for Measured { name, unit, rounds } in &self.0 {
            let adapter = median(rounds.iter().map(|pair| pair.0).collect());
            let bare = median(rounds.iter().map(|pair| pair.1).collect());
            let ratio = median(rounds.iter().map(|pair| pair.0 / pair.1).collect());
            let digits = if *unit == "ms" { 2 } else { 0 };
            println!(
                "{name:<36} adapter {adapter:>8.digits$}{unit:<3} bare {bare:>8.digits$}{unit:<3} \
                 ratio {ratio:.2}"
            );
        }
    }
}

/// Both, one after the other, and another one first in each round.
async fn both(
    round: usize,
    adapter: impl Future<Output = Result<f64, BoxError>>,
    bare: impl Future<Output = Result<f64, BoxError>>,
) -> Result<(f64, f64), BoxError> {
    if round.is_multiple_of(2) {
        let adapter = adapter.await?;
        Ok((adapter, bare.await?))
    } else {
        let bare = bare.await?;
        Ok((adapter.await?, bare))
    }
}

fn name(what: &str) -> String {
    format!("bench.{what}.{}", MessageId::new(Clock::system().now()))
}

/// A group that reads a topic from its beginning, and how it is joined.
fn group(topic: &str, ordered: bool) -> (Group, Subscription) {
    let (name, topics) = (format!("{topic}.{ordered}"), vec![topic.to_owned()]);
    let subscription = Subscription { group: name.clone(), topics: topics.clone(), ordered };
    (Group { name, topics, start: Start::Earliest, ordered }, subscription)
}

async fn remove(url: &str, Topology { topics, groups }: &Topology) -> Result<(), BoxError> {
    let admin: AdminClient<DefaultClientContext> = client(url).create()?;
    let mut names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
    // Those of the bare client are not declared.
    let bare: Vec<String> = names.iter().map(|name| format!("{name}.bare")).collect();
    names.extend(bare.iter().map(String::as_str));
    if !names.is_empty() {
        admin.delete_groups(&names, &AdminOptions::new()).await?;
    }
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    admin.delete_topics(&topics, &AdminOptions::new()).await?;
    Ok(())
}

/// Many messages: published, and what the adapter has published read by both.
async fn many(
    url: &str,
    broker: &KafkaBroker,
    bare: &FutureProducer,
    (round, count): (usize, usize),
    figures: &mut Figures,
) -> Result<(), BoxError> {
    let (topic, bare_topic) = (name("adapter"), name("bare"));
    let (groups, subscriptions): (Vec<_>, Vec<_>) =
        [false, true].map(|ordered| group(&topic, ordered)).into_iter().unzip();
    let topology = Topology { topics: vec![topic.clone(), bare_topic.clone()], groups };
    broker.declare(&topology).await?;
    let published =
        both(round, publish(broker, &topic, count), bare_publish(bare, &bare_topic, count)).await?;
    figures.note("publish, confirmed", "/s", published);
    for (subscription, what) in subscriptions
        .into_iter()
        .zip(["consume, committed, any order", "consume, committed, in order"])
    {
        let group = format!("{}.bare", subscription.group);
        let consumed = both(
            round,
            consume(broker, subscription, count),
            bare_consume(url, &group, &topic, count),
        );
        figures.note(what, "/s", consumed.await?);
    }
    remove(url, &topology).await
}

/// One message at a time, with or without waiting for others.
struct OneByOne {
    broker: KafkaBroker,
    bare: FutureProducer,
    topic: String,
    bare_topic: String,
    /// Nobody reads it.
    unread: String,
    heard: Hears,
    bare_heard: Hears,
    listeners: [JoinHandle<Result<(), BoxError>>; 2],
    what: [&'static str; 2],
}

impl OneByOne {
    async fn open(settings: Settings, what: [&'static str; 2]) -> Result<Self, BoxError> {
        let bare = producer(&settings)?;
        let (topic, bare_topic, unread) = (name("one"), name("one.bare"), name("unread"));
        let (group, subscription) = group(&topic, true);
        let topics = vec![topic.clone(), bare_topic.clone(), unread.clone()];
        let broker = KafkaBroker::open(settings.clone()).await?;
        broker.declare(&Topology { topics, groups: vec![group] }).await?;
        let source = broker.subscribe(subscription).await?;
        let consumer = consumer(&settings.url, &bare_topic, &bare_topic)?;
        let (hear, heard) = mpsc::unbounded_channel();
        let (bare_hear, mut bare_heard) = mpsc::unbounded_channel();
        let listeners =
            [tokio::spawn(listen(source, hear)), tokio::spawn(bare_listen(consumer, bare_hear))];
        // Until the bare one has joined, too.
        bare_deliveries(&bare, &mut bare_heard, &bare_topic).await?;
        Ok(Self { broker, bare, topic, bare_topic, unread, heard, bare_heard, listeners, what })
    }

    async fn round(&mut self, round: usize, figures: &mut Figures) -> Result<(), BoxError> {
        let Self { broker, bare, topic, bare_topic, unread, heard, bare_heard, .. } = self;
        let pair = both(round, singles(broker, unread), bare_singles(bare, unread));
        figures.note(self.what[0], "ms", pair.await?);
        let pair = both(
            round,
            deliveries(broker, heard, topic),
            bare_deliveries(bare, bare_heard, bare_topic),
        );
        figures.note(self.what[1], "ms", pair.await?);
        Ok(())
    }

    async fn close(self, url: &str) -> Result<(), BoxError> {
        for listener in self.listeners {
            listener.abort();
            let _aborted = listener.await;
        }
        let topics = vec![self.topic, self.bare_topic, self.unread];
        remove(url, &Topology { topics, groups: Vec::new() }).await
    }
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "kafka://127.0.0.1:29092".to_owned());
    let count = arguments.next().map_or(Ok(100_000), |text| text.parse())?;
    let settings = Settings::at(&url);
    println!(
        "{count} messages of {BODY} bytes, window {WINDOW}, acks=all, idempotent, lz4, linger {}, \
         {} partitions; confirmed before they are synced",
        settings.linger, settings.partitions
    );
    let at_once = Settings { linger: HumanDuration::default(), ..settings.clone() };
    let (broker, bare) = (KafkaBroker::open(settings.clone()).await?, producer(&settings)?);
    let mut singles = [
        OneByOne::open(settings, ["publish one, p50", "publish to delivery, p50"]).await?,
        OneByOne::open(at_once, ["publish one, p50, no linger", "to delivery, p50, no linger"])
            .await?,
    ];
    let mut figures = Figures::default();
    for round in 0..=ROUNDS {
        if round == 1 {
            // The first one was to warm up.
            figures = Figures::default();
        }
        many(&url, &broker, &bare, (round, count), &mut figures).await?;
        for one in &mut singles {
            one.round(round, &mut figures).await?;
        }
    }
    figures.print();
    for one in singles {
        one.close(&url).await?;
    }
    Ok(())
}
