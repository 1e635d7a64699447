//! Keys of events and commands, and reasons of errors.

use std::collections::BTreeMap;

use super::{Errors, find, no_key};
use crate::model::{Contract, Enum, Message, MessageBinding};

pub(super) fn check(contract: &Contract, errors: &mut Errors) {
    for message in contract.messages.values() {
        key(contract, message, errors);
    }
    reasons(contract, errors);
}

fn key(contract: &Contract, message: &Message, errors: &mut Errors) {
    let Some(path) = message.binding.as_ref().and_then(MessageBinding::key) else {
        return;
    };
    let (name, key) = (&message.name, path.join("."));
    match find(contract, message, path) {
        Err(why) => errors.add(&message.binding_at, format!("the key \"{key}\" of {name}: {why}")),
        Ok(field) => {
            if let Some(what) = no_key(field) {
                let help = "a key is one string, bytes, integer, bool or enum";
                let message_text = format!("the key \"{key}\" of {name} is {what}; {help}");
                errors.add(&message.binding_at, message_text);
            }
        }
    }
}

/// Two reasons of one domain with the same name could not be told apart by a caller.
fn reasons(contract: &Contract, errors: &mut Errors) {
    let mut seen: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    let mut enums: Vec<&Enum> = contract.enums.values().collect();
    enums.sort_by(|left, right| left.source.location.cmp(&right.source.location));
    for enumeration in enums {
        let Some(domain) = &enumeration.errors else {
            continue;
        };
        for value in &enumeration.values {
            let Some(reason) = &value.reason else {
                continue;
            };
            if let Some(other) = seen.insert((domain, &reason.name), &value.name) {
                let message = format!(
                    "the reason \"{}\" of {} is in the domain \"{domain}\" already, as {other}",
                    reason.name, value.name
                );
                errors.add(&value.source.location, message);
            }
        }
    }
}
