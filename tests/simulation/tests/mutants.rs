//! Each injected bug is caught: a simulator that finds nothing must also be able to find something.

use simulation::{Mutant, Violation, run};

/// How many seeds may pass before a bug is found; most are found by the first.
const SEEDS: u64 = 400;

/// Runs seeds until one breaks a promise; it must be one of these.
#[expect(clippy::print_stdout, reason = "how a bug shows belongs to the proof")]
fn caught_by(mutant: Mutant, questions: &[&str]) -> Result<(), String> {
    let violation = (0..SEEDS).find_map(|seed| run(seed, Some(mutant)).err());
    let Some(Violation { seed, what }) = violation else {
        return Err(format!("{mutant:?} survives {SEEDS} seeds"));
    };
    println!("{mutant:?} is caught by seed {seed}: {what}");
    if questions.iter().any(|question| what.contains(question)) {
        Ok(())
    } else {
        Err(format!("{mutant:?} was expected to break one of {questions:?}: {what}"))
    }
}

#[test]
fn an_acknowledgement_before_the_commit_is_caught() -> Result<(), String> {
    caught_by(Mutant::AckBeforeCommit, &["I1", "I2", "I5"])
}

#[test]
fn emitting_outside_of_the_transaction_is_caught() -> Result<(), String> {
    caught_by(Mutant::EmitOutside, &["I2", "I3", "I5", "I7"])
}

#[test]
fn a_cursor_that_skips_late_commits_is_caught() -> Result<(), String> {
    caught_by(Mutant::CursorSkip, &["I1", "I8"])
}

#[test]
fn a_lease_that_fences_nobody_is_caught() -> Result<(), String> {
    caught_by(Mutant::UnfencedLease, &["I8"])
}

#[test]
fn undoing_only_what_is_known_to_be_done_is_caught() -> Result<(), String> {
    caught_by(Mutant::CompensateKnown, &["I2"])
}
