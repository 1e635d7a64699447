//! Moments in messages.

use antiphon::Timestamp;
use buffa::MessageField;

/// A moment as a protobuf field.
pub(crate) fn field(time: Timestamp) -> MessageField<buffa_types::google::protobuf::Timestamp> {
    let micros = time.as_micros();
    MessageField::some(buffa_types::google::protobuf::Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or(0),
        ..Default::default()
    })
}
