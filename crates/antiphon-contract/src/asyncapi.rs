//! The AsyncAPI 3.0 document of a contract: the topics, and the messages on them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::model::{Contract, Message, MessageBinding};
use crate::openapi::Info;
use crate::schema::Schemas;

/// The AsyncAPI document of all events and commands. The same contract always gives the same
/// document.
///
/// An operation is told from the side of the packages that declare the messages: events are sent,
/// commands are received.
#[must_use]
pub fn document(contract: &Contract, info: Info<'_>) -> Value {
    let mut schemas = Schemas::new(contract);
    let mut topics: BTreeMap<&str, Topic<'_>> = BTreeMap::new();
    for message in contract.messages.values() {
        match &message.binding {
            None => {}
            Some(MessageBinding::Event { topic, .. }) => {
                topics.entry(topic).or_default().events.push(message);
            }
            Some(MessageBinding::Command { destination, .. }) => {
                topics.entry(destination).or_default().commands.push(message);
            }
        }
    }
    let mut channels = Map::new();
    let mut operations = Map::new();
    let mut messages = Map::new();
    for (name, topic) in &topics {
        let all: Vec<&Message> = topic.events.iter().chain(&topic.commands).copied().collect();
        for message in &all {
            messages.insert(message.name.clone(), payload(message, &mut schemas));
        }
        channels.insert((*name).to_owned(), channel(name, &all));
        for (action, some) in [("send", &topic.events), ("receive", &topic.commands)] {
            if !some.is_empty() {
                operations.insert(format!("{action}:{name}"), operation(action, name, some));
            }
        }
    }
    let mut named = schemas.named();
    named.insert("CloudEvent".to_owned(), cloud_event());
    json!({
        "asyncapi": "3.0.0",
        "info": {"title": info.title, "version": info.version},
        "defaultContentType": "application/protobuf",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": named},
    })
}

#[derive(Default)]
struct Topic<'a> {
    events: Vec<&'a Message>,
    commands: Vec<&'a Message>,
}

fn channel(name: &str, messages: &[&Message]) -> Value {
    let references: Map<String, Value> = messages
        .iter()
        .map(|message| {
            let reference = format!("#/components/messages/{}", message.name);
            (message.name.clone(), json!({"$ref": reference}))
        })
        .collect();
    json!({"address": name, "messages": references})
}

fn operation(action: &str, topic: &str, messages: &[&Message]) -> Value {
    let channel = format!("#/channels/{topic}");
    let references: Vec<Value> = messages
        .iter()
        .map(|message| json!({"$ref": format!("{channel}/messages/{}", message.name)}))
        .collect();
    json!({"action": action, "channel": {"$ref": channel}, "messages": references})
}

fn payload<'a>(message: &'a Message, schemas: &mut Schemas<'a>) -> Value {
    let mut document = Map::new();
    document.insert("name".to_owned(), json!(message.name));
    document.insert("title".to_owned(), json!(message.short_name()));
    let mut docs = message.source.docs.clone();
    if let Some(key) = message.binding.as_ref().and_then(MessageBinding::key) {
        let order = format!("In order for each value of `{}`.", key.join("."));
        docs = if docs.is_empty() { order } else { format!("{docs}\n\n{order}") };
    }
    if !docs.is_empty() {
        document.insert("description".to_owned(), json!(docs));
    }
    document.insert("headers".to_owned(), json!({"$ref": "#/components/schemas/CloudEvent"}));
    document.insert("payload".to_owned(), schemas.message(&message.name));
    Value::Object(document)
}

/// The attributes of CloudEvents 1.0 that every message carries.
fn cloud_event() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "The attributes of CloudEvents 1.0, named as each protocol's binding names them.",
        "properties": {
            "specversion": {"const": "1.0"},
            "id": text("A UUID of version 7; the same when the message is sent again."),
            "source": text("Who sent it."),
            "type": text("The full name of the payload's type."),
            "time": {"type": "string", "format": "date-time", "description": "When it happened."},
            "datacontenttype": text("How the payload is written."),
            "partitionkey": text("The value of the key field."),
            "traceparent": text("The trace that it belongs to."),
        },
        "required": ["specversion", "id", "source", "type"],
    })
}
