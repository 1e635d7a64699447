//! The custom options of a descriptor, typed.
//!
//! Options reach us as fields that the descriptor types do not know. The descriptor pool knows them,
//! so they are decoded against it and read through their JSON form, which serde turns into the
//! structs below. Contracts are read at build time and at start, where this costs nothing.

use std::sync::Arc;
use std::time::Duration;

use buffa::{Message, MessageName};
use buffa_descriptor::{DescriptorPool, DynamicMessage};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// `(antiphon.v1.method)`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct MethodPolicy {
    #[serde(deserialize_with = "duration")]
    pub(crate) timeout: Option<SignedDuration>,
    pub(crate) success_status: Option<u32>,
    pub(crate) location: Option<String>,
    pub(crate) idempotent_by_key: bool,
    pub(crate) retry: bool,
    pub(crate) hedge: bool,
    pub(crate) objective: Option<Objective>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Objective {
    pub(crate) availability: Option<f64>,
    #[serde(deserialize_with = "duration")]
    pub(crate) latency: Option<SignedDuration>,
    pub(crate) quantile: Option<f64>,
}

/// `(antiphon.v1.message)`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct MessageBinding {
    pub(crate) event: Option<Event>,
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Event {
    pub(crate) topic: String,
    pub(crate) key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Command {
    pub(crate) destination: String,
    pub(crate) key: String,
}

/// `(antiphon.v1.field)`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct FieldPolicy {
    pub(crate) sensitive: bool,
}

/// `(antiphon.v1.errors)`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ErrorReasons {
    pub(crate) domain: String,
}

/// `(antiphon.v1.reason)`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ErrorReason {
    pub(crate) code: Option<Value>,
    pub(crate) http_status: Option<u32>,
}

/// `(google.api.http)`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HttpRule {
    pub(crate) get: Option<String>,
    pub(crate) put: Option<String>,
    pub(crate) post: Option<String>,
    pub(crate) delete: Option<String>,
    pub(crate) patch: Option<String>,
    pub(crate) custom: Option<CustomPattern>,
    pub(crate) body: String,
    pub(crate) response_body: String,
    pub(crate) additional_bindings: Vec<HttpRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CustomPattern {
    pub(crate) kind: String,
    pub(crate) path: String,
}

impl HttpRule {
    /// The HTTP method and the path, when the rule has any.
    pub(crate) fn pattern(&self) -> Option<(&str, &str)> {
        let patterns = [
            ("GET", &self.get),
            ("PUT", &self.put),
            ("POST", &self.post),
            ("DELETE", &self.delete),
            ("PATCH", &self.patch),
        ];
        patterns
            .into_iter()
            .find_map(|(method, path)| Some((method, path.as_deref()?)))
            .or_else(|| self.custom.as_ref().map(|custom| (&*custom.kind, &*custom.path)))
    }
}

/// `(buf.validate.oneof)`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct OneofRules {
    pub(crate) required: bool,
}

/// The options of one descriptor.
pub(crate) struct Options(Value);

impl Options {
    /// Reads all custom options of a descriptor. An error says what does not decode.
    pub(crate) fn read<O>(pool: &Arc<DescriptorPool>, options: Option<&O>) -> Result<Self, String>
    where
        O: Message + MessageName,
    {
        let Some(options) = options else {
            return Ok(Self(Value::Null));
        };
        // Custom options extend a message of `google/protobuf/descriptor.proto`: where nobody imports
        // that file, there are none.
        if pool.message_by_name(O::FULL_NAME).is_none() {
            return Ok(Self(Value::Null));
        }
        let Some(dynamic) = DynamicMessage::from_options(Arc::clone(pool), options) else {
            return Err(format!("{} do not decode", O::FULL_NAME));
        };
        let json = dynamic.to_json().map_err(|error| error.to_string())?;
        serde_json::from_str(&json).map(Self).map_err(|error| error.to_string())
    }

    /// One of them; `None` when it is not set.
    pub(crate) fn get<T: for<'de> Deserialize<'de>>(
        &self,
        name: &str,
    ) -> Result<Option<T>, String> {
        match self.raw(name) {
            None => Ok(None),
            Some(value) => T::deserialize(value)
                .map(Some)
                .map_err(|error| format!("the option ({name}) is not understood: {error}")),
        }
    }

    /// One of them as JSON.
    pub(crate) fn raw(&self, name: &str) -> Option<&Value> {
        self.0.get(format!("[{name}]"))
    }

    /// A standard option.
    pub(crate) fn standard(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }
}

/// A duration that may be negative: `google.protobuf.Duration`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum SignedDuration {
    Positive(Duration),
    NotPositive,
}

impl SignedDuration {
    /// The duration, when it is more than nothing.
    pub(crate) fn positive(self) -> Option<Duration> {
        match self {
            Self::Positive(duration) => Some(duration),
            Self::NotPositive => None,
        }
    }
}

/// From the JSON form of durations: `"1.5s"`.
fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SignedDuration>, D::Error> {
    let text = String::deserialize(from)?;
    parse_duration(&text)
        .map(Some)
        .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a duration")))
}

fn parse_duration(text: &str) -> Option<SignedDuration> {
    let text = text.strip_suffix('s')?;
    if text.starts_with('-') {
        return Some(SignedDuration::NotPositive);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos = format!("{fraction:0<9}").parse().ok()?;
    let duration = Duration::new(seconds.parse().ok()?, nanos);
    Some(if duration.is_zero() {
        SignedDuration::NotPositive
    } else {
        SignedDuration::Positive(duration)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_from_json() {
        for (text, expected) in [
            ("5s", Some(SignedDuration::Positive(Duration::from_secs(5)))),
            ("0.250s", Some(SignedDuration::Positive(Duration::from_millis(250)))),
            ("1.000000001s", Some(SignedDuration::Positive(Duration::new(1, 1)))),
            ("0s", Some(SignedDuration::NotPositive)),
            ("-1s", Some(SignedDuration::NotPositive)),
            ("5", None),
            ("xs", None),
        ] {
            assert_eq!(parse_duration(text), expected, "{text}");
        }
    }
}
