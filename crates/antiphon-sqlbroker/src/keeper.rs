//! The task beside each member: renews its leases, shares lanes with the other members, and writes
//! down what was settled.
//!
//! It ends with its member. When it cannot do its work any more, the member is lost and the
//! consumer subscribes anew.

use std::sync::{Arc, Weak};
use std::time::Duration;

use antiphon_messaging::LANES;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::change::{Beat, Change, Outcome, Progress, Shared, Taken, unexpected};
use crate::core::Core;
use crate::log::Log;
use crate::member::{Member, State};
use crate::share::{At, Cursor};

/// How long a lease lasts without being renewed.
const TTL: Duration = Duration::from_secs(5);
/// How much earlier its holder stops believing in it.
const MARGIN: Duration = Duration::from_millis(500);
/// How often leases are renewed, and how often by a member that waits for lanes.
const BEAT: Duration = Duration::from_millis(1_000);
const BEAT_HUNGRY: Duration = Duration::from_millis(250);
/// How long settlements gather before they are written.
const GATHER: Duration = Duration::from_millis(4);
/// How long a wait for a due message is at most: the clock may be moved.
const DUE_MAX: Duration = Duration::from_millis(50);
/// How long a consumer may take to let go of lanes.
const REVOKE_MAX: Duration = Duration::from_secs(10);

/// Keeps `member` until it has left.
pub(crate) async fn keep<L: Log>(member: Weak<Member<L>>) {
    let Some(work) = member.upgrade().map(|member| Arc::clone(&member.work)) else { return };
    let mut beat_at = Instant::now();
    let mut stirred = None;
    loop {
        let Some(member) = member.upgrade() else { return };
        let regroup = {
            let mut state = member.state.lock();
            if state.over || state.lost.is_some() {
                return;
            }
            std::mem::take(&mut state.regroup)
        };
        if regroup || Instant::now() >= beat_at {
            let hungry = beat(&member, &mut stirred).await;
            beat_at = Instant::now() + if hungry { BEAT_HUNGRY } else { BEAT };
            flush(&member, true).await;
            // What was held back while a lease was in doubt can go on.
            member.wake.notify_one();
        } else {
            flush(&member, false).await;
        }
        let due = wait_for_due(&member);
        drop(member);
        let until = beat_at.min(Instant::now() + due);
        if tokio::time::timeout_at(until, work.notified()).await.is_ok() {
            tokio::time::sleep(GATHER).await;
        }
    }
}

/// How long nothing is due; wakes the consumer when something is.
fn wait_for_due<L: Log>(member: &Member<L>) -> Duration {
    let now = member.core.now();
    match member.state.lock().share.next_due() {
        None => BEAT,
        Some(due) if due <= now => {
            member.wake.notify_one();
            DUE_MAX
        }
        Some(due) => due.since(now).min(DUE_MAX),
    }
}

/// Writes down what was settled; with `all`, also how far was read.
async fn flush<L: Log>(member: &Arc<Member<L>>, all: bool) {
    let (progress, done) = {
        let mut state = member.state.lock();
        if state.over {
            return;
        }
        let lanes: Vec<u32> = state.share.lanes().map(|(number, _)| number).collect();
        let progress = member.progress(&mut state, &lanes, all);
        (progress, done_rows(&state))
    };
    if progress.iter().all(|progress| progress.cursors.is_empty() && progress.done.is_empty()) {
        return;
    }
    let group = member.identity.group;
    let core = Arc::downgrade(&member.core);
    let written = member.core.write(Change::Advance { group, progress }, move |_| {
        core.upgrade().as_deref().map(Core::keep_house);
    });
    match written.get().await {
        Ok(Outcome::Lost(lost)) if lost.is_empty() => {
            let mut state = member.state.lock();
            for (number, token, done) in done {
                if let Some(lane) = state.share.lane_mut(number).filter(|l| l.token == token) {
                    lane.waiting.removed(&done);
                }
            }
        }
        Ok(_) => member.lose("a lease was lost to another instance".into()),
        Err(failure) => member.lose(format!("writing settlements failed: {failure}")),
    }
}

fn done_rows(state: &State) -> Vec<(u32, i64, Vec<At>)> {
    let lanes = state.share.lanes();
    lanes.map(|(number, lane)| (number, lane.token, lane.waiting.done_rows())).collect()
}

/// Renews leases and brings the number of lanes to the fair share. Answers whether lanes are
/// missing.
async fn beat<L: Log>(member: &Arc<Member<L>>, stirred: &mut Option<i64>) -> bool {
    let asked = Instant::now();
    let beat = {
        let state = member.state.lock();
        Beat {
            held: state.share.lanes().map(|(number, lane)| (number, lane.token)).collect(),
            closing: state.closing,
            // What an ordered consumer holds back would hold back the next one, too.
            idle: state.is_idle() && !state.share.ordered(),
            now: member.core.now(),
            ttl: TTL,
        }
    };
    let (identity, core) = (member.identity.clone(), Arc::downgrade(&member.core));
    let (group, owner) = (identity.group, identity.owner.clone());
    let answer = member.core.write(Change::Beat(identity, beat), move |outcome| {
        if let (Ok(Outcome::Shared(Shared { joined: true, .. })), Some(core)) =
            (outcome, core.upgrade())
        {
            core.regrouped(group, &owner);
        }
    });
    let shared = match answer.get().await {
        Ok(Outcome::Shared(shared)) => Ok(shared),
        Ok(other) => Err(unexpected(&other)),
        Err(failure) => Err(failure),
    };
    let mut shared = match shared {
        Ok(shared) => shared,
        Err(failure) => {
            tracing::warn!(%failure, "leases of messages were not renewed");
            let state = member.state.lock();
            let expired = state.share.lanes().any(|(_, lane)| lane.until <= Instant::now());
            drop(state);
            if expired {
                member.lose(format!("leases were not renewed in time: {failure}"));
            }
            return true;
        }
    };
    let until = asked + TTL - MARGIN;
    if !renewed(member, &shared, until) {
        return false;
    }
    let taken = std::mem::take(&mut shared.taken);
    let lanes = shared.kept.len() + taken.len();
    if !taken.is_empty() {
        enter(member, taken, until).await;
    }
    if stirred.replace(shared.stirred).is_some_and(|before| before != shared.stirred) {
        look_for_stirred(member).await;
    }
    if lanes > shared.target {
        give_back(member, shared.target);
    }
    lanes < shared.target
}

fn renewed<L: Log>(member: &Member<L>, shared: &Shared, until: Instant) -> bool {
    let mut state = member.state.lock();
    let mut all = true;
    for (number, lane) in state.share.lanes_mut() {
        if shared.kept.contains(&number) {
            lane.until = until;
        } else {
            all = false;
        }
    }
    drop(state);
    if !all {
        member.lose("a lease was lost to another instance".into());
    }
    all
}

/// Begins with lanes that were taken over.
async fn enter<L: Log>(member: &Arc<Member<L>>, taken: Vec<Taken>, until: Instant) {
    let core = &member.core;
    let (group, topics) = (member.identity.group, Arc::clone(&member.topics));
    let taken: Arc<[Taken]> = taken.into();
    let inherited = match core.log.inherit(group, topics, Arc::clone(&taken)).await {
        Ok(inherited) => inherited,
        Err(failure) => return member.lose(format!("reading lanes failed: {failure}")),
    };
    let mut unwanted = Vec::new();
    {
        let mut state = member.state.lock();
        let leaving = state.over || state.closing;
        for (taken, inheritance) in taken.iter().zip(inherited) {
            if leaving {
                unwanted.push(Progress {
                    lane: taken.lane,
                    token: taken.token,
                    cursors: Vec::new(),
                    done: Vec::new(),
                });
                continue;
            }
            let cursors = taken.cursors.iter();
            let cursors = cursors.map(|(position, open)| Cursor::new(*position, open.clone()));
            state.share.enter(
                taken.lane,
                taken.token,
                until,
                cursors.collect(),
                inheritance.waiting,
                inheritance.again,
            );
            for broken in inheritance.broken {
                member.bury_broken(broken, taken.token, false);
            }
        }
        state.unread = true;
    }
    if !unwanted.is_empty() {
        let member = member.identity.clone();
        let change = Change::Release { member, progress: unwanted, claimed: Vec::new() };
        drop(core.write(change, |_| {}));
    }
    member.wake.notify_one();
}

/// Dead letters may have come back as waiting messages, and claimed messages as due ones.
async fn look_for_stirred<L: Log>(member: &Arc<Member<L>>) {
    let lanes: Vec<(u32, i64)> = {
        let state = member.state.lock();
        state.share.lanes().map(|(number, lane)| (number, lane.token)).collect()
    };
    let (group, topics) = (member.identity.group, Arc::clone(&member.topics));
    let numbers = lanes.iter().map(|(number, _)| *number).collect();
    match member.core.log.waiting(group, topics, numbers).await {
        Ok(found) => {
            let mut state = member.state.lock();
            for ((number, token), waiting) in lanes.into_iter().zip(found) {
                let lane = state.share.lane_mut(number).filter(|lane| lane.token == token);
                if let Some(lane) = lane {
                    lane.waiting.refresh(waiting);
                }
            }
        }
        Err(failure) => member.lose(format!("reading waiting messages failed: {failure}")),
    }
    member.wake.notify_one();
}

/// Gives lanes back that others have a right to: at once where the consumer has nothing of them,
/// otherwise when it has let go.
fn give_back<L: Log>(member: &Arc<Member<L>>, target: usize) {
    let mut state = member.state.lock();
    let mine: Vec<u32> = {
        let lanes = state.share.lanes().filter(|(_, lane)| !lane.leaving);
        lanes.map(|(number, _)| number).collect()
    };
    let surplus: Vec<u32> = mine.into_iter().skip(target).collect();
    if surplus.is_empty() {
        return;
    }
    for lane in &surplus {
        state.share.stop(*lane);
    }
    let busy = release_idle(member, &mut state, surplus);
    if !busy.is_empty() {
        let (done, let_go) = oneshot::channel();
        state.revoked.push_back((busy.clone(), done));
        tokio::spawn(release_when_let_go(Arc::downgrade(member), busy, let_go));
    }
    drop(state);
    member.wake.notify_one();
}

/// Releases those of the stopped `lanes` that need not wait for the consumer, and answers with the
/// others. Without order none needs to: the consumer keeps what it has.
pub(crate) fn release_idle<L: Log>(
    member: &Member<L>,
    state: &mut State,
    lanes: Vec<u32>,
) -> Vec<u32> {
    let (busy, idle): (Vec<u32>, Vec<u32>) =
        lanes.into_iter().partition(|lane| state.share.ordered() && state.share.held_of(*lane) > 0);
    release(member, state, &idle);
    busy
}

async fn release_when_let_go<L: Log>(
    member: Weak<Member<L>>,
    lanes: Vec<u32>,
    let_go: oneshot::Receiver<()>,
) {
    if tokio::time::timeout(REVOKE_MAX, let_go).await.is_err() {
        tracing::warn!(?lanes, "a consumer did not let go of lanes in time");
    }
    if let Some(member) = member.upgrade() {
        let mut state = member.state.lock();
        if !state.over {
            release(&member, &mut state, &lanes);
        }
    }
}

fn release<L: Log>(member: &Member<L>, state: &mut State, lanes: &[u32]) {
    if lanes.is_empty() {
        return;
    }
    let mut claimed = Vec::new();
    if !state.share.ordered() {
        for ready in lanes.iter().flat_map(|lane| state.share.claim(*lane)) {
            let key = ready.message.key.clone();
            let place = member.place(ready.lane, ready.at, key, ready.waited);
            claimed.push((place, ready.attempts));
        }
    }
    let progress = member.progress(state, lanes, true);
    for lane in lanes {
        state.share.leave(*lane);
    }
    let (identity, core) = (member.identity.clone(), Arc::downgrade(&member.core));
    let (group, owner) = (identity.group, identity.owner.clone());
    let change = Change::Release { member: identity, progress, claimed };
    drop(member.core.write(change, move |_| {
        if let Some(core) = core.upgrade() {
            core.regrouped(group, &owner);
        }
    }));
}

/// How many lanes a member is to have, given all members of the group, each with whether it is
/// idle: the lanes divided by the members; the first in the order of their names get one more.
/// Idle members get none, unless all are idle.
#[must_use]
pub fn fair_share(members: &[(String, bool)], owner: &str) -> usize {
    let all_idle = members.iter().all(|(_, idle)| *idle);
    let counts = |idle: bool| all_idle || !idle;
    if members.iter().any(|(name, idle)| name == owner && !counts(*idle)) {
        return 0;
    }
    let counted = members.iter().filter(|(_, idle)| counts(*idle));
    let (mut count, mut before) = (0, 0);
    for (name, _) in counted {
        count += 1;
        before += u32::from(name.as_str() < owner);
    }
    let count = count.max(1);
    (LANES / count) as usize + usize::from(before < LANES % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_shared_out_among_those_who_ask() {
        let members = |names: &[(&str, bool)]| -> Vec<(String, bool)> {
            names.iter().map(|(name, idle)| ((*name).to_owned(), *idle)).collect()
        };
        let three = members(&[("a", false), ("b", false), ("c", false)]);
        let shares: Vec<usize> = three.iter().map(|(name, _)| fair_share(&three, name)).collect();
        assert_eq!(shares, [6, 5, 5]);
        let one_idle = members(&[("a", true), ("b", false)]);
        assert_eq!((fair_share(&one_idle, "a"), fair_share(&one_idle, "b")), (0, 16));
        let all_idle = members(&[("a", true), ("b", true)]);
        assert_eq!((fair_share(&all_idle, "a"), fair_share(&all_idle, "b")), (8, 8));
        let many: Vec<(String, bool)> = (10..30).map(|n| (n.to_string(), false)).collect();
        let sum: usize = many.iter().map(|(name, _)| fair_share(&many, name)).sum();
        assert_eq!(sum, LANES as usize);
    }
}
