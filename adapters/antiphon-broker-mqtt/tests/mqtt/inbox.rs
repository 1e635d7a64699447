//! Answers to this process.

use std::time::Duration;

use antiphon_messaging::{Broker, PublishErrorKind, Sent};
use antiphon_testing::proxy::{Faults, Proxy};
use tokio::time::timeout;

use crate::scratch::Scratch;
use crate::support::{PATIENCE, at, message, open};

#[tokio::test]
async fn answers_arrive_at_the_address_and_nowhere_else() {
    let scratch = Scratch::new();
    let (asker, answerer) = (scratch.open().await, scratch.open().await);
    let mut inbox = asker.inbox().await.expect("an inbox");
    let mut other = asker.inbox().await.expect("another one");
    assert!(inbox.address().len() <= 200 && inbox.address() != other.address());
    let mut answer = message("", "k", "yes");
    answer.attributes.insert("note".into(), "two\nlines".into());
    answerer.answer(inbox.address(), answer.clone()).await.expect("it is taken");
    let got = timeout(PATIENCE, inbox.receive()).await.expect("it comes").expect("it is open");
    assert_eq!((got.id, &got.body, &got.attributes), (answer.id, &answer.body, &answer.attributes));
    assert!(timeout(Duration::from_millis(100), other.receive()).await.is_err());
}

#[tokio::test]
async fn an_address_that_has_ended_takes_nobodys_time() {
    let scratch = Scratch::new();
    let broker = scratch.open().await;
    let inbox = broker.inbox().await.expect("an inbox");
    let address = inbox.address().to_owned();
    drop(inbox);
    for _ in 0..100 {
        let answered =
            timeout(Duration::from_secs(1), broker.answer(&address, message("", "", "")));
        answered.await.expect("at once").expect("the broker has it");
    }
}

#[tokio::test]
async fn what_is_no_address_is_refused() {
    let scratch = Scratch::new();
    let broker = scratch.open().await;
    let prefix = &scratch.settings.prefix;
    for address in
        ["", "somewhere", "#", &format!("{prefix}/t/x/0"), &format!("{prefix}/answers/+")]
    {
        let error = broker.answer(address, message("", "", "")).await.expect_err("no address");
        assert_eq!((error.kind, error.sent), (PublishErrorKind::Rejected, Sent::No), "{address}");
    }
    let inbox = broker.inbox().await.expect("an inbox");
    let mut large = message("", "", "");
    large.body = vec![0; 2 * 1024 * 1024].into();
    let error = broker.answer(inbox.address(), large).await.expect_err("too large");
    assert_eq!((error.kind, error.sent), (PublishErrorKind::TooLarge, Sent::No));
}

#[tokio::test]
async fn a_lost_connection_ends_the_inbox() {
    let scratch = Scratch::new();
    let proxy = Proxy::in_front_of(&scratch.settings.url).await.expect("a proxy");
    let broker = open(at(&scratch.settings, proxy.url())).await;
    let mut inbox = broker.inbox().await.expect("an inbox");
    proxy.set(Faults { refuse: true, ..Faults::default() });
    proxy.reset();
    assert_eq!(timeout(PATIENCE, inbox.receive()).await.expect("it is told"), None);
    proxy.heal();
}
