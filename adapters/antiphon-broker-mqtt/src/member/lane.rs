//! What a member does next with one lane. Pure: the keeper looks, and carries it out.

use std::time::Duration;

use tokio::time::Instant;

/// How long a note of a lane may take to come back.
pub(super) const CLAIM_WITHIN: Duration = Duration::from_secs(5);

/// What a lane is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Idle,
    /// Its note is being set.
    Claiming(Instant),
    Connecting,
    Owned {
        /// Since when it is to be given up.
        revoked: Option<Instant>,
    },
    Closing,
}

/// Who has a lane, by its note, if that one lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Nobody,
    Own,
    Other,
}

/// What the keeper sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) now: Instant,
    /// Whether the lane belongs to the member's share.
    pub(super) wanted: bool,
    pub(super) owner: Owner,
    /// Whether nobody has come or gone for a while.
    pub(super) settled: bool,
    /// Whether the consumer still fetches.
    pub(super) joined: bool,
    /// How many messages of it are in the consumer's hands.
    pub(super) out: usize,
    /// Before when it is not to be tried again.
    pub(super) not_before: Option<Instant>,
    /// How long the consumer may keep what it has of a lane that another one takes.
    pub(super) handover: Duration,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, before this moment at least.
    Wait(Option<Instant>),
    /// Set its note.
    Claim,
    /// Its note went to another, or never came.
    Forget,
    Connect,
    /// Hand nothing out any more, and tell the consumer if it does not know.
    Revoke,
    /// It stays after all.
    Keep,
    /// Close its session and remove its note.
    GiveUp,
}

/// Decides.
pub(super) fn step(phase: Phase, seen: &Seen) -> Step {
    let now = seen.now;
    match phase {
        Phase::Connecting | Phase::Closing => Step::Wait(None),
        Phase::Idle | Phase::Claiming(_) if seen.owner == Owner::Own => {
            match seen.not_before.filter(|at| now < *at) {
                // A note that nobody needs keeps the lane from the others.
                _ if !seen.wanted => Step::GiveUp,
                Some(at) => Step::Wait(Some(at)),
                None => Step::Connect,
            }
        }
        Phase::Idle if seen.wanted && seen.owner == Owner::Nobody && seen.settled => Step::Claim,
        Phase::Idle => Step::Wait(None),
        Phase::Claiming(since) => {
            let until = since + CLAIM_WITHIN;
            let lost = seen.owner == Owner::Other || now >= until;
            if lost { Step::Forget } else { Step::Wait(Some(until)) }
        }
        Phase::Owned { revoked } if seen.wanted && seen.owner != Owner::Other => match revoked {
            Some(_) => Step::Keep,
            None => Step::Wait(None),
        },
        Phase::Owned { revoked: None } if seen.joined && !seen.settled => Step::Wait(None),
        Phase::Owned { .. } if seen.out == 0 => Step::GiveUp,
        Phase::Owned { revoked: None } => Step::Revoke,
        // A consumer that closes has as long as it likes.
        Phase::Owned { .. } if !seen.joined => Step::Wait(None),
        Phase::Owned { revoked: Some(since) } => {
            let until = since + seen.handover;
            if now >= until { Step::GiveUp } else { Step::Wait(Some(until)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDOVER: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_lane_is_taken_only_when_its_note_says_so() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let claiming = Phase::Claiming(now);
        let until = Some(now + CLAIM_WITHIN);
        // (phase, wanted, owner, settled) → step
        let cases = [
            (Phase::Idle, true, Owner::Nobody, true, Step::Claim),
            (Phase::Idle, true, Owner::Nobody, false, Step::Wait(None)),
            (Phase::Idle, true, Owner::Other, true, Step::Wait(None)),
            (Phase::Idle, false, Owner::Nobody, true, Step::Wait(None)),
            (Phase::Idle, true, Owner::Own, true, Step::Connect),
            (Phase::Idle, false, Owner::Own, true, Step::GiveUp),
            (claiming, true, Owner::Nobody, true, Step::Wait(until)),
            (claiming, true, Owner::Own, true, Step::Connect),
            (claiming, false, Owner::Own, true, Step::GiveUp),
            (claiming, true, Owner::Other, true, Step::Forget),
            (Phase::Connecting, false, Owner::Other, true, Step::Wait(None)),
            (Phase::Closing, true, Owner::Own, true, Step::Wait(None)),
        ];
        let seen = Seen {
            now,
            wanted: true,
            owner: Owner::Nobody,
            settled: true,
            joined: true,
            out: 0,
            not_before: None,
            handover: HANDOVER,
        };
        for (phase, wanted, owner, settled, expected) in cases {
            let seen = Seen { wanted, owner, settled, ..seen };
            assert_eq!(step(phase, &seen), expected, "{phase:?} {seen:?}");
        }
        let pausing = Seen { owner: Owner::Own, not_before: Some(later), ..seen };
        assert_eq!(step(Phase::Idle, &pausing), Step::Wait(Some(later)));
        let too_late = Seen { now: now + CLAIM_WITHIN, ..seen };
        assert_eq!(step(claiming, &too_late), Step::Forget);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_is_given_up_when_nothing_of_it_is_held_or_after_a_time() {
        let now = Instant::now();
        let seen = Seen {
            now,
            wanted: false,
            owner: Owner::Own,
            settled: true,
            joined: true,
            out: 1,
            not_before: None,
            handover: HANDOVER,
        };
        let (new, revoked) = (Phase::Owned { revoked: None }, Phase::Owned { revoked: Some(now) });
        let until = Some(now + HANDOVER);
        assert_eq!(step(new, &seen), Step::Revoke);
        assert_eq!(step(new, &Seen { settled: false, ..seen }), Step::Wait(None));
        assert_eq!(step(new, &Seen { out: 0, ..seen }), Step::GiveUp);
        assert_eq!(step(revoked, &seen), Step::Wait(until));
        assert_eq!(step(revoked, &Seen { out: 0, ..seen }), Step::GiveUp);
        assert_eq!(step(revoked, &Seen { now: now + HANDOVER, ..seen }), Step::GiveUp);
        assert_eq!(step(revoked, &Seen { wanted: true, ..seen }), Step::Keep);
        assert_eq!(step(new, &Seen { wanted: true, ..seen }), Step::Wait(None));
        let taken = Seen { wanted: true, owner: Owner::Other, ..seen };
        assert_eq!(step(new, &taken), Step::Revoke, "its note went to another");
        // Closing, it waits for its consumer and not for others.
        let closing = Seen { joined: false, settled: false, now: now + HANDOVER * 2, ..seen };
        assert_eq!(step(new, &closing), Step::Revoke);
        assert_eq!(step(revoked, &closing), Step::Wait(None));
        assert_eq!(step(revoked, &Seen { out: 0, ..closing }), Step::GiveUp);
    }
}
