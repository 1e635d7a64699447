//! From `main` to the exit code.

use std::process::ExitCode;

use crate::error::{Error, Result};

/// Runs a program to its end: on a runtime for everything that is not answering calls, with an error
/// as one line on stderr and as the exit code (2 for what the operator must change, else 1).
pub fn launch(program: impl Future<Output = Result<()>>) -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("antiphon-background")
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(program);
            // What is still running was cut on purpose; nobody waits for it.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Error::from(error)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            error.exit_code()
        }
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a program that failed")]
fn report(error: &Error) {
    eprintln!("error: {error}");
}
