//! What the contract says of a message type. Implemented by generated code only.

use buffa::Message as Protobuf;

/// A protobuf message that can travel.
pub trait Payload: Protobuf + Send + Sync + 'static {
    /// The full name of the type: `shop.orders.v1.OrderPlaced`.
    const KIND: &'static str;
}

/// Says what happened. Any number of groups may hear it.
pub trait Event: Payload {
    /// Where events of this aggregate go.
    const TOPIC: &'static str;
    /// The value of the key field: events of one key are handled in order. Empty without a key.
    fn key(&self) -> String;
}

/// Asks one service for something.
pub trait Command: Payload {
    /// The topic that the service reads its commands from.
    const DESTINATION: &'static str;
    /// The value of the key field: commands of one key are handled in order. Empty without a key.
    fn key(&self) -> String;
}
