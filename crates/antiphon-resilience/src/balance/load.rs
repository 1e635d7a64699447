//! What a client knows of one instance: how it answers, what is in flight to it, whether it may be
//! picked.
//!
//! Counters and clocks in atomics, one cache line in all: that is what a pick reads of an instance,
//! and what it waits for when there are many. They steer and never guard: each is right
//! by itself, and a pick that sees one a moment before the other is as good as any.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::Candidate;
use super::ewma::{EwmaSettings, PeakEwma};

/// How soon an instance is asked again that failed once; twice as late after each further failure
/// without a good answer in between. A longer pause after the first would take a part of the
/// capacity away for each failure that means nothing.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest such pause of an instance that sheds load and does not say for how long: it works, and
/// has room again soon after it is called less.
const SHED_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Peak latencies of like instances differ by so many times at most, nearly always.
const NOISE: f32 = 2.0;

/// Whether an instance may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// Not connected, or leaving: a call could not be sent to it.
    Away,
    /// Connected and in use.
    Ready,
    /// Connected, and set aside because it failed too often.
    Ejected,
}

/// What one more call to an instance would cost, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    latency: f32,
    /// The latency, once for the call itself and once for each that is there before it.
    total: f32,
}

impl Cost {
    /// Of the two, which is to be picked.
    ///
    /// The total takes calls in flight for a queue, one behind the other. But instances work on many
    /// at a time, so with many in flight everywhere it makes a slow instance look better than it is:
    /// one that is twenty times as slow as four others would get a call or two in a thousand, which
    /// is the whole p99.9. So the slower one is handicapped by the square of how much it is slower than
    /// noise: when all stand still for a moment, and the peaks of the fast ones rise, it still gets
    /// none. Where calls do queue up, the latencies tell so by themselves.
    pub(super) fn is_less_than(self, other: Self) -> bool {
        let handicap =
            |mine: Self, its: Self| (mine.latency / its.latency / NOISE).max(1.0).powi(2);
        self.total * handicap(self, other) < other.total * handicap(other, self)
    }
}

/// What is known of one instance. Shared between threads by reference.
#[derive(Debug)]
#[repr(align(64))]
pub struct Load {
    /// All stamps count from here.
    origin: Instant,
    ewma: PeakEwma,
    penalty_millis: u32,
    penalty_millis_max: u32,
    in_flight: AtomicU32,
    standing: AtomicU8,
    /// Failures, and refusals, since the last good answer.
    failures: AtomicU8,
    /// When it became ready, in nanoseconds.
    since: AtomicU64,
    /// When it is picked next whatever its cost, in nanoseconds; at once when it is new, since
    /// nothing else would tell how it answers, and after a pause when it has failed.
    due: AtomicU64,
}

impl Load {
    /// An instance that became known at `now`; [`Standing::Away`] until it is connected.
    #[must_use]
    pub fn new(settings: &EwmaSettings, now: Instant) -> Self {
        Self {
            origin: now,
            ewma: PeakEwma::new(settings, Duration::ZERO),
            penalty_millis: millis(settings.penalty),
            penalty_millis_max: millis(settings.penalty_max),
            in_flight: AtomicU32::new(0),
            standing: AtomicU8::new(Standing::Away as u8),
            failures: AtomicU8::new(0),
            since: AtomicU64::new(0),
            due: AtomicU64::new(0),
        }
    }

    /// Whether it may be picked.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.standing.load(Relaxed) {
            1 => Standing::Ready,
            2 => Standing::Ejected,
            _ => Standing::Away,
        }
    }

    /// Says whether it may be picked, and whether that is news: then the caller refreshes its roster.
    ///
    /// An instance that becomes ready is new again: it may be another process than before, or the
    /// same one after what made it fail. What was known of its latency is forgotten, and it starts
    /// slowly.
    pub fn set_standing(&self, standing: Standing, now: Instant) -> bool {
        let at = self.at(now);
        if standing == Standing::Ready && self.standing() != Standing::Ready {
            self.ewma.forget(at);
            self.since.store(nanos(at), Relaxed);
            self.failures.store(0, Relaxed);
            self.due.store(0, Relaxed);
        }
        self.standing.swap(standing as u8, Relaxed) != standing as u8
    }

    /// Calls that were sent to it and have not ended.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// How long it takes to answer, as [`PeakEwma`] sees it.
    #[must_use]
    pub fn latency(&self, now: Instant) -> Duration {
        Duration::from_secs_f32(self.ewma.micros(self.at(now)) / 1e6)
    }

    /// For how long it has been ready, if it is.
    #[must_use]
    pub fn ready_for(&self, now: Instant) -> Duration {
        self.at(now).saturating_sub(Duration::from_nanos(self.since.load(Relaxed)))
    }

    /// What one more call would cost. `share` is its weight against the average weight.
    pub(super) fn cost(&self, share: f32, now: Instant) -> Cost {
        let latency = self.ewma.micros(self.at(now));
        Cost { latency, total: latency * (self.in_flight() as f32 / share + 1.0) }
    }

    /// It is picked at `now`, and is due again after `unpicked_max` without a pick.
    pub(super) fn picked(&self, now: Instant, unpicked_max: Duration) {
        self.due.store(nanos(self.at(now) + unpicked_max), Relaxed);
    }

    /// Whether it has not been picked for too long, and this call is the one to do it.
    pub(super) fn take_due(&self, now: Instant, unpicked_max: Duration) -> bool {
        let at = self.at(now);
        let due = self.due.load(Relaxed);
        due <= nanos(at)
            && self.due.compare_exchange(due, nanos(at + unpicked_max), Relaxed, Relaxed).is_ok()
    }

    /// Whether it is to be left alone for a while, since it failed or refused.
    pub(super) fn rests(&self, now: Instant) -> bool {
        self.failures.load(Relaxed) > 0 && self.due.load(Relaxed) > nanos(self.at(now))
    }

    fn at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.origin)
    }
}

/// At most 49 days.
fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// In 584 years it will be wrong.
fn nanos(at: Duration) -> u64 {
    at.as_secs() * 1_000_000_000 + u64::from(at.subsec_nanos())
}

/// A call that is in flight to an instance, until this is dropped.
///
/// Holds whatever points to the instance: an `Arc` where the answer outlives the caller's frame, such
/// as a stream, or a reference.
///
/// # Cancel safety
///
/// Dropped without a word, the call has been given up by its caller: it is in flight no longer, and
/// says nothing about the instance.
#[derive(Debug)]
pub struct InFlight<C: Candidate> {
    candidate: C,
    begun: Instant,
}

impl<C: Candidate> InFlight<C> {
    /// A call is sent to `candidate` at `now`. Right after the pick, so that the next pick knows.
    #[must_use = "the call is in flight only until this is dropped"]
    pub fn begin(candidate: C, now: Instant) -> Self {
        candidate.load().in_flight.fetch_add(1, Relaxed);
        Self { candidate, begun: now }
    }

    /// Where the call was sent.
    pub fn candidate(&self) -> &C {
        &self.candidate
    }

    /// The instance answered at `now`, well or with an error that is the caller's own. Said once: a
    /// stream says it with its first message, since its end tells nothing about speed, and stays in
    /// flight.
    pub fn answered(&self, now: Instant) {
        let load = self.candidate.load();
        load.ewma.answered(load.at(self.begun), load.at(now));
        if load.failures.load(Relaxed) > 0 {
            load.failures.store(0, Relaxed);
        }
    }

    /// The call failed at `now` by a fault of the instance or of the way there, or ran into its
    /// deadline; a stream may fail after it has answered. `pushback` is how long the server asks to
    /// be left alone, from `grpc-retry-pushback-ms` or `Retry-After`.
    ///
    /// The instance is then left alone as long as others can be had, but for one call after a tenth
    /// of a second, or after twice as long as the last time if it failed then, up to the penalty. The
    /// first good answer to a call that began later gives it its share back.
    pub fn failed(&self, now: Instant, pushback: Option<Duration>) {
        let load = self.candidate.load();
        let at = load.at(now);
        let longest = Duration::from_millis(load.penalty_millis_max.into());
        let usual = Duration::from_millis(load.penalty_millis.into());
        let penalty = pushback.map_or(usual, |asked| asked.min(longest));
        load.ewma.failed(penalty.max(now.saturating_duration_since(self.begun)), at);

        let failures = load.failures.load(Relaxed);
        load.failures.store(failures.saturating_add(1), Relaxed);
        let pause = PAUSE.saturating_mul(1 << failures.min(16)).min(usual);
        // It is not picked for the sake of knowing while it asks to be left alone.
        let pause = pushback.map_or(pause, |_| pause.max(penalty));
        load.due.store(nanos(at + pause), Relaxed);
    }

    /// The instance refused the call at `now` because it has too much to do, or more than it allows
    /// this caller. `pushback` as for [`Self::failed`].
    ///
    /// It is left alone as after a failure, since its refusals are faster than the answers of others,
    /// but not for as long: one call goes to it when its time is over, or after a tenth of a second,
    /// or twice as long as the last time if it refused then, up to a second. Of calls that were there
    /// together only the first to be refused makes the pause longer.
    pub fn shed(&self, now: Instant, pushback: Option<Duration>) {
        let load = self.candidate.load();
        let at = load.at(now);
        let asked = pushback.unwrap_or_default();
        let asked = asked.min(Duration::from_millis(load.penalty_millis_max.into()));
        let failures = load.failures.load(Relaxed);
        let before = if load.ewma.is_news(load.at(self.begun)) {
            load.failures.store(failures.saturating_add(1), Relaxed);
            failures
        } else {
            failures.saturating_sub(1)
        };
        let usual = Duration::from_millis(load.penalty_millis.into());
        load.ewma.failed(usual.max(asked).max(now.saturating_duration_since(self.begun)), at);
        let pause = PAUSE.saturating_mul(1 << before.min(16)).min(SHED_PAUSE_MAX);
        load.due.store(nanos(at + pause.max(asked)), Relaxed);
    }

    /// The caller stopped waiting at `now` because another attempt was faster: the instance would
    /// have taken at least this long.
    pub fn overtaken(&self, now: Instant) {
        let load = self.candidate.load();
        load.ewma.given_up(load.at(self.begun), load.at(now));
    }
}

impl<C: Candidate> Drop for InFlight<C> {
    fn drop(&mut self) {
        self.candidate.load().in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Instance;
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn a_pick_reads_one_cache_line() {
        assert_eq!(size_of::<Load>(), 64);
    }

    #[test]
    fn calls_are_in_flight_until_they_are_dropped_however_they_end() {
        let origin = Instant::now();
        let instance = Instance::ready("a", origin);
        let unary = InFlight::begin(&instance, origin);
        let stream = InFlight::begin(&instance, origin);
        let cancelled = InFlight::begin(&instance, origin);
        assert_eq!(instance.load().in_flight(), 3);
        unary.answered(origin + MILLI);
        drop(unary);
        stream.answered(origin + MILLI);
        assert_eq!(instance.load().in_flight(), 2);
        drop((stream, cancelled));
        assert_eq!(instance.load().in_flight(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_call_is_released_and_not_charged() {
        let origin = Instant::now();
        let instance = Instance::ready("a", origin);
        let first = InFlight::begin(&instance, origin);
        first.answered(origin + MILLI);
        drop(first);
        for _ in 0..100 {
            let call = async {
                let call = InFlight::begin(&instance, Instant::now());
                tokio::time::sleep(Duration::from_secs(60)).await;
                call.answered(Instant::now());
            };
            assert!(tokio::time::timeout(10 * MILLI, call).await.is_err());
        }
        assert_eq!(instance.load().in_flight(), 0);
        assert!(instance.load().latency(Instant::now()) <= MILLI);
    }

    #[test]
    fn a_failure_counts_as_its_penalty_or_as_what_the_server_asks_for() {
        let origin = Instant::now();
        let seconds = Duration::from_secs;
        let cases = [
            ("at once", MILLI, None, seconds(5)),
            ("after longer than the penalty", seconds(8), None, seconds(8)),
            ("the server asks for less", MILLI, Some(20 * MILLI), 20 * MILLI),
            ("the server asks for more", MILLI, Some(seconds(60)), seconds(60)),
            ("the server asks for too much", MILLI, Some(seconds(9_000)), seconds(300)),
        ];
        for (name, took, pushback, expected) in cases {
            let instance = Instance::ready("a", origin);
            InFlight::begin(&instance, origin).answered(origin + MILLI);
            let now = origin + MILLI + took;
            InFlight::begin(&instance, origin + MILLI).failed(now, pushback);
            let latency = instance.load().latency(now);
            assert!(latency.abs_diff(expected) < MILLI, "{name}: {latency:?}");
        }
    }

    #[test]
    fn an_instance_is_due_when_it_is_new_and_when_it_was_not_picked_for_long() {
        let origin = Instant::now();
        let instance = Instance::ready("a", origin);
        let load = instance.load();
        let (second, limit) = (Duration::from_secs(1), Duration::from_secs(5));
        assert!(load.take_due(origin, limit), "new");
        assert!(!load.take_due(origin, limit), "another call does it");
        load.picked(origin + 3 * second, limit);
        assert!(!load.take_due(origin + 7 * second, limit), "picked four seconds ago");
        assert!(load.take_due(origin + 8 * second, limit), "picked five seconds ago");

        InFlight::begin(&instance, origin).failed(origin + 8 * second, Some(20 * second));
        assert!(!load.take_due(origin + 27 * second, limit), "asked to be left alone");
        assert!(load.take_due(origin + 28 * second, limit), "not any more");
    }

    #[test]
    fn of_two_costs_the_slower_is_handicapped_by_more_than_noise() {
        let cost = |latency, in_flight: f32| Cost { latency, total: latency * (in_flight + 1.0) };
        let cases = [
            ("as fast, fewer in flight", (5.0, 1.0), (5.0, 2.0), true),
            ("as fast, as many in flight", (5.0, 2.0), (5.0, 2.0), false),
            ("within the noise: by total alone", (9.0, 0.0), (5.0, 1.0), true),
            ("20 times as slow, against a queue of 300", (100.0, 0.0), (5.0, 300.0), false),
            ("20 times as slow, against a queue of 3000", (100.0, 0.0), (5.0, 3000.0), true),
            ("the fast one with a queue of 300", (5.0, 300.0), (100.0, 0.0), true),
        ];
        for (name, mine, its, less) in cases {
            let (mine, its) = (cost(mine.0, mine.1), cost(its.0, its.1));
            assert_eq!(mine.is_less_than(its), less, "{name}");
        }
    }

    #[test]
    fn an_instance_that_failed_is_due_after_pauses_that_grow() {
        let origin = Instant::now();
        let instance = Instance::ready("a", origin);
        let load = instance.load();
        let limit = Duration::from_secs(5);
        let fail = |now| {
            let call = InFlight::begin(&instance, now);
            load.picked(now, limit);
            call.failed(now, None);
        };
        let mut now = origin;
        for pause in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            fail(now);
            assert!(!load.take_due(now + (pause - 1) * MILLI, limit), "{pause}");
            now += pause * MILLI;
            assert!(load.take_due(now, limit), "{pause}");
        }
        InFlight::begin(&instance, now).answered(now + MILLI);
        fail(now);
        assert!(load.take_due(now + 100 * MILLI, limit), "it was well in between");
    }

    #[test]
    fn an_instance_that_sheds_load_is_left_alone_for_a_moment() {
        let origin = Instant::now();
        let limit = Duration::from_secs(5);
        let asked = |millis| Some(millis * MILLI);
        let cases = [
            ("it does not say", [None; 6], [100, 200, 400, 800, 1_000, 1_000]),
            ("it says less", [asked(60); 6], [100, 200, 400, 800, 1_000, 1_000]),
            ("it says more", [asked(7_000); 6], [7_000; 6]),
        ];
        for (name, asks, pauses) in cases {
            let instance = Instance::ready("a", origin);
            let load = instance.load();
            let mut now = origin + MILLI;
            InFlight::begin(&instance, origin).answered(now);
            for (asks, pause) in asks.into_iter().zip(pauses) {
                now += MILLI;
                load.picked(now, limit);
                // Many at once are refused for one reason.
                let calls: Vec<_> = (0..30).map(|_| InFlight::begin(&instance, now)).collect();
                calls.iter().for_each(|call| call.shed(now, asks));
                assert!(load.latency(now) >= Duration::from_millis(4_990), "{name}: cheap");
                assert!(load.rests(now + (pause - 1) * MILLI), "{name}: {pause}");
                assert!(!load.take_due(now + (pause - 1) * MILLI, limit), "{name}: {pause}");
                now += pause * MILLI;
                assert!(!load.rests(now), "{name}: {pause}");
                assert!(load.take_due(now, limit), "{name}: {pause}");
            }
            let call = InFlight::begin(&instance, now);
            call.answered(now + 2 * MILLI);
            assert!(load.latency(now) <= 3 * MILLI, "{name}: it has room again");
            let call = InFlight::begin(&instance, now + 2 * MILLI);
            call.shed(now + 3 * MILLI, None);
            assert!(load.take_due(now + 103 * MILLI, limit), "{name}: from the start");
        }
    }

    #[test]
    fn an_instance_that_comes_back_is_new() {
        let origin = Instant::now();
        let instance = Instance::ready("a", origin);
        let load = instance.load();
        InFlight::begin(&instance, origin).failed(origin, None);
        load.picked(origin, Duration::from_secs(5));
        let later = origin + Duration::from_secs(2);
        assert!(!load.set_standing(Standing::Ready, later), "no news");
        assert!(load.latency(later) > Duration::from_secs(4));
        assert!(load.set_standing(Standing::Ejected, later));
        assert!(load.set_standing(Standing::Ready, later));
        assert_eq!(load.ready_for(later + MILLI), MILLI);
        assert!(load.latency(later) <= 30 * MILLI);
        assert!(load.take_due(later, Duration::from_secs(5)));
    }
}
