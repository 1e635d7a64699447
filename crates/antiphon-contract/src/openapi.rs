//! The OpenAPI 3.1 document of a contract: every route of the chosen services.
//!
//! What OpenAPI cannot say is left out or said in words: HTTP methods that it does not know, and
//! `**`, which it has no parameter for.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::model::{Contract, HttpBinding, Method, MethodKind, Service};
use crate::schema::Schemas;
use crate::template::Segment;

mod answers;
mod operation;
mod path;

/// What a document says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Info<'a> {
    /// The name of the whole.
    pub title: &'a str,
    /// Its version.
    pub version: &'a str,
}

/// The OpenAPI document of the services with these full names; names that the contract does not know
/// are passed over. The same contract always gives the same document.
#[must_use]
pub fn document(contract: &Contract, services: &[&str], info: Info<'_>) -> Value {
    let services: Vec<&Service> =
        services.iter().filter_map(|name| contract.service(name)).collect();
    let mut paths = Paths { contract, schemas: Schemas::new(contract), items: BTreeMap::new() };
    for service in &services {
        for method in &service.methods {
            for (index, binding) in method.bindings.iter().enumerate() {
                paths.add(service, method, index, binding);
            }
        }
    }
    let Paths { schemas, items, .. } = paths;
    let mut named = schemas.named();
    named.insert("Problem".to_owned(), answers::problem_schema());
    let tags: Vec<Value> = services
        .iter()
        .map(|service| match service.source.docs.as_str() {
            "" => json!({"name": service.short_name()}),
            docs => json!({"name": service.short_name(), "description": docs}),
        })
        .collect();
    let items: Map<String, Value> =
        items.into_values().map(|item| (item.path, Value::Object(item.operations))).collect();
    json!({
        "openapi": "3.1.0",
        "info": {"title": info.title, "version": info.version},
        "tags": tags,
        "paths": items,
        "components": {"schemas": named, "responses": {"Problem": answers::problem()}},
    })
}

/// Two templates that match the same paths are one path item, whatever their variables are called.
type Shape<'a> = (&'a [Segment], Option<&'a str>);

struct Paths<'a> {
    contract: &'a Contract,
    schemas: Schemas<'a>,
    items: BTreeMap<Shape<'a>, Item>,
}

struct Item {
    path: String,
    /// The names of the parameters in the path, in their order.
    names: Vec<String>,
    operations: Map<String, Value>,
}

impl<'a> Paths<'a> {
    fn add(
        &mut self,
        service: &'a Service,
        method: &'a Method,
        index: usize,
        binding: &'a HttpBinding,
    ) {
        let Some(input) = self.contract.message(&method.input) else { return };
        let template = &binding.template;
        let parts = path::parts(self.contract, input, template);
        let item = self.items.entry((template.segments(), template.verb())).or_insert_with(|| {
            let names: Vec<String> = parts.iter().map(|part| part.name.clone()).collect();
            Item { path: path::text(template, &names), names, operations: Map::new() }
        });
        let operation = operation::Operation {
            contract: self.contract,
            service,
            method,
            binding,
            input,
            parts: &parts,
            names: &item.names,
        };
        for (place, verb) in verbs(method, binding).iter().enumerate() {
            if item.operations.contains_key(*verb) {
                continue;
            }
            let number = index + place;
            let id = match number {
                0 => format!("{}_{}", service.short_name(), method.name),
                _ => format!("{}_{}_{number}", service.short_name(), method.name),
            };
            let document = operation.document(&mut self.schemas, id);
            item.operations.insert((*verb).to_owned(), document);
        }
    }
}

/// The HTTP methods of a route as OpenAPI names them. Streams of requests go over WebSocket, which
/// begins with GET.
fn verbs(method: &Method, binding: &HttpBinding) -> &'static [&'static str] {
    if matches!(method.kind, MethodKind::ClientStream | MethodKind::Bidi) {
        return &["get"];
    }
    match binding.method.as_str() {
        "GET" => &["get"],
        "PUT" => &["put"],
        "POST" => &["post"],
        "DELETE" => &["delete"],
        "PATCH" => &["patch"],
        "HEAD" => &["head"],
        "OPTIONS" => &["options"],
        "TRACE" => &["trace"],
        "*" => &["get", "put", "post", "delete", "patch"],
        _ => &[],
    }
}
