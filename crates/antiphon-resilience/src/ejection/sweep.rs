//! Which instances answer so much worse than the others that something is wrong with them.

use std::sync::atomic::Ordering::Relaxed;

use super::{EjectionSettings, Health};

/// How much below the mean a success rate must lie at least, however small the deviation. Among
/// instances that answer every call one that fails one in a hundred is many deviations away, and
/// worth keeping.
const GAP_MIN: f64 = 0.05;

/// How the attempts at one instance ended between two sweeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that it answered.
    pub accepted: u32,
    /// Those that it failed.
    pub failed: u32,
}

impl Counts {
    fn answers(self) -> u64 {
        u64::from(self.accepted) + u64::from(self.failed)
    }

    fn rate(self) -> f64 {
        f64::from(self.accepted) / (self.answers() as f64).max(1.0)
    }
}

impl Health {
    /// What was counted since the last time.
    pub(super) fn take_counts(&self) -> Counts {
        Counts { accepted: self.accepted.swap(0, Relaxed), failed: self.failed.swap(0, Relaxed) }
    }
}

impl EjectionSettings {
    /// The places of the outliers in `counts`, the worst first.
    ///
    /// An outlier's success rate is more than [`Self::deviations_max`] standard deviations below the
    /// mean of the instances with enough answers. Too few of those, and nobody can be compared.
    #[must_use]
    pub fn outliers(&self, counts: &[Counts]) -> Vec<usize> {
        let enough = |counts: &Counts| counts.answers() >= u64::from(self.answers_min.max(1));
        let judged: Vec<_> = (0..counts.len()).filter(|index| enough(&counts[*index])).collect();
        if judged.is_empty() || judged.len() < self.instances_min {
            return Vec::new();
        }
        let rate = |index: &usize| counts[*index].rate();
        let mean = judged.iter().map(rate).sum::<f64>() / judged.len() as f64;
        let squares = judged.iter().map(|index| (rate(index) - mean).powi(2)).sum::<f64>();
        let deviation = (squares / judged.len() as f64).sqrt();
        let floor = mean - (self.deviations_max.max(0.0) * deviation).max(GAP_MIN);
        let mut outliers: Vec<_> = judged.into_iter().filter(|index| rate(index) < floor).collect();
        outliers.sort_by(|one, other| rate(one).total_cmp(&rate(other)));
        outliers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instances with a thousand answers each, of which so many were failures.
    fn failed(failed: &[u32]) -> Vec<Counts> {
        failed.iter().map(|failed| Counts { accepted: 1_000 - failed, failed: *failed }).collect()
    }

    #[test]
    fn only_what_is_far_below_the_others_is_an_outlier() {
        let settings = EjectionSettings::default();
        let cases: [(&str, &[u32], &[usize]); 8] = [
            ("all well", &[0, 0, 0, 0, 0], &[]),
            ("one bad of five", &[0, 0, 500, 0, 0], &[2]),
            ("one bad of four: too few to compare", &[0, 0, 500, 0], &[]),
            ("one in a hundred", &[0, 0, 0, 0, 10], &[]),
            ("all equally bad", &[500, 500, 500, 500, 500], &[]),
            ("bad among bad", &[300, 310, 290, 300, 900, 305], &[4]),
            ("two of twelve, the worst first", &[0, 800, 0, 0, 0, 0, 0, 0, 900, 0, 0, 0], &[8, 1]),
            ("half of them: a matter of the target", &[900, 900, 900, 0, 0, 0], &[]),
        ];
        for (name, counts, expected) in cases {
            assert_eq!(settings.outliers(&failed(counts)), expected, "{name}");
        }
    }

    #[test]
    fn instances_with_few_answers_are_neither_judged_nor_compared_with() {
        let settings = EjectionSettings::default();
        let mut counts = failed(&[0, 0, 0, 0, 0]);
        counts.push(Counts { accepted: 0, failed: 99 });
        assert_eq!(settings.outliers(&counts), []);
        counts[5].failed = 100;
        assert_eq!(settings.outliers(&counts), [5]);
        counts[0] = Counts::default();
        assert_eq!(settings.outliers(&counts), [5]);
        counts[1] = Counts::default();
        assert_eq!(settings.outliers(&counts), []);
        let nobody_is_enough = EjectionSettings { answers_min: 0, instances_min: 0, ..settings };
        assert_eq!(nobody_is_enough.outliers(&[Counts::default()]), []);
    }
}
