//! Printing what was asked for.

use std::fmt;
use std::io::{ErrorKind, Write};
use std::process::exit;

/// Prints a line. Whoever reads it may have seen enough, as `head` has: then the command ends, and
/// well. When it cannot be written for another reason, it ends with 1.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => exit(0),
        Err(_) => exit(1),
    }
}

/// As `println!`.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use say;
