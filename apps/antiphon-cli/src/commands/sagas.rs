//! `antiphon sagas`: looks at sagas, and asks their services to intervene.

use std::time::Duration;

use antiphon::operate::Operations;
use antiphon::outbox::Store;
use antiphon::saga::{Instance, SagaFilter, SagaId, SagaRow, SagaStore, State, Wish};
use antiphon::sql::Database;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::listing::{Format, Listing, cell};
use crate::output::say;

/// How often it is looked whether a saga has moved.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists sagas.
    List(Filter),
    /// Shows one saga with its steps.
    Show(One),
    /// Tries again at once what a parked saga keeps failing at.
    Resume(Intervene),
    /// Makes a saga turn back and undo what was done, unless it has passed its pivot.
    Cancel(Intervene),
}

/// Which sagas.
#[derive(Args, Debug)]
pub(crate) struct Filter {
    /// Only of these services, separated by commas.
    #[arg(long, value_name = "SERVICES", value_delimiter = ',')]
    service: Vec<String>,
    /// Only of this type.
    #[arg(long, value_name = "TYPE")]
    kind: Option<String>,
    /// Only in this state.
    #[arg(long, value_name = "STATE")]
    state: Option<Wanted>,
    /// Only those that are parked: an operator must look at them.
    #[arg(long)]
    parked: bool,
    /// At most so many per service.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Wanted {
    Running,
    Compensating,
    Completed,
    Compensated,
}

impl From<Wanted> for State {
    fn from(wanted: Wanted) -> Self {
        match wanted {
            Wanted::Running => Self::Running,
            Wanted::Compensating => Self::Compensating,
            Wanted::Completed => Self::Completed,
            Wanted::Compensated => Self::Compensated,
        }
    }
}

/// One saga.
#[derive(Args, Debug)]
pub(crate) struct One {
    /// The service that runs it.
    service: String,
    /// Its id, as `sagas list` shows it.
    id: SagaId,
}

#[derive(Args, Debug)]
pub(crate) struct Intervene {
    #[command(flatten)]
    one: One,
    /// How long to wait for the service to do it, in seconds; 0 does not wait.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    wait: u64,
}

pub(crate) async fn run(
    operations: &Operations,
    format: Format,
    command: Command,
) -> antiphon::Result<()> {
    match command {
        Command::List(filter) => list(operations, format, filter).await,
        Command::Show(one) => {
            let database = operations.database(&one.service).await?;
            show(&load(&database, one.id).await?, format);
            Ok(())
        }
        Command::Resume(options) => intervene(operations, Wish::Resume, options, format).await,
        Command::Cancel(options) => intervene(operations, Wish::Cancel, options, format).await,
    }
}

async fn list(operations: &Operations, format: Format, filter: Filter) -> antiphon::Result<()> {
    let columns =
        &["service", "id", "kind", "correlation", "state", "parked", "failure", "updated"];
    let mut listing = Listing::new(columns, "There are no such sagas.");
    let wanted = SagaFilter {
        kind: filter.kind,
        state: filter.state.map(State::from),
        parked: filter.parked,
        after: None,
    };
    for database in super::databases(operations, &filter.service).await? {
        for row in database.store().list(&wanted, filter.limit).await? {
            let instance = Instance::decode(row.state, &row.progress).ok();
            let failure = instance.as_ref().and_then(|instance| instance.failure.clone());
            listing.row([
                json!(database.service()),
                json!(row.id.to_string()),
                json!(row.kind),
                json!(row.correlation),
                json!(row.state.name()),
                json!(instance.and_then(|instance| instance.parked)),
                json!(failure.map(|failure| failure.reason)),
                super::moment(row.updated_at),
            ]);
        }
    }
    listing.print(format);
    Ok(())
}

async fn load(database: &Database, id: SagaId) -> antiphon::Result<SagaRow> {
    let store = database.store();
    let mut connection = store.begin().await?;
    let found = store.load(&mut connection, &[id]).await?.pop();
    found.ok_or_else(|| format!("{} runs no saga {id}", database.service()).into())
}

/// Everything of one saga. Its steps have numbers: their names are in the service's program.
fn show(row: &SagaRow, format: Format) {
    let instance = Instance::decode(row.state, &row.progress).ok();
    let steps: Vec<Value> = instance
        .iter()
        .flat_map(|instance| instance.steps.iter().enumerate())
        .map(|(number, step)| {
            json!({"step": number, "phase": step.phase, "tries": step.tries,
                   "due": step.due.map_or(Value::Null, super::moment)})
        })
        .collect();
    let failure = instance.as_ref().and_then(|instance| instance.failure.as_ref());
    let fields = [
        ("id", json!(row.id.to_string())),
        ("kind", json!(row.kind)),
        ("version", json!(row.version)),
        ("correlation", json!(row.correlation)),
        ("state", json!(row.state.name())),
        ("parked", json!(instance.as_ref().and_then(|instance| instance.parked.clone()))),
        ("failure", json!(failure.map(|it| format!("{}: {}", it.reason, it.message)))),
        ("wake_at", row.wake_at.map_or(Value::Null, super::moment)),
        ("created", super::moment(row.created_at)),
        ("updated", super::moment(row.updated_at)),
    ];
    if format == Format::Json {
        let mut object: serde_json::Map<String, Value> =
            fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        object.insert("steps".into(), Value::Array(steps));
        say!("{:#}", Value::Object(object));
        return;
    }
    for (name, value) in fields {
        say!("{name:<12} {}", cell(&value));
    }
    for step in &steps {
        let field = |name: &str| cell(&step[name]);
        say!("step {:<7} {} after {} tries", field("step"), field("phase"), field("tries"));
    }
}

/// Asks the service for it, and waits until the saga has moved.
#[expect(clippy::print_stderr, reason = "the outcome, for people")]
async fn intervene(
    operations: &Operations,
    wish: Wish,
    options: Intervene,
    format: Format,
) -> antiphon::Result<()> {
    let Intervene { one: One { service, id }, wait } = options;
    let database = operations.database(&service).await?;
    let before = load(&database, id).await?;
    if before.state.is_ended() {
        return Err(format!("the saga {id} has ended: it is {}", before.state.name()).into());
    }
    wish.ask(&database, id).await?;
    if wait == 0 {
        eprintln!("{service} was asked to {} the saga.", wish.name());
        return Ok(());
    }
    let moved = async {
        loop {
            let now = load(&database, id).await?;
            if now.revision != before.revision {
                return Ok::<_, antiphon::Error>(now);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    match tokio::time::timeout(Duration::from_secs(wait), moved).await {
        Ok(now) => {
            show(&now?, format);
            Ok(())
        }
        Err(_) => Err(format!(
            "{service} was asked to {} the saga and has not done it after {wait} s: either it is \
             not running, and does it when it is, or the saga is not in a state for it",
            wish.name()
        )
        .into()),
    }
}
