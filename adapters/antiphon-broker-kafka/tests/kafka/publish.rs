//! Publishing: what is refused, what is unknown, and what stays in order.

use antiphon_broker_kafka::Settings;
use antiphon_config::{ByteSize, HumanDuration};
use antiphon_messaging::{Broker, PublishErrorKind, Sent};
use antiphon_testing::proxy::{Faults, Way};
use antiphon_testing::services::{Private, Service};
use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use tokio::time::{Duration, Instant};

use crate::common::{Tidy, message, open, send, settings, topology, unique};

/// Makes a topic with settings that are not ours.
async fn make(name: &str, partitions: i32, configuration: (&str, &str)) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", Service::Kafka.url().trim_start_matches("kafka://"))
        .create()
        .expect("an admin client");
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1))
        .set(configuration.0, configuration.1);
    let made = admin.create_topics([&topic], &AdminOptions::new()).await.expect("answered");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
}

/// The limit of the topic, not ours; the messages before and after are taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_above_the_limit_of_its_topic_is_refused_before_it_leaves() {
    let broker = Tidy::new(open(Settings { batch_max: ByteSize(100_000), ..settings() }).await);
    let name = unique("small");
    make(&name, 2, ("max.message.bytes", "200000")).await;
    broker.declare(&topology(&name, true)).await.expect("a smaller limit is fine");
    let mut large = message(&name, "k", "");
    large.body = Bytes::from(vec![7; 300_000]);
    let batch = vec![message(&name, "k", "before"), large, message(&name, "k", "after")];
    let answers = broker.publish(batch).await;
    assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
    let error = answers[1].as_ref().expect_err("too large");
    assert_eq!((error.kind, error.sent), (PublishErrorKind::TooLarge, Sent::No));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_cannot_take_our_requests_is_refused_with_what_to_change() {
    let broker = Tidy::new(open(settings()).await);
    let name = unique("tiny");
    make(&name, 1, ("max.message.bytes", "10000")).await;
    let error = broker.declare(&topology(&name, true)).await.expect_err("refused");
    assert!(!error.transient);
    assert!(error.to_string().contains("max.message.bytes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_other_partitions_is_used_as_it_is() {
    let broker = Tidy::new(open(settings()).await);
    let name = unique("seven");
    make(&name, 7, ("retention.ms", "600000")).await;
    broker.declare(&topology(&name, true)).await.expect("declared");
    send(&broker, (0..50).map(|n| message(&name, &n.to_string(), "x")).collect()).await;
    let state = broker.operate().expect("an operator's view").groups().await.expect("listed");
    let group = state.iter().find(|group| group.name == name).expect("the group is listed");
    assert_eq!(group.lag, Some(50));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_kafka_does_not_take_is_refused_with_the_reason() {
    let broker = open(settings()).await;
    let error = broker.declare(&topology("größe", true)).await.expect_err("refused");
    assert!(!error.transient && error.to_string().contains('ö'), "{error}");
}

/// `Broker` 10: with a queue of ten, what finds no room is refused, in the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_slows_down_and_then_refuses() {
    let (server, proxy) = Private::behind_proxy(Service::Kafka).await.expect("a broker");
    let broker = open(Settings {
        url: proxy.url().to_owned(),
        queue_messages_max: 10,
        publish_wait: HumanDuration::from_millis(300),
        publish_timeout: HumanDuration::from_millis(1_500),
        ..settings()
    })
    .await;
    let name = unique("full");
    broker.declare(&topology(&name, true)).await.expect("declared");
    send(&broker, (0..100).map(|n| message(&name, "k", &n.to_string())).collect()).await;
    proxy.set(Faults::both(Way { hold: true, ..Way::default() }));
    let begun = Instant::now();
    let batch = (0..100).map(|n| message(&name, "k", &n.to_string())).collect();
    let answers = broker.publish(batch).await;
    let kinds: Vec<_> = answers
        .iter()
        .map(|answer| answer.as_ref().map_err(|error| (error.kind, error.sent)).err())
        .collect();
    assert!(
        kinds[..10].iter().all(|kind| *kind == Some((PublishErrorKind::Disconnected, Sent::Maybe))),
        "{kinds:?}"
    );
    assert!(
        kinds[10..].iter().all(|kind| *kind == Some((PublishErrorKind::Overloaded, Sent::No))),
        "{kinds:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    proxy.heal();
    drop(server);
}

/// `Broker` 2: the broker has the messages, and its answers are lost on the way.
#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_leave_the_outcome_unknown_and_what_is_sent_again_stays_in_order() {
    let (_server, proxy) = Private::behind_proxy(Service::Kafka).await.expect("a broker");
    let lossy = Settings { publish_timeout: HumanDuration::from_millis(1_500), ..settings() };
    let broker = open(Settings { url: proxy.url().to_owned(), ..lossy }).await;
    let name = unique("answers");
    broker.declare(&topology(&name, true)).await.expect("declared");
    send(&broker, vec![message(&name, "k", "first")]).await;
    let batch: Vec<_> = (0..5).map(|n| message(&name, "k", &n.to_string())).collect();
    proxy.set(Faults { to_client: Way { swallow: true, ..Way::default() }, ..Faults::default() });
    for answer in broker.publish(batch.clone()).await {
        let error = answer.expect_err("no answer came");
        assert_eq!((error.kind, error.sent), (PublishErrorKind::Disconnected, Sent::Maybe));
        assert!(!error.is_permanent());
    }
    assert!(proxy.counts().swallowed > 0, "the fault bit");
    proxy.heal();
    for answer in broker.publish(batch.clone()).await {
        let _receipt = answer.expect("sent again, it is taken");
    }
    let mut source =
        broker.subscribe(crate::common::subscription(&name, true)).await.expect("joined");
    let (mut firsts, mut copies) = (Vec::new(), 0);
    while firsts.len() < 6 {
        let antiphon_messaging::Fetched::Deliveries(deliveries) = source.fetch(16).await else {
            continue;
        };
        for delivery in deliveries {
            let id = delivery.message.id;
            if firsts.contains(&id) {
                copies += 1;
            } else {
                firsts.push(id);
            }
            let _ = delivery.settle(antiphon_messaging::Settlement::Ack).outcome().await;
        }
    }
    assert!(
        firsts[1..].iter().eq(batch.iter().map(|message| &message.id)),
        "first deliveries in order"
    );
    tracing::info!(copies, "copies are for the inbox to notice");
}
