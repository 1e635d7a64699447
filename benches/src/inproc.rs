//! A call to a service of the same process, through the generated client.

use std::time::Duration;

use antiphon_core::{BoxError, Context, Status};
use antiphon_rpc::client::{Client, Hosted};
use tokio::time::Instant;

use crate::contract::bench::v1::{EchoMessage, EchoService, EchoServiceClient, EchoServiceServer};
use crate::report::{median, table};

const CALLS: u32 = 200_000;
const ROUNDS: usize = 5;

struct Echo;

impl EchoService for Echo {
    async fn echo(&self, request: EchoMessage) -> Result<EchoMessage, Status> {
        Ok(request)
    }
}

/// Measures with and without a deadline of the caller.
pub(crate) fn run() -> Result<(), BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = EchoServiceClient::over(EchoServiceServer::new(Echo).channel());
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        figures[0].push(runtime.block_on(one_round(&client, Context::root()))?);
        let deadline = Instant::now() + Duration::from_secs(60);
        let context = Context::root().with_deadline(deadline);
        figures[1].push(runtime.block_on(one_round(&client, context))?);
    }
    let rows: Vec<_> = ["caller without a deadline", "caller with a deadline"]
        .into_iter()
        .zip(&mut figures)
        .map(|(name, figures)| vec![name.to_owned(), format!("{:.2}", median(figures))])
        .collect();
    table("Call inside the process, nothing encoded", &["", "µs per call"], &rows);
    Ok(())
}

async fn one_round(client: &EchoServiceClient, context: Context) -> Result<f64, BoxError> {
    let calls = async {
        let begun = Instant::now();
        for id in 0..CALLS {
            let request = EchoMessage {
                id: i64::from(id),
                name: "echo".to_owned(),
                text: "x".repeat(64),
                ..Default::default()
            };
            std::hint::black_box(client.echo(request).await?);
        }
        Ok::<_, BoxError>(begun.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS))
    };
    context.scope(calls).await
}
