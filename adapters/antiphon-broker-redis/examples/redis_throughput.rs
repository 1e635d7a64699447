//! Messages per second, published with confirmations and consumed with acknowledgements, and how long a
//! single one takes, beside the bare client library with the same window and the same commands.
//!
//! Rounds of the adapter and of the bare client take turns; what is printed are medians.
//!
//! `cargo run --release -p antiphon-broker-redis --example redis_throughput [URL] [MESSAGES]`

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_broker_redis::{RedisBroker, Settings};
use antiphon_core::{BoxError, Clock, MessageId};
use antiphon_messaging::{
    Broker, Delivery, Fetched, Group, Message, Settlement, Source, Start, Subscription, Topology,
    envelope, lane_of, settle_all,
};
use futures_util::StreamExt;
use redis::aio::MultiplexedConnection;
use redis::{Client, Pipeline, Value};
use tokio::sync::mpsc;
use tokio::time::Instant;

const BATCH: usize = 512;
const WINDOW: usize = 4_096;
const BODY: usize = 200;
const ROUNDS: usize = 7;
/// How many messages go one at a time in each round.
const SINGLES: usize = 500;
/// How often a member of an ordered group writes down how far it is.
const WRITE_EVERY: Duration = Duration::from_millis(200);

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

/// Where the adapter keeps a topic.
fn stream(topic: &str) -> String {
    format!("antiphon:topic:{topic}")
}

/// The same fields as the adapter's.
fn add(pipe: &mut Pipeline, message: &Message) {
    let command = pipe.cmd("XADD").arg(stream(&message.topic)).arg("NOMKSTREAM").arg("*");
    command.arg("lane").arg(lane_of(&message.key));
    for (name, value) in envelope::attributes(message) {
        command.arg(name).arg(&*value);
    }
    command.arg("data").arg(&message.body[..]);
}

async fn bare_publish(
    connection: &MultiplexedConnection,
    topic: &str,
    count: usize,
) -> Result<f64, BoxError> {
    let batches = batches(topic, count);
    let begun = Instant::now();
    let batches = batches.into_iter().map(async |batch| {
        let mut pipe = Pipeline::with_capacity(BATCH);
        batch.iter().for_each(|message| add(&mut pipe, message));
        let ids: Vec<String> = pipe.query_async(&mut connection.clone()).await?;
        Ok::<_, BoxError>(ids.len() == batch.len())
    });
    let mut batches = futures_util::stream::iter(batches).buffered(WINDOW / BATCH);
    while let Some(confirmed) = batches.next().await {
        assert!(confirmed?, "each is answered with its id");
    }
    Ok(rate(count, begun))
}

/// The ids of the entries that were read.
fn ids(answer: Value) -> Vec<Value> {
    let Value::Array(streams) = answer else { return Vec::new() };
    let entries = streams.into_iter().flat_map(|stream| match stream {
        Value::Array(mut parts) => match parts.pop() {
            Some(Value::Array(entries)) => entries,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    });
    let ids = entries.filter_map(|entry| match entry {
        Value::Array(parts) => parts.into_iter().next(),
        _ => None,
    });
    ids.collect()
}

fn text(id: &Value) -> &[u8] {
    if let Value::BulkString(text) = id { text } else { &[] }
}

fn read_group(group: &str, topic: &str, count: usize) -> redis::Cmd {
    let mut command = redis::cmd("XREADGROUP");
    command.arg("GROUP").arg(group).arg("bare").arg("COUNT").arg(count).arg("BLOCK").arg(1_000);
    command.arg("STREAMS").arg(stream(topic)).arg(">");
    command
}

fn acknowledge(group: &str, topic: &str, ids: &[Value]) -> redis::Cmd {
    let mut command = redis::cmd("XACK");
    command.arg(stream(topic)).arg(group);
    for id in ids {
        command.arg(text(id));
    }
    command
}

/// With a consumer group; what was read is acknowledged while more is read.
async fn bare_consume(client: &Client, topic: &str, count: usize) -> Result<f64, BoxError> {
    let mut reading = client.get_multiplexed_async_connection().await?;
    let mut acking = client.get_multiplexed_async_connection().await?;
    let group = format!("{topic}.bare");
    let mut create = redis::cmd("XGROUP");
    create.arg("CREATE").arg(stream(topic)).arg(&group).arg("0");
    create.query_async::<()>(&mut reading).await?;
    let begun = Instant::now();
    let (mut handled, mut unacknowledged) = (0, Vec::new());
    while handled < count {
        let read = read_group(&group, topic, BATCH);
        let more = read.query_async::<Value>(&mut reading);
        if unacknowledged.is_empty() {
            unacknowledged = ids(more.await?);
        } else {
            let acks = acknowledge(&group, topic, &unacknowledged);
            let (more, acked) = tokio::join!(more, acks.query_async::<()>(&mut acking));
            acked?;
            unacknowledged = ids(more?);
        }
        handled += unacknowledged.len();
    }
    let acks = acknowledge(&group, topic, &unacknowledged);
    acks.query_async::<()>(&mut acking).await?;
    Ok(rate(count, begun))
}

/// Without a consumer group: the reader writes down itself how far it is, again and again.
async fn bare_consume_in_order(
    client: &Client,
    topic: &str,
    count: usize,
) -> Result<f64, BoxError> {
    let mut reading = client.get_multiplexed_async_connection().await?;
    let mut writing = client.get_multiplexed_async_connection().await?;
    let progress = format!("{topic}.progress");
    let begun = Instant::now();
    let (mut handled, mut last, mut written) = (0, b"0".to_vec(), Instant::now());
    while handled < count {
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT")
            .arg(BATCH)
            .arg("BLOCK")
            .arg(1_000)
            .arg("STREAMS")
            .arg(stream(topic))
            .arg(&last);
        let ids = ids(read.query_async::<Value>(&mut reading).await?);
        last = ids.last().map(text).unwrap_or_default().to_vec();
        handled += ids.len();
        if written.elapsed() >= WRITE_EVERY || handled >= count {
            let mut write = redis::cmd("HSET");
            write.arg(&progress).arg(topic).arg(&last);
            write.query_async::<()>(&mut writing).await?;
            written = Instant::now();
        }
    }
    let consumed = rate(count, begun);
    redis::cmd("DEL").arg(&progress).query_async::<()>(&mut writing).await?;
    Ok(consumed)
}

async fn bare_one(connection: &MultiplexedConnection, message: &Message) -> Result<(), BoxError> {
    let mut pipe = Pipeline::with_capacity(1);
    add(&mut pipe, message);
    let _ids: Vec<String> = pipe.query_async(&mut connection.clone()).await?;
    Ok(())
}

async fn bare_singles(connection: &MultiplexedConnection, topic: &str) -> Result<f64, BoxError> {
    let mut times = Vec::with_capacity(SINGLES);
    for n in 0..SINGLES {
        let message = message(topic, n);
        let begun = Instant::now();
        bare_one(connection, &message).await?;
        times.push(micros(begun.elapsed()));
    }
    Ok(median(times))
}

/// Hears of each message when it is there; reads on while it is acknowledged.
async fn bare_listen(client: Client, topic: String, heard: Heard) -> Result<(), BoxError> {
    let mut reading = client.get_multiplexed_async_connection().await?;
    let acking = client.get_multiplexed_async_connection().await?;
    let group = format!("{topic}.bare");
    let mut create = redis::cmd("XGROUP");
    create.arg("CREATE").arg(stream(&topic)).arg(&group).arg("0");
    create.query_async::<()>(&mut reading).await?;
    let _ = heard.send(Instant::now());
    loop {
        let read = read_group(&group, &topic, BATCH);
        let ids = ids(read.query_async::<Value>(&mut reading).await?);
        let now = Instant::now();
        for _ in &ids {
            let _ = heard.send(now);
        }
        let (acks, mut acking) = (acknowledge(&group, &topic, &ids), acking.clone());
        tokio::spawn(async move { acks.query_async::<()>(&mut acking).await });
    }
}

/// The same without a consumer group, and without writing anything down.
async fn bare_listen_in_order(client: Client, topic: String, heard: Heard) -> Result<(), BoxError> {
    let mut reading = client.get_multiplexed_async_connection().await?;
    let mut last = b"0".to_vec();
    let _ = heard.send(Instant::now());
    loop {
        let mut read = redis::cmd("XREAD");
        read.arg("BLOCK").arg(1_000).arg("STREAMS").arg(stream(&topic)).arg(&last);
        let ids = ids(read.query_async::<Value>(&mut reading).await?);
        let now = Instant::now();
        for id in &ids {
            last = text(id).to_vec();
            let _ = heard.send(now);
        }
    }
}

async fn bare_deliveries(
    connection: &MultiplexedConnection,
    heard: &mut Hears,
    topic: &str,
) -> Result<f64, BoxError> {
    let mut times = Vec::with_capacity(SINGLES);
    for n in 0..SINGLES {
        let message = message(topic, n);
        let begun = Instant::now();
        bare_one(connection, &message).await?;
        let arrived = heard.recv().await.ok_or("a delivery")?;
        times.push(micros(arrived - begun));
    }
    Ok(median(times))
}

// The adapter.

async fn publish(broker: &RedisBroker, topic: &str, count: usize) -> Result<f64, BoxError> {
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
    broker: &RedisBroker,
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

async fn singles(broker: &RedisBroker, topic: &str) -> Result<f64, BoxError> {
    let mut times = Vec::with_capacity(SINGLES);
    for n in 0..SINGLES {
        let message = message(topic, n);
        let begun = Instant::now();
        for answer in broker.publish(vec![message]).await {
            let _receipt = answer?;
        }
        times.push(micros(begun.elapsed()));
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

async fn deliveries(broker: &RedisBroker, heard: &mut Hears, topic: &str) -> Result<f64, BoxError> {
    let mut times = Vec::with_capacity(SINGLES);
    for n in 0..SINGLES {
        let message = message(topic, n);
        let begun = Instant::now();
        for answer in broker.publish(vec![message]).await {
            let _receipt = answer?;
        }
        let arrived = heard.recv().await.ok_or("a delivery")?;
        times.push(micros(arrived - begun));
    }
    Ok(median(times))
}

// Figures.

fn rate(count: usize, begun: Instant) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / begun.elapsed().as_secs_f64()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
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
            println!(
                "{name:<36} adapter {adapter:>8.0}{unit:<3} bare {bare:>8.0}{unit:<3} \
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

async fn remove(broker: &RedisBroker, topology: &Topology) -> Result<(), BoxError> {
    for group in &topology.groups {
        broker.delete_group(&group.name).await?;
    }
    for topic in &topology.topics {
        broker.delete_topic(topic).await?;
    }
    Ok(())
}

/// Many messages: published, and what the adapter has published read by both.
async fn many(
    client: &Client,
    broker: &RedisBroker,
    (round, count): (usize, usize),
    figures: &mut Figures,
) -> Result<(), BoxError> {
    let (topic, bare_topic) = (name("adapter"), name("bare"));
    let (any, join_any) = group(&topic, false);
    let (ordered, join_ordered) = group(&topic, true);
    let (topics, groups) = (vec![topic.clone(), bare_topic.clone()], vec![any, ordered]);
    let topology = Topology { topics, groups };
    broker.declare(&topology).await?;
    let bare = client.get_multiplexed_async_connection().await?;
    let published =
        both(round, publish(broker, &topic, count), bare_publish(&bare, &bare_topic, count));
    figures.note("publish, confirmed", "/s", published.await?);
    let consumed =
        both(round, consume(broker, join_any, count), bare_consume(client, &topic, count));
    figures.note("consume, acknowledged, any order", "/s", consumed.await?);
    let consumed = both(
        round,
        consume(broker, join_ordered, count),
        bare_consume_in_order(client, &topic, count),
    );
    figures.note("consume, written down, in order", "/s", consumed.await?);
    remove(broker, &topology).await
}

/// One message at a time: confirmed, and delivered to who reads already.
async fn one_by_one(
    client: &Client,
    broker: &RedisBroker,
    round: usize,
    figures: &mut Figures,
) -> Result<(), BoxError> {
    let bare = client.get_multiplexed_async_connection().await?;
    for (ordered, what) in [
        (false, "publish to delivery, any order, p50"),
        (true, "publish to delivery, in order, p50"),
    ] {
        let (topic, bare_topic, unread) = (name("adapter"), name("bare"), name("unread"));
        let (group, join) = group(&topic, ordered);
        let topics = vec![topic.clone(), bare_topic.clone(), unread.clone()];
        let topology = Topology { topics, groups: vec![group] };
        broker.declare(&topology).await?;
        if !ordered {
            let singles = both(round, singles(broker, &unread), bare_singles(&bare, &unread));
            figures.note("publish one, p50", "µs", singles.await?);
        }
        let (hear, mut heard) = mpsc::unbounded_channel();
        let (bare_hear, mut bare_heard) = mpsc::unbounded_channel();
        let listener = tokio::spawn(listen(broker.subscribe(join).await?, hear));
        let (client, of) = (client.clone(), bare_topic.clone());
        let bare_listener = if ordered {
            tokio::spawn(bare_listen_in_order(client, of, bare_hear))
        } else {
            tokio::spawn(bare_listen(client, of, bare_hear))
        };
        bare_heard.recv().await.ok_or("it listens")?;
        let delivered = both(
            round,
            deliveries(broker, &mut heard, &topic),
            bare_deliveries(&bare, &mut bare_heard, &bare_topic),
        );
        figures.note(what, "µs", delivered.await?);
        for listener in [listener, bare_listener] {
            listener.abort();
            let _aborted = listener.await;
        }
        remove(broker, &topology).await?;
    }
    Ok(())
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "redis://127.0.0.1:26379".to_owned());
    let count = arguments.next().map_or(Ok(100_000), |text| text.parse())?;
    let broker = RedisBroker::open(Settings::new(&url)).await?;
    let client = Client::open(url)?;
    println!(
        "{count} messages of {BODY} bytes, window {WINDOW}, durability of what is confirmed: {:?}",
        broker.capabilities().durability
    );
    let mut figures = Figures::default();
    for round in 0..=ROUNDS {
        if round == 1 {
            // The first one was to warm up.
            figures = Figures::default();
        }
        many(&client, &broker, (round, count), &mut figures).await?;
        one_by_one(&client, &broker, round, &mut figures).await?;
    }
    figures.print();
    Ok(())
}
