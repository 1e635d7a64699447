//! The rules, in simulated time.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn instance(port: u16) -> Instance {
    Instance::new(Authority { host: "10.0.0.1".to_owned(), port })
}

fn set(ports: &[u16]) -> Vec<Instance> {
    ports.iter().copied().map(instance).collect()
}

fn ports(snapshot: &Snapshot) -> Vec<u16> {
    snapshot.instances.iter().map(|instance| instance.address.port).collect()
}

/// One name, its registry and a clock.
struct Desk {
    settings: Settings,
    known: Known,
    now: Instant,
}

impl Desk {
    fn new() -> Self {
        Self { settings: Settings::default(), known: Known::nothing(), now: Instant::now() }
    }

    fn with(ports: &[u16]) -> Self {
        let mut desk = Self::new();
        desk.answer(ports);
        assert_eq!(desk.ports(), ports);
        desk
    }

    fn step(&mut self, input: Input) -> Decision {
        self.settings.step(&mut self.known, input, self.now)
    }

    fn answer(&mut self, ports: &[u16]) -> Decision {
        self.step(Input::Answer(set(ports)))
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn ports(&self) -> Vec<u16> {
        ports(self.known.snapshot())
    }

    /// Goes on for `time`, answering with `ports` whenever the keeper looks; tells how often it did.
    fn insist(&mut self, ports: &[u16], time: Duration) -> u32 {
        let end = self.now + time;
        let mut looks = 0;
        let mut wake = self.step(Input::Tick).wake;
        while let Some(at) = wake.filter(|at| *at <= end) {
            self.now = at.max(self.now);
            let decision = self.step(Input::Tick);
            wake = decision.wake;
            if decision.look {
                looks += 1;
                wake = self.answer(ports).wake;
            }
        }
        self.now = end;
        looks
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_is_believed_whatever_it_says() {
    for ports in [&[][..], &[1], &[1, 2, 3]] {
        let mut desk = Desk::new();
        assert!(!desk.known.snapshot().is_known());
        let published = desk.answer(ports).publish.expect("it is news");
        assert_eq!((published.version, self::ports(&published)), (1, ports.to_vec()));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_added_or_changed_holds_at_once_and_repeats_are_no_news() {
    let mut desk = Desk::with(&[1, 2]);
    assert_eq!(desk.answer(&[1, 2, 3]).publish.expect("news").version, 2);
    assert!(desk.answer(&[3, 2, 1]).publish.is_none());
    let mut draining = set(&[1, 2, 3]);
    draining[1].state = State::Draining;
    let published = desk.step(Input::Answer(draining)).publish.expect("news");
    assert_eq!(published.instances[1].state, State::Draining);
}

#[tokio::test(start_paused = true)]
async fn an_address_is_there_once_and_the_last_word_counts() {
    let mut desk = Desk::new();
    let mut twice = set(&[1, 1]);
    twice[1].weight = 7;
    let published = desk.step(Input::Answer(twice)).publish.expect("news");
    assert_eq!((published.instances.len(), published.instances[0].weight), (1, 7));
}

#[tokio::test(start_paused = true)]
async fn up_to_half_may_go_at_once() {
    for (before, after) in [
        (&[1, 2][..], &[1][..]),
        (&[1, 2, 3], &[1, 2]),
        (&[1, 2, 3, 4], &[3, 4]),
        (&[1, 2, 3, 4], &[3, 4, 5]),
    ] {
        let mut desk = Desk::with(before);
        desk.answer(after);
        assert_eq!(desk.ports(), after, "{before:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_goes_one_after_the_other_within_the_grace_goes_together() {
    let mut desk = Desk::with(&[1, 2, 3, 4, 5]);
    for after in [&[1, 2, 3, 4][..], &[1, 2, 3]] {
        desk.pass(SECOND);
        desk.answer(after);
        assert_eq!(desk.ports(), after);
    }
    desk.pass(SECOND);
    desk.answer(&[1, 2]);
    assert_eq!(desk.ports(), [1, 2, 3], "three of five would be gone");
    // One who comes back is not lost any more, and half of them may be.
    desk.answer(&[1, 2, 4]);
    assert_eq!(desk.ports(), [1, 2, 4]);
    // What went longer ago has nothing to do with it.
    desk.pass(31 * SECOND);
    desk.answer(&[1, 2]);
    assert_eq!(desk.ports(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn instances_that_are_replaced_one_by_one_go_one_by_one() {
    let mut desk = Desk::with(&[1, 2, 3]);
    for (with, after) in
        [([1, 2, 3, 4], [2, 3, 4]), ([2, 3, 4, 5], [3, 4, 5]), ([3, 4, 5, 6], [4, 5, 6])]
    {
        desk.pass(SECOND);
        desk.answer(&with);
        desk.pass(SECOND);
        desk.answer(&after);
        assert_eq!(desk.ports(), after);
    }
}

#[tokio::test(start_paused = true)]
async fn more_than_half_may_go_when_confirmed_twice() {
    let mut desk = Desk::with(&[1, 2, 3, 4, 5]);
    let decision = desk.answer(&[1, 2]);
    assert!(decision.publish.is_none() && !decision.look);
    assert_eq!(decision.wake, Some(desk.now + SECOND));
    assert!(desk.known.is_doubting());
    // Said again in the same moment is the same word.
    desk.answer(&[1, 2]);
    desk.answer(&[1, 2]);
    assert_eq!(desk.ports(), [1, 2, 3, 4, 5]);
    assert_eq!(desk.insist(&[1, 2], SECOND), 1);
    assert_eq!(desk.ports(), [1, 2, 3, 4, 5]);
    assert_eq!(desk.insist(&[1, 2], SECOND), 1);
    assert_eq!(desk.ports(), [1, 2]);
    assert!(!desk.known.is_doubting());
    assert_eq!(desk.insist(&[1, 2], 60 * SECOND), 0, "nothing is left to look for");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_taken_back_was_never_believed() {
    let mut desk = Desk::with(&[1, 2, 3, 4, 5]);
    desk.answer(&[1]);
    desk.pass(SECOND);
    assert!(desk.answer(&[1, 2, 3, 4, 5]).publish.is_none());
    // The count begins anew.
    desk.pass(SECOND);
    desk.answer(&[1]);
    assert_eq!(desk.insist(&[1], SECOND), 1);
    assert_eq!(desk.ports(), [1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn new_instances_are_used_while_the_loss_of_others_is_doubted() {
    let mut desk = Desk::with(&[1, 2, 3]);
    desk.answer(&[7, 8]);
    assert_eq!(desk.ports(), [1, 2, 3, 7, 8]);
    desk.insist(&[7, 8], 2 * SECOND);
    assert_eq!(desk.ports(), [7, 8]);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_believed_after_the_grace_with_few_looks() {
    let mut desk = Desk::with(&[1, 2]);
    desk.answer(&[]);
    let looks = desk.insist(&[], 29 * SECOND);
    assert_eq!(desk.ports(), [1, 2]);
    assert!(looks <= 3, "{looks}");
    desk.insist(&[], SECOND);
    assert!(desk.ports().is_empty());
}

#[tokio::test(start_paused = true)]
async fn nobody_is_never_believed_while_the_registry_is_silent() {
    let mut desk = Desk::with(&[1, 2]);
    desk.answer(&[]);
    for _ in 0..600 {
        desk.pass(SECOND);
        desk.step(Input::Failed);
    }
    assert_eq!(desk.ports(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn those_who_said_they_leave_may_all_go_at_once() {
    let mut desk = Desk::with(&[1, 2]);
    let mut leaving = set(&[1, 2]);
    leaving.iter_mut().for_each(|instance| instance.state = State::Draining);
    desk.step(Input::Answer(leaving));
    desk.answer(&[]);
    assert!(desk.ports().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_comes_back_is_the_same_one() {
    let mut desk = Desk::with(&[1, 2]);
    let before = desk.known.snapshot().instances[1].clone();
    desk.answer(&[1]);
    desk.pass(30 * SECOND);
    desk.answer(&[1, 2]);
    assert_eq!(desk.known.snapshot().instances[1].address, before.address);
}

/// The registry is stopped for ten minutes, comes back without its data, says that there is nobody,
/// then knows those that have registered again, one after the other.
#[tokio::test(start_paused = true)]
async fn a_registry_that_forgot_everything_takes_nobody_away() {
    const ALL: [u16; 5] = [1, 2, 3, 4, 5];
    let mut desk = Desk::with(&ALL);
    for _ in 0..60 {
        desk.pass(10 * SECOND);
        assert!(desk.step(Input::Failed).publish.is_none());
        assert_eq!(desk.ports(), ALL);
    }
    let age = desk.now.saturating_duration_since(desk.known.agreed().expect("it was known"));
    assert_eq!(age, 600 * SECOND);
    for back in 0..=ALL.len() {
        let answer = &ALL[..back];
        desk.answer(answer);
        desk.insist(answer, 5 * SECOND);
        assert_eq!(desk.ports(), ALL, "with {back} of them back");
    }
    assert!(!desk.known.is_doubting());
    assert_eq!(desk.known.agreed(), Some(desk.now - 5 * SECOND));
}

/// As above, but one of them died with the registry: it has the grace time, and goes then.
#[tokio::test(start_paused = true)]
async fn who_does_not_come_back_after_an_outage_goes_when_the_grace_is_over() {
    let mut desk = Desk::with(&[1, 2, 3, 4, 5]);
    desk.step(Input::Failed);
    desk.answer(&[1, 2, 3, 4]);
    assert_eq!(desk.ports(), [1, 2, 3, 4, 5]);
    desk.insist(&[1, 2, 3, 4], 29 * SECOND);
    assert_eq!(desk.ports(), [1, 2, 3, 4, 5]);
    desk.insist(&[1, 2, 3, 4], SECOND);
    assert_eq!(desk.ports(), [1, 2, 3, 4]);
}

/// The registry says that there is nobody, is away for ten minutes, and says it again: those who are
/// there need time to register again, however long ago it was said first.
#[tokio::test(start_paused = true)]
async fn what_was_said_before_an_outage_is_no_word_after_it() {
    let mut desk = Desk::with(&[1, 2, 3]);
    desk.answer(&[]);
    desk.insist(&[], 10 * SECOND);
    for _ in 0..600 {
        desk.pass(SECOND);
        desk.step(Input::Failed);
    }
    desk.answer(&[]);
    desk.insist(&[], 29 * SECOND);
    assert_eq!(desk.ports(), [1, 2, 3]);
    desk.answer(&[1, 2]);
    desk.insist(&[1, 2], SECOND);
    assert_eq!(desk.ports(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_often_away_for_a_moment_does_not_keep_the_dead() {
    let mut desk = Desk::with(&[1, 2, 3]);
    let begun = desk.now;
    while desk.ports() == [1, 2, 3] {
        desk.step(Input::Failed);
        desk.pass(SECOND);
        desk.answer(&[1, 2]);
        desk.insist(&[1, 2], 19 * SECOND);
    }
    assert!(desk.now - begun <= 60 * SECOND, "{:?}", desk.now - begun);
}

#[tokio::test(start_paused = true)]
async fn one_who_has_been_missing_for_long_takes_no_others_with_it() {
    let mut desk = Desk::with(&[1, 2, 3, 4, 5]);
    desk.step(Input::Failed);
    desk.answer(&[1, 2, 3, 4]);
    desk.insist(&[1, 2, 3, 4], 29 * SECOND);
    desk.answer(&[]);
    desk.insist(&[], 25 * SECOND);
    assert_eq!(desk.ports(), [1, 2, 3, 4], "they are missing for 25 seconds");
    desk.insist(&[], 10 * SECOND);
    assert!(desk.ports().is_empty());
}

/// Name servers tell a few of many records at a time, others each time.
#[tokio::test(start_paused = true)]
async fn who_is_told_in_turns_stays() {
    let mut desk = Desk::with(&[1, 2]);
    for turn in 0..30_usize {
        desk.pass(SECOND);
        desk.answer([&[3, 4], &[5, 6], &[1, 2]][turn % 3]);
        if turn >= 1 {
            assert_eq!(desk.ports(), [1, 2, 3, 4, 5, 6], "{turn}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn callers_make_it_look_at_most_every_five_seconds() {
    let mut desk = Desk::with(&[1, 2]);
    assert!(desk.step(Input::Asked).look, "the first time at once");
    let mut looks = Vec::new();
    for second in 1..=12_u32 {
        desk.pass(SECOND);
        if desk.step(Input::Asked).look {
            looks.push(second);
        }
    }
    assert_eq!(looks, [5, 10]);
    // What was asked in between is not forgotten.
    let wake = desk.step(Input::Asked).wake.expect("one more look is planned");
    desk.now = wake;
    assert!(desk.step(Input::Tick).look);
}

#[tokio::test(start_paused = true)]
async fn looks_of_callers_do_not_shorten_the_confirmation() {
    let mut desk = Desk::with(&[1, 2, 3]);
    desk.answer(&[1]);
    for _ in 0..5 {
        desk.step(Input::Asked);
        desk.answer(&[1]);
    }
    assert_eq!(desk.ports(), [1, 2, 3]);
}
