//! The contract over REST: `google.api.http` routes, problem details, streams as NDJSON, Server-Sent
//! Events and WebSocket, and the pages that document it all.
//!
//! | what | where |
//! |---|---|
//! | one request | `serve` |
//! | which route | `router`, `routes` |
//! | path, query and body → one JSON text | `decode`, `value`, `tree`, `request` |
//! | JSON of the answer → HTTP | `scan`, `fill`, `answer` |
//! | errors | `problem` |
//! | streams | `stream`, `websocket` |
//! | `/openapi.json`, `/asyncapi.json`, `/docs` | `docs` |
//!
//! Nothing here knows a handler or a message type: a request becomes the JSON text that
//! [`Service`] takes, and a call passes the same layers as over any other protocol
//! ([`Calls::enter`]).

mod answer;
mod contract;
mod decode;
mod docs;
mod fill;
mod negotiate;
mod problem;
mod request;
mod router;
mod routes;
mod scan;
mod schema;
mod serve;
mod settings;
mod stream;
mod tree;
mod value;
mod websocket;

#[cfg(test)]
mod tests;

use std::future::ready;
use std::net::IpAddr;
use std::sync::Arc;

use antiphon_contract::ContractErrors;
use antiphon_core::BoxFuture;
use http::{Method as Verb, Request, Response};

use self::docs::Docs;
use self::routes::Routes;
use self::schema::Schema;
use self::websocket::Sockets;
use crate::server::{Body, Calls, RequestBody};
use crate::service::Service;

pub use self::settings::RestSettings;

/// Answers REST requests. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Rest(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    calls: Calls,
    settings: RestSettings,
    schema: Arc<Schema>,
    routes: Routes,
    docs: Docs,
    sockets: Sockets,
}

/// Why services cannot be answered over REST.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// The descriptors that a service was generated with are no good contract.
    #[error("the contract of the services cannot be read: {0}")]
    Contract(#[from] ContractErrors),
    /// Two services were generated from different versions of a file.
    #[error("the services were generated from different versions of {0}; build them from one")]
    Versions(String),
    /// A method is in the generated code and not in its descriptors.
    #[error("{0} is not in the contract that its service was generated with")]
    NotInContract(&'static str),
    /// Two routes answer the same requests.
    #[error("{verb} {first} and {verb} {second} answer the same requests; change one of them")]
    Collision {
        /// The HTTP method.
        verb: String,
        /// The path that came first.
        first: String,
        /// The other one.
        second: String,
    },
}

impl Rest {
    /// Prepares the routes of `services`, which are served by `calls`.
    ///
    /// # Errors
    /// When the descriptors of the services do not fit together or two routes collide.
    pub fn new(services: &[Arc<dyn Service>], calls: &Calls) -> Result<Self, RestError> {
        let contract = contract::read(services)?;
        let schema = Schema::new(&contract);
        let routes = Routes::new(&contract, &schema, services, calls)?;
        let settings = calls.settings().rest.clone();
        Ok(Self(Arc::new(Shared {
            calls: calls.clone(),
            schema: Arc::new(schema),
            routes,
            docs: Docs::new(contract, services, &settings),
            settings,
            sockets: Sockets::default(),
        })))
    }

    /// Whether a request begins a WebSocket. The server asks before it takes a request for an RPC:
    /// streams are reachable over WebSocket at the methods' own paths, too.
    #[must_use]
    pub fn is_websocket<B>(request: &Request<B>) -> bool {
        websocket::is_asked_for(request)
    }

    /// Waits until every WebSocket is closed. To be called after the calls have come to their end.
    pub async fn closed(&self) {
        self.0.sockets.closed().await;
    }

    /// Lets a request from `peer` in at once, and gives what answers it.
    ///
    /// # Cancel safety
    /// When the future is dropped, so is the handler, and the call is recorded as CANCELLED.
    pub fn handle(
        &self,
        request: Request<RequestBody>,
        peer: IpAddr,
    ) -> BoxFuture<'static, Response<Body>> {
        if websocket::is_asked_for(&request) {
            return Box::pin(ready(websocket::answer(&self.0, request, peer)));
        }
        let is_head = request.method() == Verb::HEAD;
        let answering = self.0.answer(request, peer);
        if is_head {
            return Box::pin(async { serve::without_body(answering.await) });
        }
        answering
    }
}
