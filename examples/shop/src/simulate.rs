//! `shop simulate`: many customers at once, over the public API.

mod http;
mod mix;
mod summary;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;
use tokio::time::Instant;

use http::Client;
use mix::Mix;
use summary::{Outcome, Summary};

/// How long one order is followed before it counts as undecided.
const FOLLOW_MAX: Duration = Duration::from_secs(120);

/// Places orders over the public API and follows each to its end.
#[derive(Args, Debug)]
pub(crate) struct Simulate {
    /// How many orders to place.
    #[arg(long, default_value_t = 1_000)]
    orders: u64,
    /// How many customers order at the same time.
    #[arg(long, default_value_t = 16)]
    concurrency: u64,
    /// Where the orders service answers.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    to: String,
    /// Where the inventory service answers, if it is not the same process.
    #[arg(long, value_name = "HOST:PORT")]
    inventory: Option<String>,
    /// Cards and how often each is used, as `card=weight,…`.
    #[arg(long, default_value_t = Mix::default())]
    cards: Mix,
    /// At most this many orders per second; as fast as it goes when not given.
    #[arg(long)]
    rate: Option<f64>,
    /// Writes every accepted order to this file, for `shop audit --journal`.
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// The seed of the choice of articles and cards, to repeat a run.
    #[arg(long)]
    seed: Option<u64>,
    /// Does not wait until the orders are decided.
    #[arg(long)]
    no_follow: bool,
    /// How long a customer goes on trying to place one order while nobody answers, in seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    patience: u64,
}

struct Run {
    options: Simulate,
    seed: u64,
    skus: Vec<String>,
    next: AtomicU64,
    begun: Instant,
    stop: AtomicBool,
    journal: Option<Mutex<tokio::fs::File>>,
    progress: ProgressBar,
}

/// Runs the simulation and prints its summary.
///
/// # Errors
/// The shop does not answer at all, or the journal cannot be written.
pub(crate) async fn run(options: Simulate) -> antiphon::Result<()> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    let skus = articles(options.inventory.as_ref().unwrap_or(&options.to)).await?;
    let journal = match &options.journal {
        Some(path) => {
            let mut open = tokio::fs::OpenOptions::new();
            let file =
                open.create(true).append(true).open(path).await.map_err(|error| {
                    format!("cannot write the journal {}: {error}", path.display())
                })?;
            Some(Mutex::new(file))
        }
        None => None,
    };
    let progress = ProgressBar::new(options.orders);
    progress.set_style(ProgressStyle::with_template(
        "{elapsed_precise} [{bar:40}] {pos}/{len} orders, {per_sec}, {eta} left {msg}",
    )?);
    let customers = options.concurrency.max(1);
    let run = Arc::new(Run {
        options,
        seed,
        skus,
        next: AtomicU64::new(0),
        begun: Instant::now(),
        stop: AtomicBool::new(false),
        journal,
        progress,
    });
    let interrupt = tokio::spawn({
        let run = Arc::clone(&run);
        async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                run.stop.store(true, Ordering::Relaxed);
                run.progress.set_message("(stopping)");
            }
        }
    });
    let workers: Vec<_> =
        (0..customers).map(|_| tokio::spawn(customer(Arc::clone(&run)))).collect();
    let mut summary = Summary::new(seed);
    for worker in workers {
        summary.merge(worker.await?);
    }
    interrupt.abort();
    run.progress.finish_and_clear();
    summary.print(run.begun.elapsed());
    if summary.answered() == 0 {
        return Err(format!("nobody answered at {}; is the shop running?", run.options.to).into());
    }
    Ok(())
}

/// What the shop sells.
async fn articles(to: &str) -> antiphon::Result<Vec<String>> {
    let mut client = Client::new(to);
    let answer = client.get("/v1/stock?pageSize=1000").await.map_err(|error| {
        format!("the shop does not answer at {to}: {error}; start it with `cargo run -p shop`")
    })?;
    let stock: Value = serde_json::from_slice(&answer.body)?;
    let skus: Vec<String> = stock["stock"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|article| article["sku"].as_str().map(str::to_owned))
        .collect();
    if skus.is_empty() {
        return Err(format!("the shop at {to} has nothing to sell: {stock}").into());
    }
    Ok(skus)
}

/// One customer: orders one after the other until all are placed.
async fn customer(run: Arc<Run>) -> Summary {
    let mut client = Client::new(&run.options.to);
    let mut summary = Summary::new(run.seed);
    loop {
        let number = run.next.fetch_add(1, Ordering::Relaxed);
        if number >= run.options.orders || run.stop.load(Ordering::Relaxed) {
            return summary;
        }
        if let Some(rate) = run.options.rate {
            #[expect(clippy::cast_precision_loss, reason = "a schedule, not an account")]
            let due = run.begun + Duration::from_secs_f64(number as f64 / rate);
            tokio::time::sleep_until(due).await;
        }
        let outcome = order(&run, &mut client, number, &mut summary).await;
        summary.count(outcome);
        run.progress.inc(1);
    }
}

/// Places one order and follows it.
async fn order(run: &Run, client: &mut Client, number: u64, summary: &mut Summary) -> Outcome {
    let mut random =
        fastrand::Rng::with_seed(run.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let key = format!("sim-{:016x}-{number}", run.seed);
    let lines: Vec<Value> = (0..random.usize(1..=3))
        .map(|_| json!({"sku": random.choice(&run.skus), "quantity": random.i32(1..=3)}))
        .collect();
    let body = json!({
        "customerId": format!("customer-{}", random.u32(0..100)),
        "card": run.options.cards.pick(&mut random),
        "lines": lines,
    });
    let begun = Instant::now();
    let accepted = match place(run, client, &key, &body).await {
        Ok(accepted) => accepted,
        Err(outcome) => return outcome,
    };
    summary.accepted(begun.elapsed());
    let id = accepted["id"].as_str().unwrap_or_default().to_owned();
    if let Some(journal) = &run.journal {
        let line = json!({"key": key, "id": id}).to_string() + "\n";
        let mut journal = journal.lock().await;
        let written = journal.write_all(line.as_bytes()).await;
        if written.is_err() || journal.sync_data().await.is_err() {
            return Outcome::Failed("the journal cannot be written".into());
        }
    }
    if run.options.no_follow {
        return Outcome::Undecided;
    }
    let outcome = follow(run, client, &id).await;
    if matches!(outcome, Outcome::Confirmed) {
        summary.confirmed(begun.elapsed());
    }
    outcome
}

/// Tries until somebody answers: the idempotency key makes that safe.
async fn place(run: &Run, client: &mut Client, key: &str, body: &Value) -> Result<Value, Outcome> {
    let give_up = Instant::now() + Duration::from_secs(run.options.patience);
    let mut wait = Duration::from_millis(20);
    loop {
        let failed = match client.post("/v1/orders", key, body).await {
            Ok(answer) if answer.status == 201 => {
                return serde_json::from_slice(&answer.body)
                    .map_err(|error| Outcome::Failed(format!("unreadable answer: {error}")));
            }
            Ok(answer) if matches!(answer.status, 429 | 503 | 504) => answer.problem(),
            Ok(answer) => return Err(Outcome::Failed(answer.problem())),
            Err(error) => error.to_string(),
        };
        if Instant::now() >= give_up || run.stop.load(Ordering::Relaxed) {
            return Err(Outcome::Failed(failed));
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(1));
    }
}

async fn follow(run: &Run, client: &mut Client, id: &str) -> Outcome {
    let give_up = Instant::now() + FOLLOW_MAX;
    let mut wait = Duration::from_millis(15);
    while Instant::now() < give_up && !run.stop.load(Ordering::Relaxed) {
        tokio::time::sleep(wait).await;
        wait = (wait * 3 / 2).min(Duration::from_millis(500));
        let Ok(answer) = client.get(&format!("/v1/orders/{id}")).await else { continue };
        if answer.status != 200 {
            continue;
        }
        let order: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        match order["status"].as_str() {
            Some("CONFIRMED") => return Outcome::Confirmed,
            Some("CANCELLED") => {
                let reason = order["cancelReason"].as_str().unwrap_or_default();
                return Outcome::Cancelled(reason.to_owned());
            }
            _ => {}
        }
    }
    Outcome::Undecided
}
