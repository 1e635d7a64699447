//! Says what is wrong with JSON that could not be read: every field, by its path in the contract.
//!
//! Reading stops at the first mistake and knows no paths, so that it is fast. When it has failed, the
//! text is read once more into a tree and held against the contract here.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use antiphon_contract::{Cardinality, Contract, Enum, Field, Kind, Message, Scalar, nearest};
use antiphon_core::FieldViolation;
use buffa_types::google::protobuf::{Any, Duration, FieldMask, Timestamp};
use serde::de::DeserializeOwned;

use super::json::Json;
use crate::service::ServiceInfo;

/// The contract of a service, read once per process.
///
/// Empty when the descriptor set cannot be read, which generated code excludes.
pub(crate) fn contract(service: &'static ServiceInfo) -> Arc<Contract> {
    type Known = RwLock<HashMap<usize, Arc<Contract>>>;
    static KNOWN: OnceLock<Known> = OnceLock::new();
    let known = KNOWN.get_or_init(Known::default);
    // Services of one contract share its descriptor set, which lives as long as the program.
    let key = service.descriptor_set.as_ptr() as usize;
    if let Some(contract) = known.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return Arc::clone(contract);
    }
    let contract = Contract::from_descriptor_set(service.descriptor_set).unwrap_or_default();
    let contract = Arc::new(contract);
    let mut known = known.write().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(known.entry(key).or_insert(contract))
}

/// Everything in a JSON text that is not as the contract says. Empty when it is not JSON at all, or
/// when nothing is found.
pub(super) fn explain(contract: &Contract, message: &str, json: &[u8]) -> Vec<FieldViolation> {
    let Ok(json) = serde_json::from_slice::<Json>(json) else {
        return Vec::new();
    };
    let Some(message) = contract.message(message) else {
        return Vec::new();
    };
    let mut explained = Explained { contract, violations: Vec::new() };
    explained.message(message, &json, "");
    explained.violations
}

struct Explained<'a> {
    contract: &'a Contract,
    violations: Vec<FieldViolation>,
}

impl Explained<'_> {
    fn wrong(&mut self, field: &str, rule: &str, description: impl Into<String>) {
        self.violations.push(FieldViolation {
            field: field.to_owned(),
            rule: rule.to_owned(),
            description: description.into(),
        });
    }

    fn message(&mut self, message: &Message, json: &Json, path: &str) {
        if message.is_well_known() {
            return self.well_known(message, json, path);
        }
        let Json::Object(members) = json else {
            return self.wrong(path, "type", format!("must be an object, not {}", json.kind()));
        };
        let mut seen: Vec<&str> = Vec::new();
        let mut chosen: Vec<usize> = Vec::new();
        for (name, value) in members {
            let Some(field) = message.field_by_json_name(name) else {
                let names = message.fields.iter().map(|field| field.json_name.as_str());
                let hint = nearest(name, names)
                    .map_or_else(String::new, |name| format!("; did you mean \"{name}\"?"));
                let description = format!("{} has no such field{hint}", message.name);
                self.wrong(&join(path, name), "unknown_field", description);
                continue;
            };
            let path = join(path, &field.name);
            if seen.contains(&field.name.as_str()) {
                self.wrong(&path, "duplicate", "is given more than once");
                continue;
            }
            seen.push(&field.name);
            if let Some(oneof) = field.oneof
                && !matches!(value, Json::Null)
            {
                if chosen.contains(&oneof) {
                    let group = &message.oneofs[oneof].name;
                    self.wrong(
                        &path,
                        "oneof",
                        format!("another field of {group} is given as well"),
                    );
                }
                chosen.push(oneof);
            }
            self.field(field, value, &path);
        }
    }

    fn field(&mut self, field: &Field, json: &Json, path: &str) {
        match (field.cardinality, json) {
            (_, Json::Null) => {}
            (Cardinality::Singular, _) => self.value(&field.kind, json, path),
            (Cardinality::Repeated, Json::List(elements)) => {
                for (index, element) in elements.iter().enumerate() {
                    self.value(&field.kind, element, &format!("{path}[{index}]"));
                }
            }
            (Cardinality::Repeated, _) => {
                self.wrong(path, "type", format!("must be a list, not {}", json.kind()));
            }
            (Cardinality::Map(key), Json::Object(members)) => {
                for (name, value) in members {
                    let path = format!("{path}[{name:?}]");
                    self.map_key(key, name, &path);
                    self.value(&field.kind, value, &path);
                }
            }
            (Cardinality::Map(_), _) => {
                self.wrong(path, "type", format!("must be an object, not {}", json.kind()));
            }
        }
    }

    fn value(&mut self, kind: &Kind, json: &Json, path: &str) {
        match kind {
            Kind::Scalar(scalar) => self.scalar(*scalar, json, path),
            Kind::Enum(name) => {
                let contract = self.contract;
                if name == "google.protobuf.NullValue" {
                    return;
                }
                if let Some(enumeration) = contract.enumeration(name) {
                    self.enumeration(enumeration, json, path);
                }
            }
            Kind::Message(name) => {
                let contract = self.contract;
                if let Some(message) = contract.message(name) {
                    self.message(message, json, path);
                }
            }
        }
    }

    fn map_key(&mut self, key: Scalar, name: &str, path: &str) {
        let text = Json::Text(name.to_owned());
        match key {
            Scalar::String => {}
            Scalar::Bool if matches!(name, "true" | "false") => {}
            Scalar::Bool => self.wrong(path, "type", "the key must be true or false"),
            _ => self.scalar(key, &text, path),
        }
    }

    fn scalar(&mut self, scalar: Scalar, json: &Json, path: &str) {
        let wrong = match scalar {
            Scalar::Bool => (!matches!(json, Json::Truth(_))).then_some(("type", "true or false")),
            Scalar::String => (!matches!(json, Json::Text(_))).then_some(("type", "a text")),
            Scalar::Bytes => (!is_base64(json)).then_some(("type", "bytes as base64")),
            Scalar::Int32 => integer(json, i32::MIN.into(), i32::MAX.into(), "an int32"),
            Scalar::Int64 => integer(json, i64::MIN.into(), i64::MAX.into(), "an int64"),
            Scalar::Uint32 => integer(json, 0, u32::MAX.into(), "a uint32"),
            Scalar::Uint64 => integer(json, 0, u64::MAX.into(), "a uint64"),
            Scalar::Float => fraction(json, f32::MAX.into(), "a float"),
            Scalar::Double => fraction(json, f64::MAX, "a double"),
        };
        match wrong {
            None => {}
            Some(("range", what)) => {
                self.wrong(path, "range", format!("is out of range for {what}"))
            }
            Some((rule, what)) => {
                self.wrong(path, rule, format!("must be {what}, not {}", json.kind()));
            }
        }
    }

    fn enumeration(&mut self, enumeration: &Enum, json: &Json, path: &str) {
        match json {
            Json::Text(name) if enumeration.value(name).is_some() => {}
            Json::Text(name) => {
                let names = enumeration.values.iter().map(|value| value.name.as_str());
                let hint = nearest(name, names)
                    .map_or_else(String::new, |name| format!("; did you mean \"{name}\"?"));
                let description = format!("{name:?} is no value of {}{hint}", enumeration.name);
                self.wrong(path, "enum", description);
            }
            _ => self.scalar(Scalar::Int32, json, path),
        }
    }

    fn well_known(&mut self, message: &Message, json: &Json, path: &str) {
        let name = message.name.rsplit('.').next().unwrap_or_default();
        match name {
            "Timestamp" => self.read::<Timestamp>(json, path),
            "Duration" => self.read::<Duration>(json, path),
            "FieldMask" => self.read::<FieldMask>(json, path),
            "Any" => self.read::<Any>(json, path),
            "Struct" if !matches!(json, Json::Object(_)) => {
                self.wrong(path, "type", format!("must be an object, not {}", json.kind()));
            }
            "ListValue" if !matches!(json, Json::List(_)) => {
                self.wrong(path, "type", format!("must be a list, not {}", json.kind()));
            }
            "Struct" | "ListValue" | "Value" => {}
            // A wrapper is written as what it wraps.
            _ => {
                if let Some(field) = message.field("value") {
                    self.field(field, json, path);
                }
            }
        }
    }

    /// Types whose JSON form is a text: reading it is the test.
    fn read<T: DeserializeOwned>(&mut self, json: &Json, path: &str) {
        if let Err(error) = T::deserialize(json.clone()) {
            self.wrong(path, "type", error.to_string());
        }
    }
}

/// The path of a field inside another one.
fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

type Wrong = Option<(&'static str, &'static str)>;

/// Integers may be written as numbers or as texts, with a fraction of zero and an exponent.
fn integer(json: &Json, min: i128, max: i128, what: &'static str) -> Wrong {
    let number = match json {
        Json::Number(number) => number.to_string(),
        Json::Text(text) if text.trim() == text => text.clone(),
        _ => return Some(("type", what)),
    };
    let value = match number.parse::<i128>() {
        Ok(value) => Some(value),
        Err(_) => match number.parse::<f64>() {
            Ok(value) if value.is_finite() && value.fract() == 0.0 => whole(value),
            _ => return Some(("type", what)),
        },
    };
    match value {
        Some(value) if (min..=max).contains(&value) => None,
        _ => Some(("range", what)),
    }
}

/// The integer that a number without a fraction is, where it fits.
fn whole(value: f64) -> Option<i128> {
    format!("{value:.0}").parse().ok()
}

fn fraction(json: &Json, max: f64, what: &'static str) -> Wrong {
    let number = match json {
        Json::Number(number) => number.as_f64(),
        Json::Text(text) if matches!(&**text, "NaN" | "Infinity" | "-Infinity") => return None,
        Json::Text(text) => text.parse().ok(),
        _ => None,
    };
    match number {
        Some(number) if number.abs() <= max => None,
        Some(_) => Some(("range", what)),
        None => Some(("type", what)),
    }
}

/// Standard or URL-safe, with or without padding.
fn is_base64(json: &Json) -> bool {
    use base64::Engine;
    use base64::alphabet::{STANDARD, URL_SAFE};
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    let lenient = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let Json::Text(text) = json else { return false };
    [STANDARD, URL_SAFE]
        .iter()
        .any(|alphabet| GeneralPurpose::new(alphabet, lenient).decode(text).is_ok())
}
