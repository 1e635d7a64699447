//! What became of the orders.

use std::collections::BTreeMap;
use std::time::Duration;

/// The end of one order.
pub(super) enum Outcome {
    Confirmed,
    Cancelled(String),
    Undecided,
    Failed(String),
}

/// Counts and times of one run.
pub(super) struct Summary {
    seed: u64,
    confirmed: u64,
    undecided: u64,
    cancelled: BTreeMap<String, u64>,
    failed: BTreeMap<String, u64>,
    until_accepted: Vec<Duration>,
    until_confirmed: Vec<Duration>,
}

impl Summary {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            confirmed: 0,
            undecided: 0,
            cancelled: BTreeMap::new(),
            failed: BTreeMap::new(),
            until_accepted: Vec::new(),
            until_confirmed: Vec::new(),
        }
    }

    pub(super) fn accepted(&mut self, took: Duration) {
        self.until_accepted.push(took);
    }

    pub(super) fn confirmed(&mut self, took: Duration) {
        self.until_confirmed.push(took);
    }

    pub(super) fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Confirmed => self.confirmed += 1,
            Outcome::Cancelled(reason) => *self.cancelled.entry(reason).or_default() += 1,
            Outcome::Undecided => self.undecided += 1,
            Outcome::Failed(why) => *self.failed.entry(why).or_default() += 1,
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.confirmed += other.confirmed;
        self.undecided += other.undecided;
        for (reason, count) in other.cancelled {
            *self.cancelled.entry(reason).or_default() += count;
        }
        for (why, count) in other.failed {
            *self.failed.entry(why).or_default() += count;
        }
        self.until_accepted.extend(other.until_accepted);
        self.until_confirmed.extend(other.until_confirmed);
    }

    /// How many orders got an answer of any kind.
    pub(super) fn answered(&self) -> usize {
        self.until_accepted.len()
    }

    #[expect(clippy::print_stdout, reason = "the summary is the output of the command")]
    pub(super) fn print(&mut self, took: Duration) {
        let decided = self.confirmed + self.cancelled.values().sum::<u64>();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = decided as f64 / took.as_secs_f64();
        println!("seed        {}", self.seed);
        println!("accepted    {}", self.until_accepted.len());
        println!("confirmed   {}", self.confirmed);
        for (reason, count) in &self.cancelled {
            println!("cancelled   {count}  {reason}");
        }
        println!("undecided   {}", self.undecided);
        for (why, count) in &self.failed {
            println!("failed      {count}  {why}");
        }
        println!("took        {:.1} s, {rate:.0} orders decided per second", took.as_secs_f64());
        print_times("accepted after ", &mut self.until_accepted);
        print_times("confirmed after", &mut self.until_confirmed);
    }
}

#[expect(clippy::print_stdout, reason = "the summary is the output of the command")]
fn print_times(what: &str, times: &mut [Duration]) {
    if times.is_empty() {
        return;
    }
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 1_000).min(times.len() - 1)];
    println!(
        "{what} p50 {:.1?}  p90 {:.1?}  p99 {:.1?}  max {:.1?}",
        at(500),
        at(900),
        at(990),
        at(1_000)
    );
}
