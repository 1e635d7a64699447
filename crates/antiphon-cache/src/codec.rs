//! How values become bytes for the shared level.

use antiphon_core::BoxError;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Turns values into bytes and back.
///
/// Processes of different versions share a level. A value that cannot be decoded counts as not there
/// and is loaded; a value that decodes into something wrong does not, so a change that the format does
/// not carry over takes another name of the cache.
pub trait Codec<V>: Send + Sync + 'static {
    /// The bytes of a value.
    ///
    /// # Errors
    /// It has none; then only this process keeps it.
    fn encode(&self, value: &V) -> Result<Bytes, BoxError>;

    /// The value of bytes.
    ///
    /// # Errors
    /// They mean nothing to this version.
    fn decode(&self, bytes: &Bytes) -> Result<V, BoxError>;
}

/// Messages of a contract in protobuf's binary form.
#[derive(Clone, Copy, Debug, Default)]
pub struct Protobuf;

impl<V: buffa::Message + 'static> Codec<V> for Protobuf {
    fn encode(&self, value: &V) -> Result<Bytes, BoxError> {
        let mut bytes = Vec::new();
        value.try_encode(&mut bytes)?;
        Ok(bytes.into())
    }

    fn decode(&self, bytes: &Bytes) -> Result<V, BoxError> {
        Ok(V::decode_from_slice(bytes)?)
    }
}

/// Any type that serde knows, as JSON.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl<V: Serialize + DeserializeOwned + 'static> Codec<V> for Json {
    fn encode(&self, value: &V) -> Result<Bytes, BoxError> {
        Ok(serde_json::to_vec(value)?.into())
    }

    fn decode(&self, bytes: &Bytes) -> Result<V, BoxError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use buffa_types::google::protobuf::Duration;

    use super::*;

    #[test]
    fn values_come_back() {
        let message = Duration { seconds: 3, nanos: 5, ..Duration::default() };
        let bytes = Protobuf.encode(&message).expect("it has bytes");
        let back: Duration = Protobuf.decode(&bytes).expect("they are a message");
        assert_eq!(back, message);
        let bytes = Json.encode(&vec![1_u32, 2]).expect("it has bytes");
        assert_eq!(Codec::<Vec<u32>>::decode(&Json, &bytes).expect("a list"), [1, 2]);
    }

    #[test]
    fn bytes_of_something_else_are_refused() {
        let bytes = Bytes::from_static(b"\xff\xff\xff");
        assert!(Codec::<Duration>::decode(&Protobuf, &bytes).is_err());
        assert!(Codec::<Vec<u32>>::decode(&Json, &bytes).is_err());
    }
}
