//! `shop contract`: the contract for tools that do not read `.proto` files.

use std::path::PathBuf;

use clap::Args;

use crate::contract::shop::orders::v1::ORDERS_SERVICE;

/// Writes the descriptor set of the contract, with everything it imports.
#[derive(Args, Debug)]
pub(crate) struct Describe {
    /// The file.
    #[arg(long, value_name = "FILE", default_value = "shop.binpb")]
    out: PathBuf,
}

/// Writes the file.
///
/// # Errors
/// The file cannot be written.
pub(crate) async fn run(options: Describe) -> antiphon::Result<()> {
    // Each service carries the whole contract.
    let written = tokio::fs::write(&options.out, ORDERS_SERVICE.descriptor_set).await;
    written.map_err(|error| format!("cannot write {}: {error}", options.out.display()).into())
}
