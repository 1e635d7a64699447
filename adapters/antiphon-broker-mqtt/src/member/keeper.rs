//! Keeps a member in its group: says that it is there, takes the lanes of its share, gives up the
//! others, and leaves.
//!
//! A lane is a session at the broker, and whoever connects under its client id has it; who had it
//! before is put out. So that this does not happen to the living, a lane is taken only when its note
//! says so: the note is set when the lane is free, and removed when the session is closed and the
//! broker has read the last acknowledgement. Only a member whose own note is gone, or out of date,
//! is not waited for.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Publish;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::lane::{self, CLAIM_WITHIN, Owner, Phase, Seen, Step};
use super::view::{HERE, LEAVING};
use super::{Member, Mode, State};
use crate::connect::{Dial, Dialer};
use crate::connection::{Link, Outcome, Sink};
use crate::error::{End, OpenError};
use crate::hub::{Fences, is_taken};
use crate::names::Note;
use crate::registry::GroupRecord;
use crate::topology::filters;

/// How long members may come and go before anybody acts on it.
const GRACE: Duration = Duration::from_millis(20);
/// How soon to look again after something was begun.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long joining waits for a share of the lanes.
const SHARE_WITHIN: Duration = Duration::from_secs(1);
/// The first and the longest pause before a lane is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

#[derive(Debug)]
struct Post {
    phase: Phase,
    not_before: Option<Instant>,
    pause: Duration,
}

/// What has ended.
enum Done {
    Nothing,
    Connected(u32, Result<Link, OpenError>),
    Ended(u32, u64, End),
    Closed(u32),
}

/// See the module.
struct Keeper {
    member: Arc<Member>,
    control: Link,
    posts: Vec<Post>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    refresh: Instant,
    said: &'static str,
    /// Told when the member first has its share.
    ready: Option<oneshot::Sender<()>>,
}

/// Joins a group.
pub(crate) async fn join(
    dialer: &Arc<Dialer>,
    group: &str,
    record: GroupRecord,
    ordered: bool,
) -> Result<Arc<Member>, OpenError> {
    let member = Arc::new(Member::new(Arc::clone(dialer), group.to_owned(), record, ordered));
    let names = &dialer.names;
    let presence = names.presence(group, &member.id);
    let fences = Arc::new(Fences::default());
    let fence = names.fence(&member.id);
    let dial = Dial { clears: Some(presence), ..Dial::passing(names.client(&member.id)) };
    let control = dialer.connect(dial, sink(&member, Arc::clone(&fences))).await?;
    let filters = vec![names.notes(group), fence.clone()];
    let subscribed = control.subscribe(filters, QoS::AtMostOnce).await;
    subscribed.map_err(|reason| OpenError::Ended { address: dialer.place(), reason })?;
    let posts = (0..member.record.lanes)
        .map(|_| Post { phase: Phase::Idle, not_before: None, pause: PAUSES.0 })
        .collect();
    let (ready, has_share) = oneshot::channel();
    let keeper = Keeper {
        member: Arc::clone(&member),
        control: control.clone(),
        posts,
        work: FuturesUnordered::new(),
        refresh: Instant::now(),
        said: HERE,
        ready: Some(ready),
    };
    let orphans = std::mem::take(&mut *dialer.orphans.lock());
    for orphan in orphans {
        // Whoever counts this one as present would leave lanes to it.
        let _ = control.note(&orphan, "", None).await;
    }
    let _ = say(&control, &member, HERE).await;
    let (number, passed) = fences.set();
    control.tell(&fence, number.to_string());
    tokio::select! {
        _ = passed => {}
        end = control.ended() => {
            let reason = end.to_string();
            return Err(OpenError::Ended { address: dialer.place(), reason });
        }
    }
    member.state.lock().control = Some(control);
    tokio::spawn(keeper.run());
    // Others may be busy with what they have; its share comes in time.
    let _ = tokio::time::timeout(SHARE_WITHIN, has_share).await;
    Ok(member)
}

fn sink(member: &Arc<Member>, fences: Arc<Fences>) -> Sink {
    let member = Arc::clone(member);
    Box::new(move |publish: Publish| {
        let topic = String::from_utf8_lossy(&publish.topic);
        let Some(note) = member.dialer.names.note_of(&topic) else {
            return fences.pass(&publish.payload);
        };
        {
            let mut state = member.state.lock();
            match note {
                Note::Member { member: id, .. } => {
                    let left = publish.properties.as_ref().and_then(|p| p.message_expiry_interval);
                    let valid = left
                        .map_or(member.valid(), |seconds| Duration::from_secs(u64::from(seconds)));
                    state.view.member(id, &publish.payload, valid, Instant::now());
                }
                Note::Lane { lane, .. } => state.view.owner(lane, &publish.payload),
                Note::Tried { id, .. } => return state.view.tried(id, &publish.payload),
            }
        }
        member.keep.notify_one();
    })
}

impl Member {
    /// How long its note is valid.
    fn valid(&self) -> Duration {
        // Somewhat longer than the broker needs to see that the connection is dead.
        self.dialer.settings.keep_alive.0 * 2
    }
}

impl Keeper {
    async fn run(mut self) {
        loop {
            let next = self.turn();
            if let Some(reason) = self.over() {
                return self.end(reason).await;
            }
            let keep = Arc::clone(&self.member);
            let pause = next.saturating_duration_since(Instant::now());
            tokio::select! {
                end = self.control.ended() => {
                    return self.end(Some(format!("the member's connection ended: {end}"))).await;
                }
                Some(done) = self.work.next(), if !self.work.is_empty() => {
                    if let Err(reason) = self.done(done) {
                        return self.end(Some(reason)).await;
                    }
                }
                () = keep.keep.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Begins whatever is to be done; when to look again at the latest.
    fn turn(&mut self) -> Instant {
        let now = Instant::now();
        let member = Arc::clone(&self.member);
        let mut state = member.state.lock();
        state.view.expire(&member.id, now);
        let joined = state.mode == Mode::Joined;
        self.say(if joined { HERE } else { LEAVING }, now);
        let changed = state.view.changed.map(|changed| changed + GRACE);
        let settled = changed.is_none_or(|until| now >= until);
        let expiry = state.view.next_expiry(&member.id);
        let moments = [Some(self.refresh), changed.filter(|_| !settled), expiry];
        let mut next = moments.into_iter().flatten().min().unwrap_or(self.refresh);
        let share = state.view.share_of(&member.id);
        let mut complete = settled;
        for (lane, wanted) in (0..).zip(share) {
            let post = &self.posts[super::index(lane)];
            let seen = Seen {
                now,
                wanted: wanted && joined,
                owner: match state.view.owner_of(lane) {
                    None => Owner::Nobody,
                    Some(owner) if owner == member.id => Owner::Own,
                    Some(_) => Owner::Other,
                },
                settled,
                joined,
                out: state.shelf.out(lane),
                not_before: post.not_before,
                handover: member.dialer.settings.handover_timeout.0,
            };
            complete &= !seen.wanted || matches!(post.phase, Phase::Owned { .. });
            match lane::step(post.phase, &seen) {
                Step::Wait(until) => next = until.map_or(next, |until| next.min(until)),
                // What comes after it depends on what has been done.
                other => {
                    self.carry_out(lane, other, &mut state, now);
                    next = next.min(now + LOOK_AGAIN);
                }
            }
        }
        drop(state);
        if complete && let Some(ready) = self.ready.take() {
            let _ = ready.send(());
        }
        next
    }

    /// Says that the member is there, if that is due or has changed.
    fn say(&mut self, text: &'static str, now: Instant) {
        if text != self.said || now >= self.refresh {
            self.said = text;
            self.refresh = now + self.member.valid() / 4;
            self.work.push(say(&self.control, &self.member, text));
        }
    }

    fn carry_out(&mut self, lane: u32, step: Step, state: &mut State, now: Instant) {
        let phase = &mut self.posts[super::index(lane)].phase;
        match step {
            Step::Wait(_) => {}
            Step::Forget => *phase = Phase::Idle,
            Step::Claim => {
                *phase = Phase::Claiming(now);
                self.work.push(self.note(lane, self.member.id.clone()));
            }
            Step::Connect => {
                *phase = Phase::Connecting;
                let slot = &mut state.lanes[super::index(lane)];
                slot.epoch += 1;
                self.work.push(connect(Arc::clone(&self.member), lane, slot.epoch));
            }
            Step::Revoke => {
                *phase = Phase::Owned { revoked: Some(now) };
                state.shelf.pause(lane, true);
                if state.mode == Mode::Joined {
                    state.revoking.push(lane);
                    self.member.fetch.notify_one();
                }
            }
            Step::Keep => {
                *phase = Phase::Owned { revoked: None };
                state.shelf.pause(lane, false);
                state.revoking.retain(|one| *one != lane);
                self.member.fetch.notify_one();
            }
            Step::GiveUp => {
                *phase = Phase::Closing;
                let link = state.let_go(lane);
                self.work.push(self.give_up(lane, link));
            }
        }
    }

    /// Whether all is done; with the reason if it is not as wanted.
    fn over(&self) -> Option<Option<String>> {
        let idle = || self.posts.iter().all(|post| matches!(post.phase, Phase::Idle));
        let mode = self.member.state.lock().mode;
        (mode != Mode::Joined && idle()).then_some(None)
    }

    fn done(&mut self, done: Done) -> Result<(), String> {
        match done {
            Done::Nothing => {}
            Done::Connected(lane, Ok(link)) => self.connected(lane, link),
            Done::Connected(lane, Err(error)) => {
                let group = &self.member.group;
                tracing::warn!(group, lane, %error, "a lane cannot be taken yet");
                self.later(lane);
            }
            Done::Ended(lane, epoch, end) => return self.ended(lane, epoch, &end),
            Done::Closed(lane) => self.posts[super::index(lane)].phase = Phase::Idle,
        }
        Ok(())
    }

    fn connected(&mut self, lane: u32, link: Link) {
        let post = &mut self.posts[super::index(lane)];
        post.phase = Phase::Owned { revoked: None };
        let epoch = {
            let mut state = self.member.state.lock();
            state.shelf.pause(lane, false);
            let slot = &mut state.lanes[super::index(lane)];
            slot.link = Some(link.clone());
            slot.epoch
        };
        self.work.push(async move { Done::Ended(lane, epoch, link.ended().await) }.boxed());
        self.member.fetch.notify_one();
    }

    /// The connection of a lane has ended. If the consumer has something of it, its epoch is over.
    fn ended(&mut self, lane: u32, epoch: u64, end: &End) -> Result<(), String> {
        let mut state = self.member.state.lock();
        if state.lanes[super::index(lane)].epoch != epoch || *end == End::Closed {
            return Ok(());
        }
        let out = state.shelf.out(lane);
        drop(state.let_go(lane));
        drop(state);
        if out > 0 {
            return Err(format!("the connection of lane {lane} ended: {end}"));
        }
        tracing::debug!(group = self.member.group, lane, %end, "a lane is taken anew");
        self.later(lane);
        Ok(())
    }

    /// Tries a lane again after a while, if it still is to be had.
    fn later(&mut self, lane: u32) {
        let post = &mut self.posts[super::index(lane)];
        post.phase = Phase::Idle;
        post.not_before = Some(Instant::now() + post.pause.mul_f64(0.5 + 0.5 * fastrand::f64()));
        post.pause = (post.pause * 2).min(PAUSES.1);
    }

    fn note(&self, lane: u32, owner: String) -> BoxFuture<'static, Done> {
        let (control, member) = (self.control.clone(), Arc::clone(&self.member));
        async move {
            let note = member.dialer.names.owner(&member.group, lane);
            check(control.note(&note, owner, None).await, &note);
            Done::Nothing
        }
        .boxed()
    }

    /// Closes the session and then says that the lane is free, if it was ours to say.
    fn give_up(&self, lane: u32, link: Option<Link>) -> BoxFuture<'static, Done> {
        let (control, member) = (self.control.clone(), Arc::clone(&self.member));
        async move {
            if let Some(link) = link {
                link.close().await;
            }
            let ours = member.state.lock().view.owner_of(lane) == Some(&*member.id);
            if ours {
                let note = member.dialer.names.owner(&member.group, lane);
                check(control.note(&note, "", None).await, &note);
                member.state.lock().view.owner(lane, b"");
            }
            Done::Closed(lane)
        }
        .boxed()
    }

    /// Leaves the group.
    async fn end(mut self, lost: Option<String>) {
        let links: Vec<Option<Link>> = {
            let mut state = self.member.state.lock();
            let lanes = 0..self.member.record.lanes;
            let links = lanes.map(|lane| state.let_go(lane)).collect();
            state.control = None;
            if lost.is_some() {
                state.shelf.clear_all();
                state.lost.clone_from(&lost);
            }
            links
        };
        self.member.fetch.notify_one();
        let (control, member) = (self.control.clone(), Arc::clone(&self.member));
        let leave = async {
            futures_util::future::join_all(links.iter().flatten().map(Link::close)).await;
            drop(std::mem::take(&mut self.work));
            let presence = member.dialer.names.presence(&member.group, &member.id);
            if control.is_over() {
                member.dialer.orphans.lock().push(presence);
            } else {
                for lane in 0..member.record.lanes {
                    let ours = member.state.lock().view.owner_of(lane) == Some(&*member.id);
                    if ours {
                        let _ = control
                            .note(&member.dialer.names.owner(&member.group, lane), "", None)
                            .await;
                    }
                }
                let _ = control.note(&presence, "", None).await;
            }
            control.close().await;
        };
        let _ = tokio::time::timeout(CLAIM_WITHIN, leave).await;
        self.member.state.lock().has_left = true;
        self.member.left.notify_one();
    }
}

/// Says that the member is there.
fn say(control: &Link, member: &Arc<Member>, text: &'static str) -> BoxFuture<'static, Done> {
    let (control, member) = (control.clone(), Arc::clone(member));
    async move {
        let note = member.dialer.names.presence(&member.group, &member.id);
        check(control.note(&note, text, Some(member.valid())).await, &note);
        Done::Nothing
    }
    .boxed()
}

/// Connects to the session of a lane.
fn connect(member: Arc<Member>, lane: u32, epoch: u64) -> BoxFuture<'static, Done> {
    async move {
        let link = open(&member, lane, epoch).await;
        Done::Connected(lane, link)
    }
    .boxed()
}

async fn open(member: &Arc<Member>, lane: u32, epoch: u64) -> Result<Link, OpenError> {
    let dialer = &member.dialer;
    let dial = Dial {
        client_id: dialer.names.session(&member.group, lane),
        keeps: true,
        receive_max: Some(dialer.settings.lane_window),
        clears: None,
    };
    let receiver = Arc::clone(member);
    let sink: Sink = Box::new(move |packet| receiver.arrived(epoch, lane, packet));
    let link = dialer.connect(dial, sink).await?;
    if !link.server().session_present {
        let group = &member.group;
        tracing::warn!(group, lane, "the broker has lost this session and what it kept");
        let filters = filters(dialer, &member.record, lane);
        let subscribed = link.subscribe(filters, QoS::AtLeastOnce).await;
        subscribed.map_err(|reason| OpenError::Ended { address: dialer.place(), reason })?;
    }
    Ok(link)
}

fn check(outcome: Outcome, note: &str) {
    if let Outcome::Answered(reason) = outcome
        && !is_taken(reason)
    {
        tracing::warn!(note, ?reason, "the broker refuses a note");
    }
}
