//! Runs programs.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// `cargo`, the one that runs this program.
pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root).args(arguments);
    // What this program was built with must not decide how others are built.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    command
}

/// Runs a program whose output goes to the terminal.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let shown = show(command);
    println!("    $ {shown}");
    let status = command.status().map_err(|error| cannot_start(command, &error))?;
    judge(status, &shown)
}

/// Runs a program and returns what it prints.
pub(crate) fn capture(command: &mut Command) -> Result<String, String> {
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|error| cannot_start(command, &error))?;
    judge(output.status, &show(command))?;
    String::from_utf8(output.stdout).map_err(|_| format!("{} printed no text", show(command)))
}

/// Runs a program with its output in a file, and stops it when it takes longer than `limit`.
pub(crate) fn run_into(command: &mut Command, log: &Path, limit: Duration) -> Result<(), String> {
    let trouble = |error: io::Error| format!("{}: {error}", log.display());
    let file = File::create(log).map_err(trouble)?;
    let errors = file.try_clone().map_err(trouble)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .map_err(|error| cannot_start(command, &error))?;
    let begun = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => return judge(status, &show(command)),
            None if begun.elapsed() > limit => {
                // It may have ended by itself in this moment.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("stopped: it ran longer than {} s", limit.as_secs()));
            }
            None => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Whether a program can be started and says so.
pub(crate) fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn judge(status: ExitStatus, shown: &str) -> Result<(), String> {
    if status.success() { Ok(()) } else { Err(format!("`{shown}` failed ({status})")) }
}

fn cannot_start(command: &Command, error: &io::Error) -> String {
    format!("cannot start `{}`: {error}", show(command))
}

/// A command as one would type it, without the folder of the program.
fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(name)
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
