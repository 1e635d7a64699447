//! Messages per second, published with confirmations and consumed with acknowledgements, beside the bare
//! client library with the same window and the same bytes on the wire.
//!
//! `cargo run --release -p antiphon-broker-nats --example nats_throughput [URL] [MESSAGES]`

use std::collections::BTreeMap;

use antiphon_broker_nats::{NatsBroker, Settings};
use antiphon_core::{BoxError, Clock, MessageId};
use antiphon_messaging::{
    Broker, Fetched, Group, Message, Settlement, Start, Subscription, Topology, settle_all,
};
use async_nats::jetstream::{self, AckKind, consumer};
use futures_util::StreamExt;
use tokio::time::Instant;

const BATCH: usize = 1_024;
const WINDOW: usize = 4_096;
const BODY: usize = 200;

fn message(topic: &str, n: usize) -> Message {
    let time = Clock::system().now();
    Message {
        id: MessageId::new(time),
        topic: topic.to_owned(),
        kind: "bench.v1.OrderPlaced".to_owned(),
        source: "bench".to_owned(),
        key: format!("order-{}", n % 1_000),
        time,
        not_before: None,
        attributes: BTreeMap::new(),
        body: vec![0; BODY].into(),
    }
}

fn rate(count: usize, begun: Instant) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / begun.elapsed().as_secs_f64()
}

/// The bare client: headers of the same size, a window of the same size.
async fn bare(url: &str, topic: &str, count: usize) -> Result<(f64, f64), BoxError> {
    let client = async_nats::connect(url).await?;
    let context = jetstream::ContextBuilder::new().max_ack_inflight(WINDOW).build(client);
    let config = jetstream::stream::Config {
        name: topic.replace('.', "_"),
        subjects: vec![format!("{topic}.*")],
        ..jetstream::stream::Config::default()
    };
    let stream = context.create_stream(config).await?;
    let begun = Instant::now();
    let mut acks = futures_util::stream::FuturesUnordered::new();
    for n in 0..count {
        let message = message(topic, n);
        let mut headers = async_nats::HeaderMap::new();
        for (name, value) in antiphon_messaging::envelope::attributes(&message) {
            headers.insert(format!("ce-{name}").as_str(), &*value);
        }
        headers.insert("Nats-Msg-Id", message.id.to_string().as_str());
        let subject = format!("{topic}.L{}", antiphon_messaging::lane_of(&message.key));
        let ack = context.publish_with_headers(subject, headers, message.body).await?;
        acks.push(ack.into_future());
        while acks.len() >= WINDOW {
            acks.next().await.ok_or("an acknowledgement")??;
        }
    }
    while let Some(ack) = acks.next().await {
        ack?;
    }
    let published = rate(count, begun);
    let config = consumer::pull::Config {
        durable_name: Some("bare".to_owned()),
        max_ack_pending: 1 << 20,
        ..consumer::pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await?;
    let begun = Instant::now();
    let mut messages = consumer.stream().max_messages_per_batch(WINDOW).messages().await?;
    for _ in 0..count {
        let message = messages.next().await.ok_or("a message")??;
        message.ack_with(AckKind::Ack).await?;
    }
    let consumed = rate(count, begun);
    context.delete_stream(topic.replace('.', "_")).await?;
    Ok((published, consumed))
}

async fn ours(url: &str, topic: &str, count: usize, ordered: bool) -> Result<(f64, f64), BoxError> {
    let broker = NatsBroker::open(Settings::new(url)).await?;
    let group = format!("{topic}.bench");
    let topics = vec![topic.to_owned()];
    let declared =
        Group { name: group.clone(), topics: topics.clone(), start: Start::Earliest, ordered };
    broker.declare(&Topology { topics: topics.clone(), groups: vec![declared] }).await?;
    let begun = Instant::now();
    let batches = (0..count).step_by(BATCH).map(async |first| {
        let batch = (first..count.min(first + BATCH)).map(|n| message(topic, n)).collect();
        broker.publish(batch).await
    });
    let mut batches = futures_util::stream::iter(batches).buffered(WINDOW / BATCH);
    while let Some(answers) = batches.next().await {
        for answer in answers {
            let _receipt = answer?;
        }
    }
    let published = rate(count, begun);
    let begun = Instant::now();
    let mut source =
        broker.subscribe(Subscription { group: group.clone(), topics, ordered }).await?;
    let mut handled = 0;
    while handled < count {
        match source.fetch(WINDOW).await {
            Fetched::Deliveries(deliveries) => {
                handled += deliveries.len();
                let acks = deliveries.into_iter().map(|one| (one, Settlement::Ack)).collect();
                drop(settle_all(acks));
            }
            Fetched::Revoked { done, .. } => drop(done),
            Fetched::Lost(why) => return Err(why.into()),
        }
    }
    source.close().await;
    let consumed = rate(count, begun);
    broker.delete_group(&group).await?;
    broker.delete_topic(topic).await?;
    Ok((published, consumed))
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "nats://127.0.0.1:24222".to_owned());
    let count = arguments.next().map_or(Ok(200_000), |text| text.parse())?;
    println!("{count} messages of {BODY} bytes, window {WINDOW}, confirmed before they are synced");
    for round in 0..3 {
        let topic = |what: &str| format!("bench.{what}.{round}.{}", std::process::id());
        let (published, consumed) = bare(&url, &topic("bare"), count).await?;
        println!("bare client       publish {published:>9.0}/s   consume {consumed:>9.0}/s");
        for (name, ordered) in [("any order", false), ("in order", true)] {
            let (ours_p, ours_c) =
                ours(&url, &topic(name.split(' ').next().unwrap_or("")), count, ordered).await?;
            println!(
                "ours, {name:<11} publish {ours_p:>9.0}/s   consume {ours_c:>9.0}/s   {:.2}   {:.2}",
                ours_p / published,
                ours_c / consumed
            );
        }
    }
    Ok(())
}
