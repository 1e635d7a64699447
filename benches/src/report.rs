//! Tables, as Markdown.

use antiphon_core::BoxError;

/// Prints a table with a title.
#[expect(clippy::print_stdout, reason = "the tables are the output of the program")]
pub(crate) fn table(title: &str, head: &[&str], rows: &[Vec<String>]) {
    println!("\n### {title}\n");
    println!("| {} |", head.join(" | "));
    println!("|{}", "---|".repeat(head.len()));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
}

/// Prints the output of another program with a title.
#[expect(clippy::print_stdout, reason = "the figures are the output of the program")]
pub(crate) fn verbatim(title: &str, text: &str) {
    println!("\n### {title}\n\n```text\n{text}\n```");
}

/// Says what is going on.
#[expect(clippy::print_stderr, reason = "progress stays apart from the tables")]
pub(crate) fn progress(what: &str) {
    eprintln!("{what}");
}

/// Says why it ended.
#[expect(clippy::print_stderr, reason = "the last word of a program that failed")]
pub(crate) fn failed(error: &BoxError) {
    eprintln!("error: {error}");
}

/// The middle of some figures.
pub(crate) fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => figures[count / 2],
        count => f64::midpoint(figures[count / 2 - 1], figures[count / 2]),
    }
}
