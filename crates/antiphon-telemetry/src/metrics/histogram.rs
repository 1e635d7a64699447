//! A histogram without a lock.
//!
//! Observations go into the shard of the thread that makes them, so cores do not fight over a cache
//! line; reading adds the shards up. An observation made for a sampled trace leaves an exemplar in
//! its bucket, so that a graph leads to a trace.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use antiphon_core::{Clock, Context, SpanId, Timestamp, TraceId};
use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

use super::text;

/// More shards than this cost more memory than they save time.
const SHARDS_MAX: usize = 8;

/// Counts observations in buckets. Cheap to clone; clones are the same histogram.
#[derive(Clone)]
pub struct Histogram(Arc<Inner>);

struct Inner {
    /// Upper bounds, ascending; the last bucket has none.
    bounds: Box<[f64]>,
    shards: Box<[Shard]>,
    /// Made by the first exemplar: most series never get one.
    exemplars: OnceLock<Box<[Mutex<Option<Exemplar>>]>>,
}

/// Aligned so that neighbours do not share cache lines.
#[repr(align(128))]
struct Shard {
    sum: AtomicU64,
    counts: Box<[AtomicU64]>,
}

/// One observation, and the trace that it was made in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exemplar {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
    pub(super) value: f64,
    pub(super) at: Timestamp,
}

impl Histogram {
    /// Buckets with these upper bounds, and one above the last.
    pub fn new(bounds: impl IntoIterator<Item = f64>) -> Self {
        let mut bounds: Vec<f64> = bounds.into_iter().filter(|bound| bound.is_finite()).collect();
        bounds.sort_by(f64::total_cmp);
        bounds.dedup();
        let shard = || Shard {
            sum: AtomicU64::new(0f64.to_bits()),
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
        };
        Self(Arc::new(Inner {
            shards: (0..shard_count()).map(|_| shard()).collect(),
            bounds: bounds.into(),
            exemplars: OnceLock::new(),
        }))
    }

    /// Counts one observation, with the current context's trace as its exemplar if it is sampled.
    pub fn observe(&self, value: f64) {
        if let Some(bucket) = self.count(value) {
            Context::with_current(|context| {
                if let Some(context) = context {
                    self.keep_exemplar(bucket, value, context);
                }
            });
        }
    }

    /// Counts one observation made in `context`.
    pub fn observe_in(&self, value: f64, context: &Context) {
        if let Some(bucket) = self.count(value) {
            self.keep_exemplar(bucket, value, context);
        }
    }

    /// How many observations were made, and their sum.
    #[must_use]
    pub fn totals(&self) -> (u64, f64) {
        let (counts, sum) = self.add_up();
        (counts.iter().sum(), sum)
    }

    /// What is not a number is not counted: one would spoil the sum for ever.
    fn count(&self, value: f64) -> Option<usize> {
        if value.is_nan() {
            return None;
        }
        let bucket = self.0.bounds.partition_point(|bound| *bound < value);
        let shard = &self.0.shards[own_shard() % self.0.shards.len()];
        shard.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let add = |sum: u64| Some((f64::from_bits(sum) + value).to_bits());
        // The closure never refuses, so the result says nothing.
        let _ = shard.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        Some(bucket)
    }

    fn keep_exemplar(&self, bucket: usize, value: f64, context: &Context) {
        let trace = context.trace();
        if !trace.sampled {
            return;
        }
        let slots = self
            .0
            .exemplars
            .get_or_init(|| (0..=self.0.bounds.len()).map(|_| Mutex::new(None)).collect());
        // Somebody else's exemplar is as good as ours: never wait.
        if let Some(mut slot) = slots[bucket].try_lock() {
            *slot = Some(Exemplar {
                trace_id: trace.trace_id,
                span_id: trace.span_id,
                value,
                at: Clock::system().now(),
            });
        }
    }

    fn add_up(&self) -> (Vec<u64>, f64) {
        let mut counts = vec![0; self.0.bounds.len() + 1];
        let mut sum = 0.0;
        for shard in &self.0.shards {
            for (total, count) in counts.iter_mut().zip(&shard.counts) {
                *total += count.load(Ordering::Relaxed);
            }
            sum += f64::from_bits(shard.sum.load(Ordering::Relaxed));
        }
        (counts, sum)
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, sum) = self.totals();
        write!(f, "Histogram({count} observations, sum {sum})")
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let (counts, sum) = self.add_up();
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
        let exemplars = self.0.exemplars.get().map(|slots| slots.iter().map(|slot| *slot.lock()));
        text::with_exemplars(exemplars.into_iter().flatten(), || {
            encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
        })
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

fn shard_count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        cores.next_power_of_two().min(SHARDS_MAX)
    })
}

/// A number that differs between the threads that run at the same time, as far as possible.
fn own_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    OWN.try_with(|own| *own).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_of_all_threads_are_added_up() {
        let histogram = Histogram::new([1.0, 2.0]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| histogram.observe(1.5)));
            }
        });
        histogram.observe(1.0);
        histogram.observe(9.0);
        histogram.observe(f64::NAN);
        assert_eq!(histogram.add_up(), (vec![1, 4_000, 1], 6_010.0));
        assert_eq!(histogram.totals(), (4_002, 6_010.0));
    }

    #[test]
    fn bounds_are_sorted_and_finite() {
        let histogram = Histogram::new([5.0, 1.0, f64::INFINITY, 5.0]);
        assert_eq!(&*histogram.0.bounds, [1.0, 5.0]);
    }
}
