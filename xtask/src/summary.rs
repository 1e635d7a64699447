//! What was run, how long it took, and how it ended.

use std::fmt::Write;
use std::time::{Duration, Instant};

/// How a step ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    /// Was not run, and why. Never used for what should have run and could not.
    LeftOut,
}

#[derive(Debug)]
struct Line {
    name: String,
    outcome: Outcome,
    took: Duration,
    note: String,
}

/// Collects the ends of steps.
#[derive(Debug, Default)]
pub(crate) struct Summary(Vec<Line>);

impl Summary {
    /// Runs a step and notes how it ended: with a note, or with a failure.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<String, String>) {
        println!("\n==> {name}");
        let begun = Instant::now();
        let (outcome, note) = match work() {
            Ok(note) => (Outcome::Passed, note),
            Err(note) => (Outcome::Failed, note),
        };
        let took = begun.elapsed();
        if outcome == Outcome::Failed {
            println!("    FAILED: {note}");
        }
        self.0.push(Line { name: name.to_owned(), outcome, took, note });
    }

    /// Notes a step that was not asked for.
    pub(crate) fn left_out(&mut self, name: &str, why: &str) {
        let note = why.to_owned();
        let (outcome, took) = (Outcome::LeftOut, Duration::ZERO);
        self.0.push(Line { name: name.to_owned(), outcome, took, note });
    }

    /// Whether nothing failed.
    pub(crate) fn passed(&self) -> bool {
        self.0.iter().all(|line| line.outcome != Outcome::Failed)
    }

    /// The table for the end.
    pub(crate) fn table(&self) -> String {
        let width = self.0.iter().map(|line| line.name.len()).max().unwrap_or(0);
        let mut text = String::from("\nsummary\n");
        for line in &self.0 {
            let outcome = match line.outcome {
                Outcome::Passed => "ok",
                Outcome::Failed => "FAILED",
                Outcome::LeftOut => "left out",
            };
            let took = match line.outcome {
                Outcome::LeftOut => String::new(),
                _ => seconds(line.took),
            };
            let note = line.note.lines().next().unwrap_or_default();
            // Writing into a string does not fail.
            let _ = writeln!(text, "  {outcome:<8}  {:<width$}  {took:>8}  {note}", line.name);
        }
        let total: Duration = self.0.iter().map(|line| line.took).sum();
        let failed = self.0.iter().filter(|line| line.outcome == Outcome::Failed).count();
        let end = match failed {
            0 => "everything that was run passed".to_owned(),
            1 => "1 step failed".to_owned(),
            n => format!("{n} steps failed"),
        };
        let _ = writeln!(text, "  {end}, in {}", seconds(total));
        text
    }
}

/// A duration as people read it in a table.
pub(crate) fn seconds(took: Duration) -> String {
    let seconds = took.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} m {:02} s", took.as_secs() / 60, took.as_secs() % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_what_was_run_and_what_was_not() {
        let mut summary = Summary::default();
        summary.step("format", || Ok("fine".to_owned()));
        summary.left_out("interop", "left out by --embedded");
        assert!(summary.passed());
        summary.step("tests", || Err("2 of 9 programs failed\ndetails".to_owned()));
        assert!(!summary.passed());
        let table = summary.table();
        assert!(table.contains("ok        format"), "{table}");
        assert!(table.contains("left out  interop"), "{table}");
        assert!(table.contains("FAILED    tests"), "{table}");
        assert!(table.contains("1 step failed"), "{table}");
        assert!(!table.contains("details"), "{table}");
    }

    #[test]
    fn long_durations_are_told_in_minutes() {
        assert_eq!(seconds(Duration::from_millis(1_250)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 m 05 s");
    }
}
