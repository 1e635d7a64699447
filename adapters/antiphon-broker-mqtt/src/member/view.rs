//! What a member knows of the others: who is there, and who has which lane.
//!
//! A member that is there says so again and again; its note goes out of date by itself. The broker
//! also clears the note when the member's connection ends badly, which is faster; the date is for
//! brokers that were restarted and know nothing of the connections that they had.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use antiphon_core::{Clock, MessageId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::share::shares;
use crate::shelf::Tried;

/// The note of a member that takes lanes.
pub(super) const HERE: &str = "here";
/// The note of a member that only finishes what it has.
pub(super) const LEAVING: &str = "leaving";

/// See the module.
#[derive(Debug)]
pub(super) struct View {
    members: BTreeMap<String, Presence>,
    /// By lane.
    owners: Vec<Option<String>>,
    /// What was tried with messages that came back.
    tried: HashMap<MessageId, TriedNote>,
    /// When members came or went.
    pub(super) changed: Option<Instant>,
}

/// The note of what was tried with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TriedNote {
    pub(crate) attempts: u32,
    /// When the next try may be, in milliseconds of Unix time.
    pub(crate) due: i64,
}

#[derive(Debug)]
struct Presence {
    leaving: bool,
    until: Instant,
}

impl View {
    pub(super) fn new(lanes: u32) -> Self {
        let owners = (0..lanes).map(|_| None).collect();
        Self { members: BTreeMap::new(), owners, tried: HashMap::new(), changed: None }
    }

    /// A member's note; an empty one says that it is gone.
    pub(super) fn member(&mut self, id: String, note: &[u8], valid: Duration, now: Instant) {
        if note.is_empty() {
            if self.members.remove(&id).is_some() {
                self.changed = Some(now);
            }
            return;
        }
        let presence = Presence { leaving: note == LEAVING.as_bytes(), until: now + valid };
        let leaving = presence.leaving;
        let before = self.members.insert(id, presence);
        if before.is_none_or(|before| before.leaving != leaving) {
            self.changed = Some(now);
        }
    }

    /// A lane's note.
    pub(super) fn owner(&mut self, lane: u32, note: &[u8]) {
        let owner = String::from_utf8_lossy(note);
        if let Some(slot) = self.owners.get_mut(super::index(lane)) {
            *slot = (!owner.is_empty()).then(|| owner.into_owned());
        }
    }

    /// A message's note; an empty one says that it is done.
    pub(super) fn tried(&mut self, id: MessageId, note: &[u8]) {
        match serde_json::from_slice(note) {
            Ok(note) => drop(self.tried.insert(id, note)),
            Err(_) => drop(self.tried.remove(&id)),
        }
    }

    /// What was tried with a message before.
    pub(super) fn tries(&self, id: MessageId, clock: &Clock) -> Option<Tried> {
        if self.tried.is_empty() {
            return None;
        }
        let note = self.tried.get(&id)?;
        let left = Timestamp::from_millis(note.due).since(clock.now());
        let due = (!left.is_zero()).then(|| Instant::now() + left);
        Some(Tried { attempts: note.attempts, due })
    }

    /// Forgets members whose notes are out of date, but not `own`.
    pub(super) fn expire(&mut self, own: &str, now: Instant) {
        let before = self.members.len();
        self.members.retain(|id, presence| id == own || presence.until > now);
        if self.members.len() != before {
            self.changed = Some(now);
        }
    }

    /// When the next note goes out of date.
    pub(super) fn next_expiry(&self, own: &str) -> Option<Instant> {
        self.members.iter().filter(|(id, _)| *id != own).map(|(_, one)| one.until).min()
    }

    /// Who has a lane and lives.
    pub(super) fn owner_of(&self, lane: u32) -> Option<&str> {
        let owner = self.owners.get(super::index(lane))?.as_deref()?;
        self.members.contains_key(owner).then_some(owner)
    }

    /// Which lanes `own` should have.
    pub(super) fn share_of(&self, own: &str) -> Vec<bool> {
        let takes = |(id, one): (&'_ String, &Presence)| (!one.leaving).then_some(id.clone());
        let members: Vec<String> = self.members.iter().filter_map(takes).collect();
        let members: BTreeSet<&str> = members.iter().map(String::as_str).collect();
        let lanes = u32::try_from(self.owners.len()).unwrap_or(0);
        let owners: Vec<Option<&str>> = (0..lanes).map(|lane| self.owner_of(lane)).collect();
        shares(&members, &owners).into_iter().map(|share| share == Some(own)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: Duration = Duration::from_secs(15);

    #[tokio::test(start_paused = true)]
    async fn the_dead_have_nothing_and_the_leaving_keep_what_they_have() {
        let now = Instant::now();
        let mut view = View::new(2);
        view.member("a".into(), HERE.as_bytes(), VALID, now);
        view.member("b".into(), HERE.as_bytes(), VALID * 2, now);
        view.owner(0, b"b");
        view.owner(1, b"ghost");
        assert_eq!((view.owner_of(0), view.owner_of(1)), (Some("b"), None));
        assert_eq!(view.share_of("a"), [false, true]);
        view.member("b".into(), LEAVING.as_bytes(), VALID * 2, now);
        assert_eq!(view.share_of("a"), [true, true]);
        assert_eq!(view.owner_of(0), Some("b"), "until it has let go");
        assert_eq!(view.next_expiry("a"), Some(now + VALID * 2));
        view.changed = None;
        view.expire("a", now + VALID * 3);
        assert_eq!((view.owner_of(0), view.changed.is_some()), (None, true));
        assert_eq!(view.share_of("a"), [true, true], "its own note never is too old for itself");
    }

    #[tokio::test(start_paused = true)]
    async fn notes_of_tries_tell_how_many_and_how_long_to_wait() {
        let mut view = View::new(1);
        let (id, clock) = (MessageId::from_bytes([1; 16]), Clock::system());
        assert_eq!(view.tries(id, &clock), None);
        let due = clock.now() + Duration::from_secs(60);
        let note = TriedNote { attempts: 3, due: due.as_millis() };
        view.tried(id, &serde_json::to_vec(&note).expect("it is written"));
        let tried = view.tries(id, &clock).expect("it is known");
        assert_eq!(tried.attempts, 3);
        assert!(tried.due.is_some_and(|due| due > Instant::now() + Duration::from_secs(50)));
        view.tried(id, br#"{"attempts":4,"due":1}"#);
        assert_eq!(view.tries(id, &clock), Some(Tried { attempts: 4, due: None }));
        view.tried(id, b"");
        assert_eq!(view.tries(id, &clock), None);
    }

    #[tokio::test(start_paused = true)]
    async fn saying_it_again_changes_nothing() {
        let now = Instant::now();
        let mut view = View::new(1);
        view.member("a".into(), HERE.as_bytes(), VALID, now);
        view.changed = None;
        view.member("a".into(), HERE.as_bytes(), VALID, now + VALID / 2);
        assert_eq!(view.changed, None);
        view.member("a".into(), b"", VALID, now);
        assert!(view.changed.is_some());
    }
}
