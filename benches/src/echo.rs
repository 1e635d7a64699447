//! The servers: the same echo on ours and on the bare parts.

mod antiphon;
mod axum;
mod burn;
mod connectrpc;
mod hyper;

pub(crate) use connectrpc::contract as connectrpc_contract;

use std::net::SocketAddr;

use antiphon_core::BoxError;
use clap::ValueEnum;

/// On what the echo runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Ours, with all default layers on.
    Antiphon,
    /// connectrpc's own server on one current-thread runtime, without any layer.
    Connectrpc,
    /// hyper alone: reads the body and answers it with gRPC's trailers; no protobuf.
    Hyper,
    /// axum with serde.
    Axum,
    /// Ours with all default layers on, and a handler that computes for a millisecond.
    Burn,
    /// The same without any limit.
    BurnUnlimited,
}

/// Serves until the process is killed.
pub(crate) fn serve(kind: Kind, address: SocketAddr) -> Result<(), BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match kind {
            Kind::Antiphon => antiphon::serve(address).await,
            Kind::Connectrpc => connectrpc::serve(address).await,
            Kind::Hyper => hyper::serve(address).await,
            Kind::Axum => axum::serve(address).await,
            Kind::Burn => burn::serve(address, burn::Limits::Default).await,
            Kind::BurnUnlimited => burn::serve(address, burn::Limits::Off).await,
        }
    })
}
