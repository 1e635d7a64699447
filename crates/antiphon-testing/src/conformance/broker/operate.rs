//! The operator's view: rules of [`Operate`].

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::Severity;
use antiphon_messaging::{GroupState, Operate, Settlement};
use tokio::time::Instant;

use super::{BrokerHarness, PATIENCE, Site, ack, settle};

fn view(site: &Site) -> Arc<dyn Operate> {
    site.broker.operate().expect("a broker can be looked at")
}

/// The state of the group `all` of the site.
async fn state(site: &Site) -> GroupState {
    let groups = view(site).groups().await.expect("groups are listed");
    let name = site.group("all");
    groups.into_iter().find(|group| group.name == name).expect("the group is listed")
}

/// Looks until the group is as it should be: counts may be moments old.
async fn until(site: &Site, what: &str, is: impl Fn(&GroupState) -> bool) {
    let begun = Instant::now();
    loop {
        let state = state(site).await;
        if is(&state) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}, but it is {state:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a count is as expected, or the broker cannot say.
fn counts(count: Option<u64>, expected: u64) -> bool {
    count.is_none_or(|count| count == expected)
}

/// `Operate` 2: what was declared is listed by name, whether or not anybody is there.
pub async fn topics_and_groups_without_members_are_listed(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["two", "one"]).await;
    let view = view(&site);
    let topics = view.topics().await.expect("topics are listed");
    assert!(topics.iter().any(|topic| topic.name == site.topic), "{topics:?}");
    assert!(topics.is_sorted_by(|one, other| one.name < other.name), "by name: {topics:?}");
    let groups = view.groups().await.expect("groups are listed");
    assert!(groups.is_sorted_by(|one, other| one.name < other.name), "by name: {groups:?}");
    for name in ["one", "two"] {
        let name = site.group(name);
        let group = groups.iter().find(|group| group.name == name);
        let group = group.unwrap_or_else(|| unreachable!("{name} is not in {groups:?}"));
        assert_eq!(group.topics, std::slice::from_ref(&site.topic));
        assert!(group.members.is_none_or(|members| members == 0), "{group:?}");
        assert!(counts(group.lag, 0) && counts(group.waiting, 0), "{group:?}");
    }
}

/// [`GroupState::lag`] counts what was not delivered, and what was delivered and not settled;
/// `Operate` 1: looking changes nothing of it.
pub async fn the_lag_of_a_group_counts_what_is_not_handled(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    site.publish_numbered(10).await;
    until(&site, "nothing was handled", |group| counts(group.lag, 10)).await;
    let mut member = site.join("all", false).await;
    member.handle(4).await;
    until(&site, "four of ten were handled", |group| counts(group.lag, 6)).await;
    let held = member.collect(2).await;
    until(&site, "what is held is not handled", |group| {
        counts(group.lag, 6) && group.members.is_none_or(|members| members == 1)
    })
    .await;
    for delivery in held {
        ack(delivery).await;
    }
    member.handle(4).await;
    until(&site, "all were handled", |group| counts(group.lag, 0)).await;
    member.stays_quiet().await;
}

/// [`GroupState::waiting`] counts what waits for a retry, which is not handled either.
pub async fn what_waits_for_a_retry_is_counted(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    let wait = Duration::from_secs(30);
    if site.broker.capabilities().retry_delay_max < wait {
        // Nothing waits at the broker, and that is what it says.
        until(&site, "nothing can wait", |group| counts(group.waiting, 0)).await;
        return;
    }
    site.publish_numbered(3).await;
    let mut member = site.join("all", false).await;
    let mut held = member.collect(3).await;
    settle(held.remove(0), Settlement::Retry { after: wait, attempts: 1 }).await;
    for delivery in held {
        ack(delivery).await;
    }
    until(&site, "one waits", |group| counts(group.waiting, 1) && counts(group.lag, 1)).await;
}

/// `Operate` 3: there is something to say of a broker that works, and none of it is a problem.
pub async fn a_broker_that_works_has_findings_and_no_problem(harness: &impl BrokerHarness) {
    let site = Site::with_groups(harness, &["all"]).await;
    let findings = view(&site).findings().await;
    assert!(!findings.is_empty(), "at least what it is");
    for finding in &findings {
        assert!(!finding.subject.is_empty() && !finding.text.is_empty(), "{finding:?}");
        assert!(finding.severity < Severity::Problem, "{finding}");
        let needs_advice = finding.severity >= Severity::Warning;
        assert!(finding.advice.is_some() || !needs_advice, "what to change: {finding}");
    }
}
