//! `antiphon doctor`.

use antiphon::messaging::AnyBroker;
use antiphon::operate::Operations;
use antiphon::outbox::Store;
use antiphon::{Finding, Severity};
use clap::Args;
use serde_json::json;

use crate::listing::{Format, Listing};

/// What is looked at.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only these services' databases, separated by commas.
    #[arg(long, value_name = "SERVICES", value_delimiter = ',')]
    service: Vec<String>,
    /// Only the broker.
    #[arg(long, conflicts_with = "service")]
    broker: bool,
}

pub(crate) async fn run(
    operations: &Operations,
    format: Format,
    options: Options,
) -> antiphon::Result<()> {
    let mut findings = of_brokers(operations).await;
    if !options.broker {
        findings.extend(of_databases(operations, &options.service).await);
    }
    let columns = &["where", "severity", "subject", "finding", "advice"];
    let mut listing = Listing::new(columns, "There is nothing to look at.");
    let mut problems = 0;
    for (place, finding) in &findings {
        problems += usize::from(finding.severity == Severity::Problem);
        listing.row([
            json!(place),
            json!(finding.severity.name()),
            json!(finding.subject),
            json!(finding.text),
            json!(finding.advice),
        ]);
    }
    listing.print(format);
    match problems {
        0 => Ok(()),
        1 => Err("one problem must be solved".into()),
        more => Err(format!("{more} problems must be solved").into()),
    }
}

type Findings = Vec<(String, Finding)>;

async fn of_brokers(operations: &Operations) -> Findings {
    let brokers = match operations.brokers().await {
        Ok(brokers) => brokers,
        Err(error) => return vec![("broker".to_owned(), unreachable(&error, "broker.url"))],
    };
    let mut findings = of_broker("broker", &brokers.broker).await;
    if let Some(parking) = &brokers.parking {
        findings.extend(of_broker("parking", parking).await);
    }
    findings
}

async fn of_broker(place: &str, broker: &AnyBroker) -> Findings {
    let found = match broker.operate() {
        Some(operate) => operate.findings().await,
        None => vec![Finding::note("operation", "this broker cannot be looked at")],
    };
    let place = |finding| (place.to_owned(), finding);
    found.into_iter().map(place).collect()
}

async fn of_databases(operations: &Operations, named: &[String]) -> Findings {
    let services = match super::services(operations, named) {
        Ok(services) => services,
        Err(error) => {
            let finding = Finding::note("services", error.to_string());
            return vec![("databases".to_owned(), finding)];
        }
    };
    let mut findings = Findings::new();
    for service in services {
        let found = match operations.database(&service).await {
            Ok(database) => {
                let mut found = database.store().findings().await;
                if found.is_empty() {
                    let engine = database.store().engine();
                    found.push(Finding::fine("connection", format!("{engine} answers")));
                }
                found
            }
            Err(error) => vec![unreachable(&error, "the database settings")],
        };
        findings.extend(found.into_iter().map(|finding| (service.clone(), finding)));
    }
    findings
}

fn unreachable(error: &antiphon::Error, what: &str) -> Finding {
    Finding::problem(
        "connection",
        error.to_string(),
        format!("start the server, or correct {what}"),
    )
}
