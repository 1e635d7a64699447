//! Where one saga stands, and how that is written down.

use std::collections::BTreeMap;

use antiphon_core::Timestamp;
use serde::{Deserialize, Serialize};

use crate::State;

/// How far one step is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Not begun.
    #[default]
    Waiting,
    /// Asked for; no answer yet. A local step: to be run, or to be run again.
    Running,
    /// May or may not have happened, and must not be asked for again.
    Unknown,
    /// Done.
    Done,
    /// Refused: it certainly did not happen.
    Refused,
    /// Asked to be undone; no answer yet.
    Undoing,
    /// Undone.
    Undone,
}

/// One step of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How far it is.
    #[serde(rename = "p")]
    pub phase: Phase,
    /// How often it was asked for in this phase.
    #[serde(rename = "n", default, skip_serializing_if = "is_zero")]
    pub tries: u32,
    /// When to ask again.
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none", with = "moment")]
    pub due: Option<Timestamp>,
    /// When it was first asked for.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none", with = "moment")]
    pub begun: Option<Timestamp>,
}

/// Why a saga turned back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step that failed; `None` when it was the saga as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// A stable word: what the participant gave, or `TIMEOUT`, `DEADLINE`, `CANCELLED`.
    pub reason: String,
    /// What happened, for people.
    pub message: String,
}

/// Where one saga stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Forward, backward or ended.
    #[serde(skip, default = "running")]
    pub state: State,
    /// The steps, as in the definition.
    pub steps: Vec<Progress>,
    /// When it turns back unless the pivot has been reached.
    #[serde(with = "required_moment")]
    pub deadline: Timestamp,
    /// Why it turned back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Why an operator must look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<String>,
    /// The closing handler: what is left when all steps are settled.
    #[serde(default, skip_serializing_if = "is_untouched")]
    pub ending: Progress,
    /// The context of the call that started it, by the names of a message's attributes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub context: BTreeMap<String, String>,
}

impl Instance {
    /// A saga of `steps` steps before its first decision.
    #[must_use]
    pub fn new(steps: usize, deadline: Timestamp) -> Self {
        Self {
            state: State::Running,
            steps: vec![Progress::default(); steps],
            deadline,
            failure: None,
            parked: None,
            ending: Progress::default(),
            context: BTreeMap::new(),
        }
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// It was written by something else.
    pub fn decode(state: State, text: &str) -> Result<Self, serde_json::Error> {
        let instance: Self = serde_json::from_str(text)?;
        Ok(Self { state, ..instance })
    }

    /// Writes everything but the state, which has a column of its own.
    #[must_use]
    pub fn encode(&self) -> String {
        // Texts, numbers and maps with text keys always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn running() -> State {
    State::Running
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_untouched(progress: &Progress) -> bool {
    *progress == Progress::default()
}

/// Moments as microseconds since the Unix epoch.
mod required_moment {
    use antiphon_core::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(super) fn serialize<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i64(at.as_micros())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        i64::deserialize(from).map(Timestamp::from_micros)
    }
}

/// The same, where there may be none.
mod moment {
    use antiphon_core::Timestamp;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde passes references")]
    pub(super) fn serialize<S: Serializer>(
        at: &Option<Timestamp>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        at.map(Timestamp::as_micros).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<i64>::deserialize(from)?.map(Timestamp::from_micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_survives_being_written_down() {
        let mut instance = Instance::new(3, Timestamp::from_micros(77));
        instance.steps[1] = Progress {
            phase: Phase::Running,
            tries: 2,
            due: Some(Timestamp::from_micros(5)),
            begun: Some(Timestamp::EPOCH),
        };
        instance.failure = Some(Failure {
            step: Some("charge".into()),
            reason: "DECLINED".into(),
            message: "no".into(),
        });
        instance.parked = Some("look".into());
        instance.context.insert("traceparent".into(), "00-1".into());
        let text = instance.encode();
        assert_eq!(Instance::decode(State::Running, &text).unwrap(), instance);
    }

    #[test]
    fn an_instance_that_has_just_begun_is_small() {
        let text = Instance::new(3, Timestamp::EPOCH).encode();
        assert!(text.len() < 80, "{text}");
    }

    #[test]
    fn rubbish_is_refused() {
        assert!(Instance::decode(State::Running, "{}").is_err());
    }
}
