//! Moments in messages.

use antiphon::Timestamp;
use buffa_types::google::protobuf::Timestamp as Moment;

/// A moment as a protobuf field.
pub(crate) fn field<F: From<Moment>>(time: Timestamp) -> F {
    let micros = time.as_micros();
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or(0);
    Moment { seconds: micros.div_euclid(1_000_000), nanos, ..Default::default() }.into()
}
