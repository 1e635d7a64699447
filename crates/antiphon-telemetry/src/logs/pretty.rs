//! A log line for people at a terminal.

use std::fmt::Write;

use tracing::Level;

use super::fields::Value;
use super::layer::Line;

const DIM: &str = "\u{1b}[2m";
const RESET: &str = "\u{1b}[0m";

pub(super) fn line(line: &Line<'_>, colours: bool) -> String {
    let (dim, reset) = if colours { (DIM, RESET) } else { ("", "") };
    let colour = if colours { level_colour(*line.metadata.level()) } else { "" };
    let of_day = line.at.seconds % 86_400;
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    let millis = line.at.nanos / 1_000_000;
    let mut text = String::with_capacity(256);
    // Writing into a string does not fail.
    let _ = write!(
        text,
        "{dim}{hour:02}:{minute:02}:{second:02}.{millis:03}{reset} {colour}{:>5}{reset} \
         {dim}{}:{reset} {}",
        line.metadata.level(),
        line.metadata.target(),
        Printable(&line.fields.message),
    );
    for (name, Value::Plain(value) | Value::Text(value)) in &line.fields.rest {
        let _ = write!(text, " {dim}{name}={reset}{}", Printable(value));
    }
    if let Some(context) = line.context {
        let (trace, span) = (context.trace().trace_id, context.trace().written_span_id());
        let _ = write!(text, " {dim}trace={trace} span={span}");
        // It is the trace's own id until somebody gives another.
        let correlation = context.correlation_id();
        if correlation != trace.to_string() {
            let _ = write!(text, " correlation={}", Printable(&correlation));
        }
        text.push_str(reset);
    }
    text.push('\n');
    text
}

/// The line that tells of lines that were dropped.
pub(super) fn dropped(lines: u64) -> String {
    format!("the log output is too slow, {lines} lines were dropped\n")
}

fn level_colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\u{1b}[31m",
        Level::WARN => "\u{1b}[33m",
        Level::INFO => "\u{1b}[32m",
        Level::DEBUG => "\u{1b}[34m",
        Level::TRACE => "\u{1b}[35m",
    }
}

/// Text without control characters: what a caller sent must not move the cursor of an operator.
struct Printable<'a>(&'a str);

impl std::fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::logs::layer::Format;
    use crate::logs::layer::tests::{context, logged};

    #[tokio::test]
    async fn a_line_for_people_has_the_same_facts() {
        let text = logged(Format::Pretty { colours: false }, || {
            context().sync_scope(|| tracing::error!(sku = "book\u{1b}[31m\n", "gone"));
        })
        .await;
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("ERROR antiphon_telemetry::logs::pretty::tests: gone"), "{text}");
        assert!(text.contains("sku=book\\u{1b}[31m\\n"), "{text}");
        assert!(text.contains("span=0000000000000def correlation=order-1"), "{text}");
    }
}
