//! Dead letters: rules of [`DeadLetters`].

use std::collections::BTreeSet;
use std::sync::Arc;

use antiphon_messaging::{DeadFilter, DeadLetter, DeadLetters, DeadReason, Settled, Settlement};

use super::{BrokerHarness, Member, Site, ack, settle};

fn dead(code: &'static str, attempts: u32) -> Settlement {
    Settlement::Dead(DeadReason { code, error: format!("{code}: größer als 7"), attempts })
}

/// The operator's view; `None` when the broker keeps none, which it must then say when it is asked
/// to bury something.
async fn letters_or_refusal(site: &Site) -> Option<Arc<dyn DeadLetters>> {
    let letters = site.broker.dead_letters();
    assert_eq!(letters.is_some(), site.broker.capabilities().dead_letters);
    if letters.is_none() {
        site.publish(&[("k", "kept")]).await;
        let mut member = site.join("all", site.ordered).await;
        let settled = member.collect(1).await.remove(0).settle(dead("permanent", 1)).outcome();
        assert_eq!(settled.await, Settled::Stale, "what the broker cannot do it refuses");
        assert_eq!(member.handle(1).await, ["kept"]);
    }
    letters
}

async fn bury(member: &mut Member, code: &'static str, attempts: u32) {
    let delivery = member.collect(1).await.remove(0);
    settle(delivery, dead(code, attempts)).await;
}

async fn list(letters: &dyn DeadLetters, group: &str) -> Vec<DeadLetter> {
    letters.list(&DeadFilter::group(group), None, 1_000).await.expect("the list is read")
}

/// `DeadLetters` 1: everything of the message is kept, with why and when, and the other messages go
/// on.
pub async fn a_dead_letter_keeps_message_reason_and_history(harness: &impl BrokerHarness) {
    let site = Site::with_ordered_groups(harness, &["all"]).await;
    let Some(letters) = letters_or_refusal(&site).await else {
        return;
    };
    let mut message = site.message("schlüssel", "lost cause");
    message.attributes.insert("note".into(), "naïve ☃".into());
    site.send(vec![message.clone(), site.message("schlüssel", "next")]).await;
    let mut member = site.join("all", site.ordered).await;
    bury(&mut member, "permanent", 3).await;
    assert_eq!(member.handle(1).await, ["next"]);
    member.stays_quiet().await;
    let kept = list(&*letters, &site.group("all")).await;
    let [letter] = kept.as_slice() else { unreachable!("one letter, not {kept:?}") };
    assert_eq!((&letter.message, letter.redrives()), (&message, 0));
    let [death] = letter.deaths.as_slice() else { unreachable!("one death: {letter:?}") };
    assert_eq!((death.code.as_str(), death.attempts), ("permanent", 3));
    assert_eq!(death.error, "permanent: größer als 7");
    assert!(death.at >= message.time, "{death:?}");
    let got = letters.get(&letter.group, message.id).await.expect("the letter is read");
    assert_eq!(got.as_ref(), Some(letter));
}

/// `DeadLetters` 3: a redrive is a first attempt of the same message, for the group that failed; a
/// second death adds to the history; a success ends it.
pub async fn a_redrive_goes_to_the_failing_group_only_with_the_same_id(
    harness: &impl BrokerHarness,
) {
    let site = Site::with_ordered_groups(harness, &["all", "other"]).await;
    let Some(letters) = letters_or_refusal(&site).await else {
        return;
    };
    let sent = site.publish(&[("k", "again")]).await.remove(0);
    let (mut member, mut other) =
        (site.join("all", site.ordered).await, site.join("other", site.ordered).await);
    assert_eq!(other.handle(1).await, ["again"]);
    let group = site.group("all");
    for redrives in 0..2 {
        bury(&mut member, "attempts", 8).await;
        let kept = list(&*letters, &group).await;
        assert_eq!(kept.iter().map(DeadLetter::redrives).collect::<Vec<_>>(), [redrives]);
        let count = letters.redrive(&group, &[sent.id, sent.id]).await.expect("redriven");
        assert_eq!(count, 1, "a letter is redriven once");
        assert!(list(&*letters, &group).await.is_empty(), "a redriven letter is not listed");
    }
    let delivery = member.collect(1).await.remove(0);
    assert_eq!((&*delivery.message, delivery.attempt), (&sent, 1));
    ack(delivery).await;
    assert!(letters.get(&group, sent.id).await.expect("read").is_none());
    member.stays_quiet().await;
    other.stays_quiet().await;
}

/// `DeadLetters` 2: pages do not overlap, and the filter chooses.
pub async fn dead_letters_are_listed_in_pages_and_by_filter(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all", "other"]).await;
    let Some(letters) = letters_or_refusal(&site).await else {
        return;
    };
    site.publish_numbered(12).await;
    let mut member = site.join("all", false).await;
    for n in 0..12 {
        bury(&mut member, if n % 3 == 0 { "decode" } else { "permanent" }, 1).await;
    }
    let filter = DeadFilter::group(site.group("all"));
    let mut ids = BTreeSet::new();
    let mut after: Option<(String, antiphon_core::MessageId)> = None;
    loop {
        let from = after.as_ref().map(|(group, id)| (group.as_str(), *id));
        let page = letters.list(&filter, from, 5).await.expect("a page");
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 5);
        after = Some((last.group.clone(), last.message.id));
        for letter in &page {
            assert!(ids.insert(letter.message.id), "pages overlap");
        }
    }
    assert_eq!(ids.len(), 12);
    let by = async |filter: DeadFilter| {
        letters.list(&filter, None, 100).await.expect("the list is read").len()
    };
    assert_eq!(by(DeadFilter { code: Some("decode".into()), ..filter.clone() }).await, 4);
    assert_eq!(by(DeadFilter { key: Some("7".into()), ..filter.clone() }).await, 1);
    assert_eq!(by(DeadFilter { kind: Some("unknown".into()), ..filter }).await, 0);
    assert_eq!(by(DeadFilter::group(site.group("other"))).await, 0);
}

/// `DeadLetters` 4: discarding is for good, and counts what was there.
pub async fn a_discarded_letter_is_gone(harness: &impl BrokerHarness) {
    let site = Site::with_ordered_groups(harness, &["all"]).await;
    let Some(letters) = letters_or_refusal(&site).await else {
        return;
    };
    let sent = site.publish(&[("k", "one"), ("k", "two")]).await;
    let mut member = site.join("all", site.ordered).await;
    bury(&mut member, "permanent", 1).await;
    bury(&mut member, "permanent", 1).await;
    let group = site.group("all");
    let unknown = site.message("k", "never sent").id;
    let count = letters.discard(&group, &[sent[0].id, unknown]).await.expect("discarded");
    assert_eq!(count, 1);
    let kept = list(&*letters, &group).await;
    assert_eq!(kept.iter().map(|letter| letter.message.id).collect::<Vec<_>>(), [sent[1].id]);
    assert_eq!(letters.redrive(&group, &[sent[0].id]).await.expect("answered"), 0);
    member.stays_quiet().await;
}
