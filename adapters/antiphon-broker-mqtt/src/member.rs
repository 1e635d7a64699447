//! A member of a group: what its consumer, its settlements and its keeper share.
//!
//! The consumer fetches from a [`Shelf`], the connections of its lanes fill it, and the keeper
//! ([`keeper`]) decides with the other members which lanes it has. None of them waits for another.

pub(crate) mod keeper;
mod lane;
mod view;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::{Clock, MessageId};
use antiphon_messaging::{Settled, Settling};
use parking_lot::Mutex;
use rumqttc::v5::mqttbytes::v5::Publish;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::connect::Dialer;
use crate::connection::{Link, Outcome};
use crate::envelope;
use crate::hub::is_taken;
use crate::registry::GroupRecord;
use crate::settings::Acknowledge;
use crate::settle::Acks;
use crate::shelf::Shelf;
use view::{TriedNote, View};

/// How long the note of a try is kept that nobody removes: its message went another way.
const TRIED_VALID: Duration = Duration::from_secs(7 * 86_400);

/// See the module.
pub(crate) struct Member {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) group: String,
    pub(crate) record: GroupRecord,
    /// Its name among the members: new each time, and never used again.
    pub(crate) id: String,
    pub(crate) state: Mutex<State>,
    /// There may be something to fetch.
    pub(crate) fetch: Notify,
    /// There may be something to do for the keeper.
    pub(crate) keep: Notify,
    /// The keeper has ended.
    pub(crate) left: Notify,
    clock: Clock,
    runtime: Handle,
}

/// What happens to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It takes its share.
    Joined,
    /// It finishes what its consumer has, and leaves.
    Closing,
    /// It leaves at once.
    Dropped,
}

/// What changes.
pub(crate) struct State {
    pub(crate) mode: Mode,
    /// Why it is over.
    pub(crate) lost: Option<String>,
    pub(crate) has_left: bool,
    pub(crate) shelf: Shelf,
    pub(crate) lanes: Vec<Lane>,
    /// The connection for notes; until the member leaves.
    pub(crate) control: Option<Link>,
    /// Lanes to give up, of which the consumer has something and does not know it yet.
    pub(crate) revoking: Vec<u32>,
    view: View,
}

/// The connection of one lane.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) link: Option<Link>,
    pub(crate) acks: Acks,
    /// Which connection of the lane may put messages on the shelf.
    epoch: u64,
}

impl Member {
    fn new(dialer: Arc<Dialer>, group: String, record: GroupRecord, ordered: bool) -> Self {
        let lanes = record.lanes;
        let in_order = dialer.settings.acknowledge == Acknowledge::Received;
        let lane = || Lane { acks: Acks::new(in_order), ..Lane::default() };
        let state = State {
            mode: Mode::Joined,
            lost: None,
            has_left: false,
            shelf: Shelf::new(ordered, lanes),
            lanes: (0..lanes).map(|_| lane()).collect(),
            control: None,
            revoking: Vec::new(),
            view: View::new(lanes),
        };
        Self {
            dialer,
            group,
            record,
            id: uuid::Uuid::new_v4().simple().to_string(),
            state: Mutex::new(state),
            fetch: Notify::new(),
            keep: Notify::new(),
            left: Notify::new(),
            clock: Clock::system(),
            runtime: Handle::current(),
        }
    }

    /// Notes what was tried with a message, so that whoever gets it next knows. Answers when the
    /// note is as safe as the message.
    pub(crate) fn note_tries(
        &self,
        control: &Link,
        lane: u32,
        id: MessageId,
        attempts: u32,
        after: Duration,
    ) -> Settling {
        let due = (self.clock.now() + after).as_millis();
        let text = serde_json::to_string(&TriedNote { attempts, due }).unwrap_or_default();
        let (note, control) = (self.dialer.names.tried(&self.group, lane, id), control.clone());
        let noted = self.runtime.spawn(async move {
            let outcome = control.note(&note, text, Some(TRIED_VALID)).await;
            matches!(outcome, Outcome::Answered(reason) if is_taken(reason))
        });
        Settling::Wait(Box::pin(async move {
            // Without the note it comes again all the same, only sooner or with fewer tries.
            if noted.await.unwrap_or(false) { Settled::Confirmed } else { Settled::Stale }
        }))
    }

    /// Removes the note of a message that is done.
    pub(crate) fn forget_tries(&self, control: &Link, lane: u32, id: MessageId) {
        let (note, control) = (self.dialer.names.tried(&self.group, lane, id), control.clone());
        self.runtime.spawn(async move { control.note(&note, "", None).await });
    }

    /// A message has come in on a lane.
    fn arrived(&self, epoch: u64, lane: u32, packet: Publish) {
        let names = &self.dialer.names;
        let from = String::from_utf8_lossy(&packet.topic);
        let topic = names.lane_of(&from).map_or_else(|| from.into_owned(), |(topic, _)| topic);
        let id = packet.pkid;
        let message = envelope::message(&topic, packet);
        let mut state = self.state.lock();
        if !state.is_current(epoch, lane) || state.mode != Mode::Joined {
            return;
        }
        state.lanes[index(lane)].acks.came(id);
        let tried = state.view.tries(message.id, &self.clock);
        state.shelf.put(lane, id, message, tried);
        let paused = state.shelf.is_paused(lane);
        drop(state);
        if !paused {
            self.fetch.notify_one();
        }
    }

    /// The consumer is gone, or wants no more.
    pub(crate) fn leave(&self, mode: Mode) {
        {
            let mut state = self.state.lock();
            if mode == Mode::Closing && state.mode == Mode::Dropped {
                return;
            }
            state.mode = mode;
            if mode == Mode::Dropped {
                // What was handed out can no longer be settled.
                state.shelf.clear_all();
            }
        }
        self.keep.notify_one();
    }

    /// Waits until the group is left.
    pub(crate) async fn gone(&self) {
        loop {
            let left = self.left.notified();
            if self.state.lock().has_left {
                return;
            }
            left.await;
        }
    }
}

impl State {
    fn is_current(&self, epoch: u64, lane: u32) -> bool {
        self.lanes[index(lane)].epoch == epoch && self.lost.is_none()
    }

    /// Lets go of a lane; its messages are the broker's again.
    fn let_go(&mut self, lane: u32) -> Option<Link> {
        self.shelf.clear(lane);
        self.revoking.retain(|one| *one != lane);
        let state = &mut self.lanes[index(lane)];
        state.epoch += 1;
        state.acks.clear();
        state.link.take()
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("group", &self.group)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn index(lane: u32) -> usize {
    usize::try_from(lane).unwrap_or(usize::MAX)
}
