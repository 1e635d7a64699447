//! axum with serde: what a JSON handler costs there.

use std::net::SocketAddr;

use antiphon_core::BoxError;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

/// The message of the contract; a 64-bit number is text in protobuf's JSON.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct EchoMessage {
    id: String,
    name: String,
    text: String,
}

pub(super) async fn serve(address: SocketAddr) -> Result<(), BoxError> {
    let echo = |Json(message): Json<EchoMessage>| async { Json(message) };
    let router = Router::new().route("/v1/echo", post(echo));
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, router).await?;
    Ok(())
}
