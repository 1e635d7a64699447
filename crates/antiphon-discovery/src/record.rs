//! How an instance is written where a registry keeps any bytes: a JSON object.
//!
//! Readers take fields that they do not know for those of a later version, and leave them alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Instance, State};

/// An instance in the form in which it is written.
///
/// ```
/// # use antiphon_discovery::{Instance, Record};
/// let record = Record::from(&Instance::new("10.0.0.1:8080".parse().unwrap()));
/// assert_eq!(record.to_json(), r#"{"address":"10.0.0.1:8080"}"#);
/// ```
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Record {
    address: String,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    weight: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "is_serving")]
    state: State,
}

/// The bytes are not an instance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRecord(String);

impl Record {
    /// The record as JSON, without what has its default.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings, numbers and maps of strings cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads what [`Self::to_json`] wrote.
    ///
    /// # Errors
    /// It is no JSON, lacks the address, or a value makes no sense.
    pub fn read(bytes: &[u8]) -> Result<Instance, InvalidRecord> {
        let record: Self =
            serde_json::from_slice(bytes).map_err(|error| InvalidRecord(error.to_string()))?;
        record.try_into()
    }
}

impl From<&Instance> for Record {
    fn from(instance: &Instance) -> Self {
        let Instance { address, weight, priority, zone, metadata, state } = instance.clone();
        Self { address: address.to_string(), weight, priority, zone, metadata, state }
    }
}

impl TryFrom<Record> for Instance {
    type Error = InvalidRecord;

    fn try_from(record: Record) -> Result<Self, InvalidRecord> {
        let Record { address, weight, priority, zone, metadata, state } = record;
        let address = address
            .parse()
            .map_err(|why| InvalidRecord(format!("`{address}` is not HOST:PORT: {why}")))?;
        if weight == 0 {
            return Err(InvalidRecord("a weight is at least 1".to_owned()));
        }
        Ok(Self { address, weight, priority, zone, metadata, state })
    }
}

const fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_one(weight: &u32) -> bool {
    *weight == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_zero(priority: &u16) -> bool {
    *priority == 0
}

fn is_serving(state: &State) -> bool {
    *state == State::Serving
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_round_trips() {
        let mut instance = Instance::new("[::1]:80".parse().unwrap());
        assert_eq!(
            Record::read(Record::from(&instance).to_json().as_bytes()),
            Ok(instance.clone())
        );
        instance.weight = 7;
        instance.priority = 2;
        instance.zone = Some("a \"zone\" ü".to_owned());
        instance.metadata.insert("version\n".to_owned(), "1.2\0".to_owned());
        instance.state = State::Draining;
        assert_eq!(Record::read(Record::from(&instance).to_json().as_bytes()), Ok(instance));
    }

    #[test]
    fn what_a_later_version_adds_is_left_alone_and_nonsense_is_refused() {
        let later = br#"{"address":"a:1","colour":"blue"}"#;
        assert_eq!(Record::read(later), Ok(Instance::new("a:1".parse().unwrap())));
        for (bytes, reason) in [
            (&b"\xff"[..], "expected value"),
            (b"7", "Record"),
            (b"{}", "address"),
            (br#"{"address":"a"}"#, "port is missing"),
            (br#"{"address":"a:1","weight":0}"#, "at least 1"),
            (br#"{"address":"a:1","state":"asleep"}"#, "asleep"),
        ] {
            let error = Record::read(bytes).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
