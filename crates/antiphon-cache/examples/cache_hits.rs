//! Nanoseconds per hit beside bare moka, on one thread and on all cores.
//!
//! Rounds of the two take turns; what is printed are medians.
//!
//! `cargo run --release -p antiphon-cache --example cache_hits [LOOKUPS]`

#![expect(clippy::print_stdout, reason = "a program that prints figures")]

use std::hint::black_box;
use std::sync::Arc;

use antiphon_cache::Cache;
use antiphon_core::{BoxError, Status};
use antiphon_telemetry::Telemetry;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

const KEYS: usize = 10_000;
const ROUNDS: usize = 9;

type Bare = moka::sync::Cache<String, Arc<u64>>;

fn keys() -> Vec<String> {
    (0..KEYS).map(|number| format!("sku-{number}")).collect()
}

/// The keys in the order of their lookups: some hot, most not.
fn order(lookups: usize, seed: u64) -> Vec<usize> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut one = || {
        let bound = random.usize(..KEYS);
        random.usize(..=bound)
    };
    (0..lookups).map(|_| one()).collect()
}

fn bare_round(cache: &Bare, keys: &[String], order: &[usize]) -> u64 {
    order.iter().filter_map(|&at| black_box(cache.get(&keys[at]))).map(|value| *value).sum()
}

async fn cache_round(cache: &Cache<String, u64>, keys: &[String], order: &[usize]) -> u64 {
    let mut sum = 0;
    for &at in order {
        let load = || async { Err(Status::unavailable("everything is there")) };
        if let Ok(Some(value)) = black_box(cache.get(keys[at].as_str(), load).await) {
            sum += *value;
        }
    }
    sum
}

/// Nanoseconds per lookup of each of `threads`, which run the same round at the same time.
fn time(
    threads: usize,
    lookups: usize,
    round: impl Fn(u64) -> u64 + Sync,
) -> Result<f64, BoxError> {
    let began = Instant::now();
    let round = &round;
    let mut sums = Vec::new();
    std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..threads as u64).map(|seed| scope.spawn(move || round(seed))).collect();
        sums.extend(running.into_iter().map(std::thread::ScopedJoinHandle::join));
    });
    if sums.iter().any(|sum| !matches!(sum, Ok(1..))) {
        return Err("a round found nothing".into());
    }
    Ok(began.elapsed().as_secs_f64() * 1e9 / lookups as f64)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn runtime() -> Result<Runtime, std::io::Error> {
    Builder::new_current_thread().enable_all().build()
}

fn main() -> Result<(), BoxError> {
    let lookups: usize = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let keys = keys();
    let bare = Bare::new(100_000);
    let cache = Cache::<String, u64>::builder("bench").build(&Telemetry::new())?;
    runtime()?.block_on(async {
        for (number, key) in (1_u64..).zip(&keys) {
            bare.insert(key.clone(), Arc::new(number));
            cache.get(key, move || async move { Ok(Some(number)) }).await?;
        }
        Ok::<(), Status>(())
    })?;
    let cores = std::thread::available_parallelism()?.get();
    for threads in if cores > 1 { vec![1, cores] } else { vec![1] } {
        let orders: Vec<_> = (0..threads as u64).map(|seed| order(lookups, seed)).collect();
        let (mut of_bare, mut of_cache) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            of_bare.push(time(threads, lookups, |seed| {
                bare_round(&bare, &keys, &orders[seed as usize])
            })?);
            of_cache.push(time(threads, lookups, |seed| {
                let round = cache_round(&cache, &keys, &orders[seed as usize]);
                runtime().map_or(0, |runtime| runtime.block_on(round))
            })?);
        }
        let (bare, ours) = (median(of_bare), median(of_cache));
        println!(
            "{threads} thread(s): bare moka {bare:.0} ns per hit, the cache {ours:.0} ns, {:+.0} ns",
            ours - bare
        );
    }
    Ok(())
}
