//! The routes of all services, found by path and HTTP method.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use antiphon_contract::template::Template;
use antiphon_contract::{Contract, Method as ContractMethod};
use http::Method as Verb;

use super::RestError;
use super::answer::AnswerPlan;
use super::request::RequestPlan;
use super::router::Router;
use super::schema::Schema;
use crate::server::{Calls, Method};
use crate::service::{MethodKind, Service};

/// One way to reach a method.
#[derive(Debug)]
pub(super) struct Route {
    /// What is called.
    pub(super) method: Arc<Method>,
    /// `None` is any.
    verb: Option<Verb>,
    pub(super) request: RequestPlan,
    pub(super) answer: AnswerPlan,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Routes {
    router: Router<Arc<Route>>,
    /// Streams at the methods' own paths, for WebSocket.
    streams: HashMap<&'static str, Arc<Route>>,
}

/// Why there is no route.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// Nothing is at the path.
    Nothing,
    /// Only these methods are answered there.
    Only(String),
    /// A stream is there that plain HTTP cannot carry.
    WebSocket,
}

impl Route {
    fn answers(&self, verb: &Verb) -> bool {
        match &self.verb {
            None => true,
            Some(own) if own == verb => true,
            Some(own) => *verb == Verb::HEAD && *own == Verb::GET && self.is_unary(),
        }
    }

    /// Whether one message goes in and one comes out.
    pub(super) fn is_unary(&self) -> bool {
        self.method.info.kind == MethodKind::Unary
    }

    /// Whether the client sends a stream, which plain HTTP cannot carry.
    fn is_client_stream(&self) -> bool {
        matches!(self.method.info.kind, MethodKind::ClientStream | MethodKind::Bidi)
    }
}

impl Routes {
    /// The routes that the contract declares for the services.
    pub(super) fn new(
        contract: &Contract,
        schema: &Schema,
        services: &[Arc<dyn Service>],
        calls: &Calls,
    ) -> Result<Self, RestError> {
        let mut routes = Self::default();
        let mut found = Vec::new();
        let mut taken: Vec<(String, Template)> = Vec::new();
        for service in services {
            let info = service.info();
            // A service that was written by hand, without a contract, has no routes.
            let Some(declared) = contract.service(info.name) else {
                continue;
            };
            for method_info in info.methods {
                let unknown = || RestError::NotInContract(method_info.path);
                let method = declared.method(method_info.name).ok_or_else(unknown)?;
                let served = calls.method(method_info.path).ok_or_else(unknown)?;
                for binding in &method.bindings {
                    claim(&mut taken, &binding.method, &binding.template)?;
                }
                routes.add(contract, schema, served, method, &mut found).ok_or_else(unknown)?;
            }
        }
        // At one path, a route for the very method goes before one for any.
        found.sort_by_key(|(_, route)| route.verb.is_none());
        for (template, route) in found {
            routes.router.insert(template, route);
        }
        Ok(routes)
    }

    fn add<'a>(
        &mut self,
        contract: &Contract,
        schema: &Schema,
        served: &Arc<Method>,
        method: &'a ContractMethod,
        found: &mut Vec<(&'a Template, Arc<Route>)>,
    ) -> Option<()> {
        for binding in &method.bindings {
            let verb = match binding.method.as_str() {
                "*" => None,
                verb => Some(Verb::from_bytes(verb.as_bytes()).ok()?),
            };
            let route = Route {
                method: Arc::clone(served),
                verb,
                request: RequestPlan::new(
                    contract,
                    schema,
                    &method.input,
                    binding,
                    served.info.kind,
                )?,
                answer: AnswerPlan::new(contract, schema, method, binding)?,
            };
            found.push((&binding.template, Arc::new(route)));
        }
        if served.info.kind != MethodKind::Unary {
            let route = Route {
                method: Arc::clone(served),
                verb: None,
                request: RequestPlan::plain(schema, &method.input),
                answer: AnswerPlan::plain(schema, method),
            };
            self.streams.insert(served.info.path, Arc::new(route));
        }
        Some(())
    }

    /// The route of a plain HTTP request.
    pub(super) fn find(&self, verb: &Verb, path: &str) -> Result<&Arc<Route>, Miss> {
        let wanted = |route: &Arc<Route>| route.answers(verb) && !route.is_client_stream();
        self.router.find(path, wanted).ok_or_else(|| self.miss(verb, path))
    }

    /// The stream that a WebSocket at this path carries. The HTTP method of a WebSocket is always GET
    /// and says nothing.
    pub(super) fn find_stream(&self, path: &str) -> Option<&Arc<Route>> {
        self.streams.get(path).or_else(|| self.router.find(path, |route| !route.is_unary()))
    }

    /// The methods that are answered at a path, as `Allow` names them.
    pub(super) fn allowed(&self, path: &str) -> Option<String> {
        let mut verbs = BTreeSet::new();
        self.router.find(path, |route| {
            if route.is_client_stream() {
                // Over WebSocket, which begins with GET.
                verbs.insert("GET".to_owned());
            } else if let Some(verb) = &route.verb {
                verbs.insert(verb.to_string());
                if *verb == Verb::GET && route.is_unary() {
                    verbs.insert("HEAD".to_owned());
                }
            } else {
                verbs.extend(["DELETE", "GET", "PATCH", "POST", "PUT"].map(str::to_owned));
            }
            false
        });
        if verbs.is_empty() {
            return None;
        }
        verbs.insert("OPTIONS".to_owned());
        Some(verbs.into_iter().collect::<Vec<_>>().join(", "))
    }

    fn miss(&self, verb: &Verb, path: &str) -> Miss {
        let socket = || self.router.find(path, |route| route.is_client_stream()).is_some();
        if *verb == Verb::GET && socket() {
            return Miss::WebSocket;
        }
        self.allowed(path).map_or(Miss::Nothing, Miss::Only)
    }
}

/// Two services must not answer the same requests: one of them would never be asked.
fn claim(
    taken: &mut Vec<(String, Template)>,
    verb: &str,
    template: &Template,
) -> Result<(), RestError> {
    let clash = taken.iter().find(|(other, known)| other == verb && known.same_paths(template));
    if let Some((_, known)) = clash {
        return Err(RestError::Collision {
            verb: verb.to_owned(),
            first: known.to_string(),
            second: template.to_string(),
        });
    }
    taken.push((verb.to_owned(), template.clone()));
    Ok(())
}
