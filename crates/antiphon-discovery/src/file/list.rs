//! The lists of a file, as TOML or JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use crate::{Authority, Instance, RegistryError, State};

/// The instances of one list. Mistakes anywhere in the file are mistakes: half of a file is no file.
pub(super) fn parse(
    path: &Path,
    content: &str,
    list: &str,
) -> Result<Vec<Instance>, RegistryError> {
    type Lists = BTreeMap<String, Vec<Listing>>;
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let lists: Result<Lists, String> = if is_json {
        serde_json::from_str(content).map_err(|error| error.to_string())
    } else {
        toml::from_str(content).map_err(|error| error.to_string().trim_end().to_owned())
    };
    let shown = path.display();
    let mut lists = lists.map_err(|why| {
        RegistryError::invalid(format!("{shown} is refused until it is corrected: {why}"))
    })?;
    let Some(found) = lists.remove(list) else {
        let known = lists.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(RegistryError::invalid(format!(
            "{shown} has no list `{list}`; it has: {}",
            if known.is_empty() { "none" } else { &known }
        )));
    };
    Ok(found.into_iter().map(|listing| listing.0).collect())
}

/// An instance as people write it: an address, or a table.
struct Listing(Instance);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(deserialize_with = "address")]
    address: Authority,
    weight: Option<std::num::NonZeroU32>,
    #[serde(default)]
    priority: u16,
    zone: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    state: State,
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Authority, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|why| de::Error::custom(format!("`{text}` is not HOST:PORT: {why}")))
}

impl<'de> Deserialize<'de> for Listing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Listing;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"HOST:PORT\" or a table with `address`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Listing, E> {
                let address = text.parse().map_err(|why| {
                    de::Error::custom(format!("`{text}` is not HOST:PORT: {why}"))
                })?;
                Ok(Listing(Instance::new(address)))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Listing, A::Error> {
                let table = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Listing(Instance {
                    address: table.address,
                    weight: table.weight.map_or(1, std::num::NonZeroU32::get),
                    priority: table.priority,
                    zone: table.zone,
                    metadata: table.metadata,
                    state: table.state,
                }))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, content: &str) -> Result<Vec<Instance>, String> {
        parse(Path::new(name), content, "orders").map_err(|error| error.to_string())
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = "orders = ['a:1', { address = 'b:2', weight = 3, zone = 'z', state = 'draining' }]\n\
                    points = []\n";
        let json = r#"{"orders": ["a:1", {"address": "b:2", "weight": 3, "zone": "z",
                       "state": "draining"}], "points": []}"#;
        let instances = read("x.toml", toml).unwrap();
        assert_eq!(read("x.json", json).unwrap(), instances);
        assert_eq!(instances[0], Instance::new("a:1".parse().unwrap()));
        assert_eq!((instances[1].weight, instances[1].state), (3, State::Draining));
        assert_eq!(instances[1].zone.as_deref(), Some("z"));
        let tables = "[[orders]]\naddress = 'a:1'\nmetadata = { version = '2' }\n";
        assert_eq!(read("x.toml", tables).unwrap()[0].metadata["version"], "2");
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (name, content, reason) in [
            ("x.toml", "orders = ['a:1'", "line 1"),
            ("x.toml", "points = []", "it has: points"),
            ("x.toml", "", "it has: none"),
            ("x.toml", "orders = ['a']", "a port is missing"),
            ("x.toml", "orders = [{ address = 'a:1', wieght = 2 }]", "wieght"),
            ("x.toml", "orders = [{ address = 'a:1', weight = 0 }]", "nonzero"),
            ("x.toml", "orders = [{ weight = 1 }]", "address"),
            ("x.toml", "orders = [7]", "HOST:PORT"),
            ("x.json", r#"{"orders": ["a:1",]}"#, "line 1"),
            ("x.json", r#"{"orders": [], "points": ["a"]}"#, "a port is missing"),
        ] {
            let error = read(name, content).unwrap_err();
            assert!(error.contains(reason) && error.contains(name), "{error}");
        }
    }
}
