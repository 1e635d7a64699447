//! From bytes to messages and back: what generated servers do before and after the handler.
//!
//! Every protocol comes through here, so that a bad request gets the same answer over each of them:
//! `INVALID_ARGUMENT` with the fields that are wrong.

mod explain;
mod json;
mod strict;

use antiphon_core::{FieldViolation, Status};
use buffa::{Message, MessageName};
use bytes::{BufMut, Bytes};
use futures_util::{Stream, StreamExt, stream};
use protovalidate_buffa::{Validate, ValidationError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::strict::Strict;
use crate::service::{Codec, Encoded, ServiceInfo, Streaming};

/// The contract's rules for a message.
type Rules<M> = fn(&M) -> Result<(), ValidationError>;

/// Reads the requests of one call.
#[derive(Debug)]
pub struct Reader<M> {
    service: &'static ServiceInfo,
    codec: Codec,
    validate: Option<Rules<M>>,
}

impl<M: Message + MessageName + DeserializeOwned + 'static> Reader<M> {
    /// Reads messages that have no rules.
    #[must_use]
    pub fn new(service: &'static ServiceInfo, codec: Codec) -> Self {
        Self { service, codec, validate: None }
    }

    /// Reads messages and holds them against the contract's rules.
    #[must_use]
    pub fn validated(service: &'static ServiceInfo, codec: Codec) -> Self
    where
        M: Validate,
    {
        Self { service, codec, validate: Some(M::validate) }
    }

    /// Reads one message.
    ///
    /// # Errors
    /// [`antiphon_core::Code::InvalidArgument`] with what is wrong: bytes that are no such message, a
    /// field that the contract does not know (JSON), a value of the wrong type or out of range, a
    /// broken rule.
    pub fn read(&self, bytes: &[u8]) -> Result<M, Status> {
        let message = decode(self.service, bytes, self.codec)?;
        if let Some(validate) = self.validate {
            validate(&message).map_err(broken_rules)?;
        }
        Ok(message)
    }

    /// Reads the only message of a stream.
    ///
    /// # Errors
    /// As [`read`](Self::read); and when the stream has no message, or a second one.
    pub async fn read_one(&self, mut messages: Streaming<Bytes>) -> Result<M, Status> {
        let Some(first) = messages.next().await else {
            return Err(Status::invalid_argument("the request is missing"));
        };
        let message = self.read(&first?)?;
        match messages.next().await {
            None => Ok(message),
            Some(Err(status)) => Err(status),
            Some(Ok(_)) => Err(Status::invalid_argument("there is more than one request")),
        }
    }

    /// Reads a stream; a message that cannot be read ends it.
    #[must_use]
    pub fn read_all(self, messages: Streaming<Bytes>) -> Streaming<M> {
        until_error(messages.map(move |bytes| self.read(&bytes?)))
    }
}

/// Decodes a message, without the contract's rules.
///
/// # Errors
/// As [`Reader::read`].
pub fn decode<M>(service: &'static ServiceInfo, bytes: &[u8], codec: Codec) -> Result<M, Status>
where
    M: Message + MessageName + DeserializeOwned,
{
    match codec {
        Codec::Proto => M::decode_from_slice(bytes).map_err(|error| {
            Status::invalid_argument(format!("the message is not a {}: {error}", M::FULL_NAME))
        }),
        Codec::Json => {
            let mut json = serde_json::Deserializer::from_slice(bytes);
            M::deserialize(Strict(&mut json))
                .and_then(|message| json.end().map(|()| message))
                .map_err(|error| refused::<M>(service, bytes, &error))
        }
    }
}

/// Why a JSON text is not the message: the syntax, or the fields that are wrong.
#[cold]
fn refused<M: MessageName>(
    service: &'static ServiceInfo,
    json: &[u8],
    error: &serde_json::Error,
) -> Status {
    if !error.is_data() {
        return Status::invalid_argument(format!("the message is not valid JSON: {error}"));
    }
    let violations = explain::explain(&explain::contract(service), M::FULL_NAME, json);
    match violations.as_slice() {
        [] => Status::invalid_argument(format!("the message is not a {}: {error}", M::FULL_NAME)),
        _ => Status::invalid_argument(format!("the message is not a {}", M::FULL_NAME))
            .with_violations(violations),
    }
}

/// Holds a message against the contract's rules.
///
/// # Errors
/// [`antiphon_core::Code::InvalidArgument`] with every broken rule.
pub fn validate<M: Validate>(message: &M) -> Result<(), Status> {
    message.validate().map_err(broken_rules)
}

/// Holds the messages of a stream against the contract's rules; one that breaks them ends it.
#[must_use]
pub fn validate_all<M: Validate + Send + 'static>(messages: Streaming<M>) -> Streaming<M> {
    until_error(messages.map(|message| {
        let message = message?;
        validate(&message)?;
        Ok(message)
    }))
}

/// A stream that ends after its first error.
fn until_error<M: Send + 'static>(
    messages: impl Stream<Item = Result<M, Status>> + Send + 'static,
) -> Streaming<M> {
    let mut failed = false;
    Streaming::new(messages.take_while(move |message| {
        let go_on = !failed;
        failed = message.is_err();
        std::future::ready(go_on)
    }))
}

fn broken_rules(error: ValidationError) -> Status {
    if error.violations.is_empty() {
        // The rule itself is at fault: a mistake in the contract, not in the request.
        return Status::internal(format!(
            "a validation rule cannot be evaluated: {}",
            error.compile_error.or(error.runtime_error).unwrap_or_default()
        ));
    }
    let violations = error.violations.into_iter().map(|violation| FieldViolation {
        field: violation.field.to_string(),
        rule: violation.rule_id.into_owned(),
        description: violation.message.into_owned(),
    });
    Status::invalid_argument("the request breaks rules of the contract").with_violations(violations)
}

/// Encodes a message.
///
/// # Errors
/// [`antiphon_core::Code::Internal`] when it is larger than 2 GiB or has no JSON form.
pub fn write<M: Message + Serialize>(message: &M, codec: Codec) -> Result<Encoded, Status> {
    match codec {
        Codec::Proto => encode(message),
        Codec::Json => Encoded::build(256, |buffer| {
            serde_json::to_writer(buffer.writer(), message).map_err(Status::internal)
        }),
    }
}

/// Encodes a message in protobuf's binary form.
///
/// # Errors
/// [`antiphon_core::Code::Internal`] when it is larger than 2 GiB.
pub(crate) fn encode<M: Message>(message: &M) -> Result<Encoded, Status> {
    let mut sizes = buffa::SizeCache::default();
    let length = message.compute_size(&mut sizes);
    Encoded::build(length as usize, |buffer| {
        message.write_to(&mut sizes, buffer);
        Ok(())
    })
}

/// A stream of one answer.
///
/// # Errors
/// As [`write()`].
pub fn write_one<M: Message + Serialize>(
    message: &M,
    codec: Codec,
) -> Result<Streaming<Encoded>, Status> {
    let encoded = write(message, codec)?;
    Ok(Streaming::new(stream::iter([Ok(encoded)])))
}

/// A stream of answers.
///
/// # Errors
/// None; the type is that of [`write_one`].
pub fn write_all<M: Message + Serialize + 'static>(
    messages: Streaming<M>,
    codec: Codec,
) -> Result<Streaming<Encoded>, Status> {
    Ok(Streaming::new(messages.map(move |message| write(&message?, codec))))
}

/// What a service answers to a number that is none of its methods, or one of another kind.
#[must_use]
pub fn no_method(service: &'static ServiceInfo, method: usize) -> Status {
    match service.methods.get(method) {
        Some(method) => {
            Status::unimplemented(format!("{} is called as another kind of method", method.path))
        }
        None => Status::unimplemented(format!("{} has no method {method}", service.name)),
    }
}
