//! Publishing: refusals, and whether they are those of the right messages.

use std::time::Duration;

use antiphon_broker_rabbitmq::Unread;
use antiphon_core::Clock;
use antiphon_messaging::{Broker, PublishErrorKind, Sent};
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use tokio::time::timeout;

use crate::support::{
    PATIENCE, QUIET, bare, handle, join, message, open, place, publish, topology,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_those_of_the_right_messages() {
    let (_vhost, settings) = place().await;
    let broker = open(settings).await;
    let (read, unread, group) = ("read".to_owned(), "unread".to_owned(), "read.group".to_owned());
    broker.declare(&topology(&read, &[&group], false)).await.unwrap();
    broker.declare(&topology(&unread, &[], false)).await.unwrap();
    // The server confirms several at once, and the client library gives a returned message to
    // whichever of them comes first.
    let tasks = (0..4).map(|_| {
        let (broker, read, unread) = (broker.clone(), read.clone(), unread.clone());
        tokio::spawn(async move {
            for round in 0..10 {
                let topic = |n: usize| if n % 7 == round % 7 { &unread } else { &read };
                let batch = (0..150).map(|n| message(topic(n), &n.to_string(), "x")).collect();
                let answers = broker.publish(batch).await;
                for (n, answer) in answers.into_iter().enumerate() {
                    let outcome = answer.map_err(|error| (error.kind, error.sent));
                    if topic(n) == &unread {
                        let expected = Err((PublishErrorKind::Unroutable, Sent::No));
                        assert_eq!(outcome, expected, "message {n} of round {round}");
                    } else {
                        assert!(outcome.is_ok(), "message {n} of round {round}: {outcome:?}");
                    }
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_topic_that_nobody_reads_refuses_or_drops_as_the_settings_say() {
    let (_vhost, settings) = place().await;
    let topic = "nobody".to_owned();
    for (unread, taken) in [(Unread::Refuse, false), (Unread::Drop, true)] {
        let mut settings = settings.clone();
        settings.unread = unread;
        let broker = open(settings).await;
        broker.declare(&topology(&topic, &[], false)).await.unwrap();
        assert_eq!(publish(&broker, message(&topic, "k", "x")).await.is_ok(), taken);
        // A topic that does not exist is an error in any case.
        let error = publish(&broker, message("missing", "k", "x")).await.unwrap_err();
        assert_eq!((error.kind, error.sent), (PublishErrorKind::Unroutable, Sent::No));
    }
}

#[tokio::test]
async fn a_topic_that_is_deleted_behind_our_back_is_an_error_and_comes_back() {
    let (vhost, settings) = place().await;
    let broker = open(settings).await;
    let (topic, group) = ("deleted".to_owned(), "deleted.group".to_owned());
    broker.declare(&topology(&topic, &[&group], true)).await.unwrap();
    let _receipt = publish(&broker, message(&topic, "k", "before")).await.unwrap();
    let (_connection, channel) = bare(&vhost.url()).await;
    channel.exchange_delete(topic.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
    let batch = ["a", "b", "c"].map(|key| message(&topic, key, "lost?"));
    let answers = broker.publish(batch.to_vec()).await;
    let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().unwrap_err().kind).collect();
    assert_eq!(kinds[0], PublishErrorKind::Unroutable, "{answers:?}");
    // It is declared again, with its groups, by whoever publishes.
    timeout(PATIENCE, async {
        while publish(&broker, message(&topic, "k", "after")).await.is_err() {}
    })
    .await
    .expect("the topic comes back");
    let mut source = join(&broker, &topic, &group, true).await;
    assert_eq!(handle(&mut source, 2).await, ["before", "after"]);
}

#[tokio::test]
async fn a_group_whose_queue_is_deleted_is_missed_and_made_again() {
    let (vhost, settings) = place().await;
    let broker = open(settings).await;
    let (topic, group) = ("missed".to_owned(), "missed.group".to_owned());
    broker.declare(&topology(&topic, &[&group], false)).await.unwrap();
    let (_connection, channel) = bare(&vhost.url()).await;
    channel.queue_delete(group.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let error = publish(&broker, message(&topic, "k", "lost")).await.unwrap_err();
    assert_eq!((error.kind, error.sent), (PublishErrorKind::Unroutable, Sent::No));
    timeout(PATIENCE, async {
        while publish(&broker, message(&topic, "k", "after")).await.is_err() {}
    })
    .await
    .expect("the group comes back");
    let mut source = join(&broker, &topic, &group, false).await;
    assert_eq!(handle(&mut source, 1).await, ["after"]);
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_and_the_connection_lives() {
    let (_vhost, settings) = place().await;
    let broker = open(settings).await;
    let (topic, group) = ("cannot".to_owned(), "cannot.group".to_owned());
    broker.declare(&topology(&topic, &[&group], false)).await.unwrap();
    let mut heads = message(&topic, "k", "many attributes");
    heads.attributes.insert("note".to_owned(), "x".repeat(200 * 1024));
    let error = publish(&broker, heads).await.unwrap_err();
    assert_eq!((error.kind, error.sent), (PublishErrorKind::TooLarge, Sent::No));
    let later =
        message(&topic, "k", "later").delayed(Clock::system().now(), Duration::from_secs(9));
    let error = publish(&broker, later).await.unwrap_err();
    assert_eq!((error.kind, error.sent), (PublishErrorKind::Rejected, Sent::No));
    let error = publish(&broker, message(&"x".repeat(300), "k", "x")).await.unwrap_err();
    assert_eq!((error.kind, error.sent), (PublishErrorKind::Unroutable, Sent::No));
    let _receipt = publish(&broker, message(&topic, "k", "fine")).await.unwrap();
    let mut source = join(&broker, &topic, &group, false).await;
    assert_eq!(handle(&mut source, 1).await, ["fine"]);
}

#[tokio::test]
async fn answers_arrive_at_their_inbox_and_nowhere_else() {
    let (_vhost, settings) = place().await;
    let (broker, other) = (open(settings.clone()).await, open(settings).await);
    let (mut inbox, mut second) = (broker.inbox().await.unwrap(), broker.inbox().await.unwrap());
    assert!(inbox.address().len() <= 200);
    assert_ne!(inbox.address(), second.address());
    let mut sent = message("whatever", "k", "answer");
    sent.attributes.insert("status".into(), "0".into());
    other.answer(inbox.address(), sent.clone()).await.unwrap();
    let got = timeout(PATIENCE, inbox.receive()).await.unwrap().unwrap();
    assert_eq!((got.id, &got.body, got.attribute("status")), (sent.id, &sent.body, Some("0")));
    assert!(timeout(QUIET, second.receive()).await.is_err(), "it was not for that one");

    // Nobody waits at an address that is over, and nobody is kept waiting for it.
    let address = second.address().to_owned();
    drop(second);
    timeout(PATIENCE, other.answer(&address, sent.clone())).await.unwrap().unwrap();
    // A group is no inbox.
    let error = other.answer("billing.charge", sent).await.unwrap_err();
    assert_eq!((error.kind, error.sent), (PublishErrorKind::Rejected, Sent::No));
}
