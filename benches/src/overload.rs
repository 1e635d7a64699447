//! What is left of a service that is called three times as often as it can answer.
//!
//! A handler that computes for a millisecond, on one core; calls come in an open loop from the other.
//! First the load that saturates it, then seven tenths of that for what is normal, then three times
//! as much, then the normal load again. A round in which something else had a part of the server's
//! core is void: the time that a neighbour takes cannot be told from that of a queue.

mod open;

use std::time::Duration;

use antiphon_core::BoxError;
use tokio::time::Instant;

use self::open::{Load, Seen};
use crate::Options;
use crate::process::{Server, pin_load};
use crate::report::{median, progress, table};
use crate::rpc::grpc_body;

/// What keeps the server working all the time, and makes no call wait long.
const SATURATING: usize = 4;
const NORMAL: f64 = 0.7;
const OVERLOAD: f64 = 3.0;
/// How much longer each phase lasts than a round of other benches.
const LENGTH: f64 = 4.0;
/// The guard of the processor knows of a change within a second or two.
const CHANGE: Duration = Duration::from_secs(2);
/// A round in which something else had more of the server's core than this says nothing.
const DISTURBED_MAX: f64 = 0.05;
/// So many rounds are begun for each that is wanted, until one says nothing but is all there is.
const TRIES: usize = 5;

/// One figure of each round.
#[derive(Default)]
struct Figures(Vec<f64>);

impl Figures {
    fn median(&mut self) -> f64 {
        median(&mut self.0)
    }
}

/// What was seen of one phase, round by round.
#[derive(Default)]
struct Phase {
    offered: Figures,
    good: Figures,
    refused: Figures,
    lost: Figures,
    p50: Figures,
    p99: Figures,
    resident: Figures,
}

impl Phase {
    fn note(&mut self, seen: &Seen, offered: f64, time: Duration, resident: f64) {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let good = seen.took.len() as f64;
        let time = time.as_secs_f64();
        self.offered.0.push(offered);
        self.good.0.push(good / time);
        self.refused.0.push(f64::from(seen.refused) / time);
        self.lost.0.push(f64::from(seen.lost) / time);
        self.p50.0.push(seen.quantile(0.5));
        self.p99.0.push(seen.quantile(0.99));
        self.resident.0.push(resident);
    }

    fn row(&mut self, name: &str) -> Vec<String> {
        vec![
            name.to_owned(),
            format!("{:.0}", self.offered.median()),
            format!("{:.0}", self.good.median()),
            format!("{:.0}", self.refused.median()),
            format!("{:.0}", self.lost.median()),
            figure(self.p50.median(), 1),
            figure(self.p99.median(), 1),
            format!("{:.1}", self.resident.median()),
        ]
    }
}

/// With so many places; there is none of the time of calls when no call was answered.
fn figure(figure: f64, places: usize) -> String {
    if figure.is_nan() { "none".to_owned() } else { format!("{figure:.places$}") }
}

/// A server from its start to its end.
struct Round {
    saturating: f64,
    /// What was seen in each phase, at how many calls per second, how long, and the memory after it.
    phases: Vec<(Seen, f64, Duration, f64)>,
    /// The part of the time for which the server had to wait for its core.
    disturbed: f64,
}

impl Round {
    async fn run(kind: &str, time: Duration) -> Result<Self, BoxError> {
        let begun = Instant::now();
        let server = Server::start(&std::env::current_exe()?, &["serve", kind])?;
        let mut load = Load::connect(server.address, grpc_body(64)).await?;
        load.closed(SATURATING, time / 4).await?;
        let saturating = load.closed(SATURATING, time / 2).await?;
        let mut phases = Vec::new();
        let parts = [(NORMAL, time), (OVERLOAD, CHANGE), (OVERLOAD, time), (NORMAL, time)];
        for (factor, time) in parts {
            let offered = factor * saturating;
            let seen = load.open(offered, time).await?;
            phases.push((seen, offered, time, server.resident()?));
        }
        let disturbed = server.waited()?.as_secs_f64() / begun.elapsed().as_secs_f64();
        Ok(Self { saturating, phases, disturbed })
    }
}

/// The server with its limits, and for comparison without any.
pub(crate) fn run(options: &Options) -> Result<(), BoxError> {
    measure("all default limits", "burn", options)?;
    measure("without limits", "burn-unlimited", options)
}

fn measure(name: &str, kind: &str, options: &Options) -> Result<(), BoxError> {
    pin_load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut best, mut phases) = (Figures::default(), <[Phase; 4]>::default());
    let time = Duration::from_secs_f64(options.seconds * LENGTH);
    let (mut rounds, mut tries) = (0, 0);
    while rounds < options.rounds {
        tries += 1;
        progress(&format!("overload, {name}: round {}, try {tries}", rounds + 1));
        let round = runtime.block_on(Round::run(kind, time))?;
        if round.disturbed > DISTURBED_MAX && tries < options.rounds * TRIES {
            progress(&format!("void: the server waited {:.0} % of it", round.disturbed * 100.0));
            continue;
        }
        rounds += 1;
        best.0.push(round.saturating);
        for (phase, (seen, offered, time, resident)) in phases.iter_mut().zip(&round.phases) {
            phase.note(seen, *offered, *time, *resident);
        }
    }
    let best = best.median();
    let [normal, first, overload, after] = &mut phases;
    let rows = [
        normal.row("seven tenths of what saturates it"),
        first.row("three times what saturates it, the first 2 s"),
        overload.row("the same, after that"),
        after.row("seven tenths again"),
    ];
    let head = [
        "load",
        "offered/s",
        "answered/s",
        "refused/s",
        "lost/s",
        "p50 ms",
        "p99 ms",
        "resident MiB",
    ];
    table(
        &format!("Overload of a 1 ms handler on one core, {name}; saturated at {best:.0}/s"),
        &head,
        &rows,
    );
    let row =
        |name: &str, figure: String, goal: &str| vec![name.to_owned(), figure, goal.to_owned()];
    let rows = [
        row(
            "goodput at three times the load ÷ best",
            format!("{:.2}", overload.good.median() / best),
            "≥ 0.95",
        ),
        row(
            "p99 of answered calls ÷ normal",
            figure(overload.p99.median() / normal.p99.median(), 2),
            "≤ 3",
        ),
        row(
            "resident after ÷ before",
            format!("{:.2}", after.resident.median() / normal.resident.median()),
            "flat",
        ),
    ];
    table(&format!("Overload, {name}: what counts"), &["figure", "measured", "goal"], &rows);
    Ok(())
}
