//! Answers to a process: rule 11 of [`Broker`](antiphon_messaging::Broker), and those of [`Inbox`].

use std::collections::BTreeSet;
use std::time::Duration;

use antiphon_messaging::{AnyBroker, Inbox, Message, PublishErrorKind, Sent};
use tokio::time::timeout;

use super::{BrokerHarness, PATIENCE, QUIET, Site};

/// An inbox; `None` when the broker carries no answers, which it must then say.
async fn inbox_or_refusal(site: &Site) -> Option<Box<dyn Inbox>> {
    if site.broker.capabilities().answers {
        return Some(open(&site.broker).await);
    }
    let refused = site.broker.inbox().await.err().expect("what the broker cannot do it refuses");
    assert!(!refused.transient, "waiting does not help: {refused}");
    let refused = site.broker.answer("nobody", site.message("k", "lost")).await;
    let refused = refused.expect_err("what the broker cannot do it refuses");
    assert_eq!((refused.kind, refused.sent), (PublishErrorKind::Rejected, Sent::No));
    None
}

async fn open(broker: &AnyBroker) -> Box<dyn Inbox> {
    let inbox = broker.inbox().await.expect("an inbox can be opened");
    assert!((1..=200).contains(&inbox.address().len()), "{:?}", inbox.address());
    inbox
}

async fn receive(inbox: &mut Box<dyn Inbox>) -> Message {
    let received = timeout(PATIENCE, inbox.receive()).await.expect("an answer comes in time");
    received.expect("the inbox lives")
}

async fn answer(broker: &AnyBroker, address: &str, message: Message) {
    let answered = timeout(PATIENCE, broker.answer(address, message)).await;
    answered.expect("it is answered").expect("the broker takes the answer");
}

/// As it arrives, apart from its topic, which does not matter.
fn without_topic(message: &Message) -> Message {
    Message { topic: String::new(), ..message.clone() }
}

/// `Broker` 11: an answer arrives unchanged at the inbox that it is for, whoever sends it.
pub async fn an_answer_arrives_at_its_inbox_and_no_other(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    let Some(mut one) = inbox_or_refusal(&site).await else { return };
    let elsewhere = harness.broker();
    let mut other = open(&elsewhere).await;
    assert_ne!(one.address(), other.address());
    let mut sent = site.message("schlüssel", "an answer");
    sent.attributes.insert("note".into(), "naïve ☃".into());
    answer(&elsewhere, one.address(), sent.clone()).await;
    assert_eq!(without_topic(&receive(&mut one).await), without_topic(&sent));
    answer(&site.broker, other.address(), sent.clone()).await;
    assert_eq!(receive(&mut other).await.id, sent.id);
    for inbox in [&mut one, &mut other] {
        let more = timeout(QUIET, inbox.receive()).await;
        assert!(more.is_err(), "nothing comes twice, or to another: {more:?}");
    }
}

/// `Inbox` 1: many answers from many sides arrive once each, also when nobody waits at that moment.
pub async fn many_answers_arrive_once_each(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    let Some(mut inbox) = inbox_or_refusal(&site).await else { return };
    let address = inbox.address().to_owned();
    let sending = (0..40).map(async |n: usize| {
        let broker = harness.broker();
        answer(&broker, &address, site.message("", &n.to_string())).await;
    });
    futures_util::future::join_all(sending).await;
    let mut texts = BTreeSet::new();
    while texts.len() < 40 {
        let message = receive(&mut inbox).await;
        let text = String::from_utf8_lossy(&message.body).into_owned();
        assert!(texts.insert(text), "twice");
    }
    assert!(timeout(QUIET, inbox.receive()).await.is_err(), "nothing comes twice");
}

/// `Inbox` 2: an ended address takes nobody's time, and disturbs nobody.
pub async fn an_answer_to_an_ended_inbox_takes_nobodys_time(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    let Some(ended) = inbox_or_refusal(&site).await else { return };
    let mut lives = open(&site.broker).await;
    let address = ended.address().to_owned();
    drop(ended);
    for address in [address.as_str(), &format!("{address}-of-nobody")] {
        // Whether the broker takes it or refuses it: at once.
        let sent = site.broker.answer(address, site.message("k", "too late"));
        let answered = timeout(PATIENCE, sent).await;
        assert!(answered.is_ok(), "an answer to nobody was waited for");
    }
    answer(&site.broker, lives.address(), site.message("k", "in time")).await;
    assert_eq!(receive(&mut lives).await.body, "in time");
}

/// `Inbox::receive` is safe to cancel; a message above the limit is refused, and the inbox lives on.
pub async fn an_inbox_outlives_impatience_and_oversized_answers(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    let Some(mut inbox) = inbox_or_refusal(&site).await else { return };
    let address = inbox.address().to_owned();
    let mut large = site.message("k", "");
    large.body = vec![b'x'; site.broker.capabilities().message_bytes_max + 1].into();
    let refused = site.broker.answer(&address, large).await.expect_err("it is too large");
    assert_eq!((refused.kind, refused.sent), (PublishErrorKind::TooLarge, Sent::No));
    let mut texts = BTreeSet::new();
    for n in 0..20_u64 {
        answer(&site.broker, &address, site.message("k", &n.to_string())).await;
        let impatient = timeout(Duration::from_micros(n * 50), inbox.receive()).await;
        texts.extend(impatient.ok().flatten().map(|message| message.body));
    }
    while texts.len() < 20 {
        let message = receive(&mut inbox).await;
        assert!(texts.insert(message.body), "twice");
    }
}
