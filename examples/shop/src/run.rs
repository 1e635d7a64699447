//! `shop run`: the services, all or some, in one process.

use std::net::SocketAddr;
use std::path::PathBuf;

use antiphon::{App, Bound, Sources};
use clap::{Args, ValueEnum};

/// One of the six services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Service {
    /// Takes orders; owns the place-order saga.
    Orders,
    /// What is on the shelves.
    Inventory,
    /// Money through the card provider.
    Payments,
    /// Points per customer.
    Points,
    /// Shipments.
    Shipping,
    /// What customers are told.
    Notifications,
}

/// Runs the shop.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Where the API answers [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where operators look [default: 127.0.0.1:9090].
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Where the data lies [default: ./shop-data].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Only these services, separated by commas; all of them when not given.
    #[arg(long, value_name = "SERVICES", value_delimiter = ',')]
    only: Vec<Service>,
    /// Settings; `antiphon.toml` in the working directory when it is there.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What the shop sets where nobody else does.
const DEFAULTS: &str = include_str!("../config/defaults.toml");

/// Where settings come from: a file, the environment, and what the shop sets where nobody else does.
pub(crate) fn sources(config: Option<PathBuf>) -> Sources {
    Sources::standard(config).defaults("the shop's defaults", DEFAULTS)
}

/// Runs until it is told to stop.
///
/// # Errors
/// See [`App::run`].
pub(crate) async fn run(options: Run) -> antiphon::Result<()> {
    let mut sources = sources(options.config);
    if let Some(listen) = options.listen {
        sources = sources.set("--listen", "server.listen", listen);
    }
    if let Some(admin) = options.admin {
        sources = sources.set("--admin", "admin.listen", admin);
    }
    if let Some(data) = &options.data {
        sources = sources.set("--data", "database.dir", data.display());
    }
    let mut only = options.only;
    only.sort();
    only.dedup();
    let name = match only.as_slice() {
        [one] => format!(
            "shop-{}",
            one.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
        ),
        _ => "shop".to_owned(),
    };
    let mut app = App::load(&name, env!("CARGO_PKG_VERSION"), &sources).await?;
    let wanted = |service| only.is_empty() || only.contains(&service);
    // Before orders, which calls it inside the process when it is here.
    if wanted(Service::Inventory) {
        crate::inventory::mount(&mut app).await?;
    }
    if wanted(Service::Payments) {
        crate::payments::mount(&mut app).await?;
    }
    if wanted(Service::Points) {
        crate::points::mount(&mut app).await?;
    }
    if wanted(Service::Shipping) {
        crate::shipping::mount(&mut app).await?;
    }
    if wanted(Service::Notifications) {
        crate::notifications::mount(&mut app).await?;
    }
    if wanted(Service::Orders) {
        crate::orders::mount(&mut app).await?;
    }
    let data = app.data_dir().display().to_string();
    app.run(|bound| welcome(bound, &data)).await
}

/// The first screen: what runs where, and what to try.
#[expect(clippy::print_stdout, reason = "the first screen is the output of the command")]
fn welcome(bound: &Bound, data: &str) {
    let Bound { server, admin, services } = bound;
    println!("The Antiphon shop is open.");
    println!();
    if let Some(server) = server {
        println!("  API        http://{server}          gRPC, gRPC-Web, Connect and REST");
        println!("  Docs       http://{server}/docs     try it in the browser");
        println!(
            "  OpenAPI    http://{server}/openapi.json   AsyncAPI http://{server}/asyncapi.json"
        );
    }
    println!("  Admin      http://{admin}          /livez /readyz /metrics /config");
    println!("  Data       {data}");
    println!("  Services   {}", services.join(" "));
    if let (Some(server), true) = (server, services.len() > 1) {
        println!();
        println!("Try it:");
        println!("  curl http://{server}/v1/stock");
        println!("  curl -i http://{server}/v1/orders -H 'Idempotency-Key: my-first' \\");
        println!(
            "    --json '{{\"customerId\":\"ada\",\"card\":\"tok_ok\",\"lines\":[{{\"sku\":\"book-rust\",\"quantity\":1}}]}}'"
        );
        println!("  cargo run -p shop -- simulate --to {server} --orders 1000");
    }
    println!();
    println!("Ctrl-C stops it.");
}
