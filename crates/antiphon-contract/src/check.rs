//! What a contract must keep beyond what protobuf asks: every name leads somewhere, every template
//! fits its message, no two routes collide.

use crate::error::{ContractError, did_you_mean};
use crate::model::{Cardinality, Contract, Field, Kind, Location, Message, Scalar};

mod bindings;
mod messages;
mod routes;

/// Every mistake in a contract whose parts could all be read.
pub(crate) fn check(contract: &Contract) -> Vec<ContractError> {
    let mut errors = Errors(Vec::new());
    messages::check(contract, &mut errors);
    bindings::check(contract, &mut errors);
    routes::check(contract, &mut errors);
    errors.0
}

struct Errors(Vec<ContractError>);

impl Errors {
    fn add(&mut self, location: &Location, message: String) {
        self.0.push(ContractError { location: location.clone(), message });
    }
}

/// Follows a path of field names. The error says at which name it breaks, and which one was meant.
fn find<'a>(
    contract: &'a Contract,
    message: &'a Message,
    path: &[String],
) -> Result<&'a Field, String> {
    let Some((first, rest)) = path.split_first() else {
        return Err(format!("no field of {} is named", message.name));
    };
    let Some(field) = message.field(first) else {
        let hint = did_you_mean(first, message.fields.iter().map(|field| field.name.as_str()));
        return Err(format!("{} has no field \"{first}\"{hint}", message.name));
    };
    if rest.is_empty() {
        return Ok(field);
    }
    match (&field.kind, field.cardinality) {
        (_, Cardinality::Repeated | Cardinality::Map(_)) => Err(format!(
            "\"{first}\" of {} is repeated, so it has no single \"{}\"",
            message.name, rest[0]
        )),
        (Kind::Message(name), Cardinality::Singular) => match contract.message(name) {
            Some(inner) => find(contract, inner, rest),
            None => Err(format!("{name} is not known")),
        },
        _ => Err(format!(
            "\"{first}\" of {} is no message, so it has no \"{}\"",
            message.name, rest[0]
        )),
    }
}

/// Why a field cannot be written as one text, if it cannot. `None` for a single value of a type with
/// a text form.
fn no_text(field: &Field) -> Option<&'static str> {
    match (&field.kind, field.cardinality) {
        (_, Cardinality::Map(_)) => Some("a map"),
        (_, Cardinality::Repeated) => Some("repeated"),
        (Kind::Message(_), _) => Some("a message"),
        _ => None,
    }
}

/// Why a field cannot order messages, if it cannot. Fractions are not compared for equality.
fn no_key(field: &Field) -> Option<&'static str> {
    no_text(field).or(match field.kind {
        Kind::Scalar(Scalar::Float | Scalar::Double) => Some("a fraction"),
        _ => None,
    })
}
