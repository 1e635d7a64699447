//! What is in force, and who said so.

use serde::Serialize;
use serde_json::Value as Json;

use crate::tree::{Node, Value};

/// A setting in force.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Described {
    /// Its dotted path: `server.listen`.
    pub setting: String,
    /// Its value; secrets and the passwords in URLs are redacted.
    pub value: Json,
    /// Where the value comes from: `default`, or a place in a file, a variable, a flag.
    pub origin: String,
}

/// All settings of one section.
pub(crate) fn section(path: &str, value: &impl Serialize, node: &Node) -> Vec<Described> {
    let mut all = Vec::new();
    match serde_json::to_value(value) {
        Ok(value) => collect(path, value, Some(node), &mut all),
        Err(error) => all.push(Described {
            setting: path.to_owned(),
            value: Json::String(format!("cannot be shown: {error}")),
            origin: "default".to_owned(),
        }),
    }
    all
}

fn collect(path: &str, value: Json, node: Option<&Node>, all: &mut Vec<Described>) {
    let child = |key: &str| match node.map(|node| &node.value) {
        Some(Value::Table(entries)) => entries.get(key).map(|entry| &entry.node),
        _ => None,
    };
    match value {
        Json::Object(entries) if !entries.is_empty() => {
            for (key, value) in entries {
                let node = child(&key);
                collect(&format!("{path}.{key}"), value, node, all);
            }
        }
        value => all.push(Described {
            setting: path.to_owned(),
            value: redact(value),
            origin: match node {
                Some(node) if !is_absent(node) => node.origin.to_string(),
                _ => "default".to_owned(),
            },
        }),
    }
}

fn is_absent(node: &Node) -> bool {
    matches!(node.origin, crate::tree::Origin::Absent)
}

/// A URL for people, without user and password: nobody shall read them in a log.
#[must_use]
pub fn without_login(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    }
}

/// Hides the password of `scheme://user:password@host`.
fn redact(value: Json) -> Json {
    match value {
        Json::String(text) => Json::String(redact_url(&text).unwrap_or(text)),
        Json::Array(items) => Json::Array(items.into_iter().map(redact).collect()),
        other => other,
    }
}

fn redact_url(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (user, host) = rest[..authority_end].rsplit_once('@')?;
    let (name, _) = user.split_once(':')?;
    Some(format!("{scheme}://{name}:***@{host}{}", &rest[authority_end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_for_logs_have_no_login() {
        assert_eq!(without_login("redis://user:p@ss@here:1/2"), "redis://here:1/2");
        assert_eq!(without_login("redis://here:1/2"), "redis://here:1/2");
        assert_eq!(without_login("nonsense"), "nonsense");
    }

    #[test]
    fn passwords_in_urls_are_hidden_and_nothing_else_is() {
        for (text, shown) in [
            ("postgres://shop:hunter2@db:5432/shop?x=1", "postgres://shop:***@db:5432/shop?x=1"),
            ("postgres://shop:p@ss@db/shop", "postgres://shop:***@db/shop"),
            ("postgres://shop@db/shop", "postgres://shop@db/shop"),
            ("http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:4318/v1/traces"),
            ("a: b@c", "a: b@c"),
        ] {
            assert_eq!(redact(Json::String(text.into())), Json::String(shown.into()));
        }
    }
}
