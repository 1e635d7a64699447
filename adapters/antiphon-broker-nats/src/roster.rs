//! What a member of an ordered group knows of the others: who is alive, and who has which lane.
//!
//! It learns this from a watch of the buckets. A member whose signs of life do not change for the time
//! of a lease, by our own clock, is gone; no two clocks are ever compared.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use antiphon_messaging::{LANES, Shift, shift};
use tokio::time::Instant;

use crate::records::LaneRecord;

/// A lane as it was last seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Zero when there is no record.
    pub(crate) revision: u64,
    pub(crate) record: LaneRecord,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Roster {
    me: String,
    lease: Duration,
    lanes: Vec<Seen>,
    /// When a member was last heard of.
    members: HashMap<String, Instant>,
    /// Members that said that they leave.
    departed: HashSet<String>,
}

impl Roster {
    pub(crate) fn new(me: String, lease: Duration) -> Self {
        let lanes = (0..LANES).map(|_| Seen::default()).collect();
        Self { me, lease, lanes, members: HashMap::new(), departed: HashSet::new() }
    }

    /// A lane as it was last seen.
    pub(crate) fn lane(&self, lane: u32) -> &Seen {
        &self.lanes[lane as usize % self.lanes.len()]
    }

    /// A record of a lane was seen, or written; older ones are ignored. Whether it says that a lane
    /// which was this member's is not any more.
    ///
    /// Whoever owns a lane was alive when it was taken, also if nothing was heard of it before: lanes
    /// and signs of life come by different ways.
    pub(crate) fn lane_seen(
        &mut self,
        lane: u32,
        revision: u64,
        record: LaneRecord,
        now: Instant,
    ) -> bool {
        let (me, index) = (Some(&self.me), lane as usize % self.lanes.len());
        let seen = &mut self.lanes[index];
        if revision <= seen.revision {
            return false;
        }
        let lost = seen.record.owner.as_ref() == me && record.owner.as_ref() != me;
        if let Some(owner) = &record.owner
            && !self.departed.contains(owner)
        {
            self.members.entry(owner.clone()).or_insert(now);
        }
        *seen = Seen { revision, record };
        lost
    }

    /// A sign of life.
    pub(crate) fn alive(&mut self, member: &str, now: Instant) {
        self.members.insert(member.to_owned(), now);
    }

    /// A member has left.
    pub(crate) fn left(&mut self, member: &str) {
        self.members.remove(member);
        self.departed.insert(member.to_owned());
    }

    /// What to change now.
    pub(crate) fn shift(&self, now: Instant) -> Shift {
        let mut living: BTreeSet<&str> = self
            .members
            .iter()
            .filter(|(_, heard)| now.saturating_duration_since(**heard) < self.lease)
            .map(|(member, _)| member.as_str())
            .collect();
        living.insert(&self.me);
        shift(&self.me, &living, |lane| self.lane(lane).record.owner.as_deref())
    }

    /// Forgets who was not heard of for long.
    pub(crate) fn forget(&mut self, now: Instant) {
        let long = 10 * self.lease;
        self.members.retain(|_, heard| now.saturating_duration_since(*heard) < long);
        let owner = |member: &String| {
            self.lanes.iter().any(|seen| seen.record.owner.as_ref() == Some(member))
        };
        self.departed.retain(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(by: &str) -> LaneRecord {
        LaneRecord { owner: Some(by.to_owned()), ..LaneRecord::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn the_lanes_of_a_silent_member_are_taken_after_its_lease() {
        let lease = Duration::from_secs(6);
        let mut roster = Roster::new("me".into(), lease);
        let now = Instant::now();
        roster.alive("other", now);
        for lane in 0..LANES {
            let revision = u64::from(lane) + 1;
            roster.lane_seen(lane, revision, owned(if lane < 8 { "me" } else { "other" }), now);
        }
        assert_eq!(roster.shift(now + lease / 2), Shift::default());
        roster.alive("other", now + lease / 2);
        assert_eq!(roster.shift(now + lease), Shift::default(), "it was heard of in between");
        let mut take = roster.shift(now + 2 * lease).take;
        take.sort_unstable();
        assert_eq!(take, (8..LANES).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn only_newer_records_count_and_a_loss_is_noticed() {
        let mut roster = Roster::new("me".into(), Duration::from_secs(6));
        let now = Instant::now();
        assert!(!roster.lane_seen(3, 10, owned("me"), now));
        assert!(!roster.lane_seen(3, 9, owned("other"), now), "it is older");
        assert_eq!(roster.lane(3).record.owner.as_deref(), Some("me"));
        assert!(!roster.lane_seen(3, 11, owned("me"), now));
        assert!(roster.lane_seen(3, 12, owned("other"), now), "somebody took it");
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_nobody_heard_of_is_alive_unless_it_left() {
        let mut roster = Roster::new("me".into(), Duration::from_secs(6));
        let now = Instant::now();
        for lane in 0..LANES {
            roster.lane_seen(lane, 1, owned("stranger"), now);
        }
        assert_eq!(roster.shift(now), Shift::default());
        roster.left("stranger");
        assert_eq!(roster.shift(now).take.len(), LANES as usize);
        roster.lane_seen(0, 2, owned("stranger"), now);
        assert_eq!(roster.shift(now).take.len(), LANES as usize, "that was written before");
    }
}
