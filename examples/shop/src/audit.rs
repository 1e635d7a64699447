//! `shop audit`: reads every service's database and checks what must be true of the whole.
//!
//! The shop must be quiet (stopped, or without customers and all sagas ended): the audit waits for
//! that as long as less and less is in flight, and says what was still in flight if it does not come.

mod books;
mod checks;

use std::path::PathBuf;
use std::time::Duration;

use antiphon::operate::Operations;
use clap::Args;
use tokio::time::Instant;

use books::{Books, InFlight};

/// Checks that nothing was lost and nothing was done twice.
#[derive(Args, Debug)]
pub(crate) struct Audit {
    /// Where the shop keeps its data [default: ./shop-data].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The settings that the shop runs with; `antiphon.toml` in the working directory when it is
    /// there.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Accepted orders, as `shop simulate --journal` wrote them; may be given several times.
    #[arg(long, value_name = "FILE")]
    journal: Vec<PathBuf>,
    /// How long to wait, in seconds, while what is in flight does not become less.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    wait: u64,
    /// Prints the checks as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs all checks and prints them.
///
/// # Errors
/// A database cannot be read, or a check does not hold.
#[expect(clippy::print_stdout, reason = "the table is the output of the command")]
pub(crate) async fn run(options: Audit) -> antiphon::Result<()> {
    let mut sources = crate::run::sources(options.config);
    if let Some(data) = &options.data {
        sources = sources.set("--data", "database.dir", data.display());
    }
    let books = Books::open(&Operations::load(&sources)?).await?;
    let in_flight = settled(&books, Duration::from_secs(options.wait)).await?;
    let checks = checks::all(&books.read(&options.journal).await?, &in_flight);
    if options.json {
        println!("{}", checks::to_json(&checks));
    } else {
        print!("{}", checks::to_table(&checks));
    }
    let broken = checks.iter().filter(|check| !check.holds).count();
    if broken > 0 {
        return Err(format!("{broken} of {} checks do not hold", checks.len()).into());
    }
    Ok(())
}

/// Waits until nothing is in flight, or nothing becomes less for so long; what is left.
async fn settled(books: &Books, patience: Duration) -> antiphon::Result<Vec<String>> {
    let mut least = u64::MAX;
    let mut give_up = Instant::now() + patience;
    loop {
        let InFlight { count, what } = books.in_flight().await?;
        if count < least {
            (least, give_up) = (count, Instant::now() + patience);
        }
        if what.is_empty() || Instant::now() >= give_up {
            return Ok(what);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
