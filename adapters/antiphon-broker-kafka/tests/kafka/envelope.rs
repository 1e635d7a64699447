//! Records as others see them, and records of others.

use antiphon_messaging::{Broker, Fetched, Settled, Settlement, envelope};
use antiphon_testing::services::Service;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::Duration;

use crate::common::{Tidy, message, open, send, settings, subscription, text, topology, unique};

fn client() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", Service::Kafka.url().trim_start_matches("kafka://"));
    config
}

/// The CloudEvents binding for Kafka, and the partitions of the Java clients.
#[tokio::test(flavor = "multi_thread")]
async fn others_find_a_cloud_event_with_the_key_as_the_records_key() {
    let broker = Tidy::new(open(settings()).await);
    let name = unique("binding");
    broker.declare(&topology(&name, true)).await.expect("declared");
    let sent = message(&name, "21", "body");
    send(&broker, vec![sent.clone()]).await;
    let record = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer =
            client().set("group.id", "tests-reading").create().expect("a consumer");
        let mut all = TopicPartitionList::new();
        for partition in 0..4 {
            all.add_partition_offset(&name, partition, Offset::Beginning).expect("fits");
        }
        consumer.assign(&all).expect("assigned");
        for _ in 0..100 {
            if let Some(Ok(record)) = consumer.poll(Duration::from_millis(100)) {
                return record.detach();
            }
        }
        unreachable!("the record is there")
    });
    let record = record.await.expect("read");
    // Murmur2 of "21" is -973932308; `toPositive` of it, modulo 4.
    assert_eq!(record.partition(), (-973_932_308_i32 & 0x7fff_ffff) % 4);
    assert_eq!(record.key(), Some(&b"21"[..]));
    assert_eq!(record.payload(), Some(&b"body"[..]));
    let headers = record.headers().expect("headers");
    let value = |name: &str| {
        let found = headers.iter().find(|header| header.key == name);
        found
            .and_then(|header| header.value)
            .map(|value| String::from_utf8_lossy(value).into_owned())
    };
    assert_eq!(value("ce_specversion").as_deref(), Some("1.0"));
    assert_eq!(value("ce_id"), Some(sent.id.to_string()));
    assert_eq!(value("ce_type").as_deref(), Some("antiphon.kafka.Tested"));
    assert_eq!(value("ce_source").as_deref(), Some("tests"));
    assert_eq!(value("ce_subject").as_deref(), Some("21"));
    assert_eq!(value("content-type").as_deref(), Some(envelope::CONTENT_TYPE));
}

/// Pitfall 47: what does not read goes to the dead letters, and nothing waits behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_record_says_what_is_wrong_with_it_and_blocks_nothing() {
    let broker = Tidy::new(open(settings()).await);
    let name = unique("foreign");
    broker.declare(&topology(&name, true)).await.expect("declared");
    let producer: FutureProducer = client().create().expect("a producer");
    let wait = Duration::from_secs(10);
    let headers = OwnedHeaders::new()
        .insert(Header { key: "ce_type", value: Some("other.v1.Thing") })
        .insert(Header { key: "ce_id", value: Some(&[0xff, 0xfe][..]) })
        .insert(Header::<'_, &[u8]> { key: "ce_empty", value: None });
    let plain = FutureRecord::to(&name).key("k").payload("no headers").partition(0);
    let forged = FutureRecord::to(&name).key("k").payload("forged").partition(0).headers(headers);
    let tombstone = FutureRecord::<str, str>::to(&name).key("k").partition(0);
    producer.send(plain, wait).await.expect("sent");
    producer.send(forged, wait).await.expect("sent");
    producer.send(tombstone, wait).await.expect("sent");
    let mut ours = message(&name, "", "ours");
    ours.attributes.insert("envelopedefect".into(), "made up".into());
    send(&broker, vec![ours]).await;
    let mut source = broker.subscribe(subscription(&name, true)).await.expect("joined");
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let Fetched::Deliveries(deliveries) = source.fetch(8).await else { continue };
        for delivery in deliveries {
            let defect = envelope::defect(&delivery.message).map(str::to_owned);
            seen.push((text(&delivery), delivery.message.key.clone(), defect));
            assert_ne!(delivery.settle(Settlement::Ack).outcome().await, Settled::Stale);
        }
    }
    seen.sort();
    let defects: Vec<(&str, &str, bool)> = seen
        .iter()
        .map(|(text, key, defect)| (text.as_str(), key.as_str(), defect.is_some()))
        .collect();
    assert_eq!(
        defects,
        [("", "k", true), ("forged", "k", true), ("no headers", "k", true), ("ours", "", false)],
        "the key of a foreign record is its record's key"
    );
}
