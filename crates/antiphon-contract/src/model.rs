//! What a contract says, in one model.
//!
//! Everything is named by its full name without a leading dot (`shop.orders.v1.Order`); fields are
//! named as in the contract (`customer_id`), and as in JSON where that is said (`customerId`).
//! A [`Contract`] that exists is consistent: every name in it leads somewhere, every template fits
//! its message, no two routes collide.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::template::Template;

mod access;

/// The services, messages and enums of a set of `.proto` files and of everything they import.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Contract {
    /// The services, in the order of their files.
    pub services: Vec<Service>,
    /// The messages by full name, nested ones included, entries of maps left out.
    pub messages: BTreeMap<String, Message>,
    /// The enums by full name, nested ones included.
    pub enums: BTreeMap<String, Enum>,
}

/// A service.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Service {
    /// The full name: `shop.orders.v1.OrdersService`.
    pub name: String,
    /// Where it is declared, and what is written above it.
    pub source: Source,
    /// The methods, in their order.
    pub methods: Vec<Method>,
}

/// A method of a service.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Method {
    /// The name: `PlaceOrder`.
    pub name: String,
    /// Where it is declared, and what is written above it.
    pub source: Source,
    /// Who streams.
    pub kind: MethodKind,
    /// The full name of the request message.
    pub input: String,
    /// The full name of the answer message.
    pub output: String,
    /// What a second call does.
    pub idempotency: Idempotency,
    /// The time a call may take.
    pub timeout: Option<Duration>,
    /// The HTTP status of a good answer over REST.
    pub success_status: u16,
    /// The `Location` header of a good answer over REST; its variables are fields of the answer.
    pub location: Option<Template>,
    /// Clients may try again whatever `idempotency` says.
    pub retry: bool,
    /// Clients may ask a second instance before the first has answered.
    pub hedge: bool,
    /// What callers may count on.
    pub objective: Option<Objective>,
    /// How it is reached over REST: the binding itself, then the additional ones.
    pub bindings: Vec<HttpBinding>,
    /// Whether the contract advises against it.
    pub deprecated: bool,
    /// Where its routes are written.
    pub(crate) http_at: Location,
    /// Where its policy is written.
    pub(crate) policy_at: Location,
}

/// Who streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MethodKind {
    /// One request, one answer.
    Unary,
    /// One request, many answers.
    ServerStream,
    /// Many requests, one answer.
    ClientStream,
    /// Many requests, many answers.
    Bidi,
}

/// What a second call with the same request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Idempotency {
    /// Nobody knows.
    Unknown,
    /// Nothing is changed by any call.
    NoSideEffects,
    /// The second call changes nothing more.
    Idempotent,
    /// The caller's `idempotency-key` makes it so.
    ByKey,
}

/// What callers of a method may count on.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Objective {
    /// The part of the calls that succeed, between 0 and 1.
    pub availability: Option<f64>,
    /// The time within which [`quantile`](Self::quantile) of the calls are answered.
    pub latency: Option<Duration>,
    /// The part of the calls that are answered within [`latency`](Self::latency).
    pub quantile: f64,
}

/// One route of a method over REST.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HttpBinding {
    /// The HTTP method in capitals; `*` for any.
    pub method: String,
    /// The path.
    pub template: Template,
    /// What of the request is the body.
    pub body: Body,
    /// The field of the answer that is sent instead of the whole answer.
    pub response_body: Option<String>,
}

/// What of a request message is the HTTP body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing; what is not in the path is in the query.
    None,
    /// Everything that is not in the path; there is no query.
    All,
    /// This field of the request message; the rest is in the query.
    Field(String),
}

/// A message type.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Message {
    /// The full name.
    pub name: String,
    /// Where it is declared, and what is written above it.
    pub source: Source,
    /// The fields, in the order of the contract.
    pub fields: Vec<Field>,
    /// Groups of fields of which at most one is set.
    pub oneofs: Vec<Oneof>,
    /// Whether it is an event or a command.
    pub binding: Option<MessageBinding>,
    /// Whether the contract advises against it.
    pub deprecated: bool,
    /// Where [`binding`](Self::binding) is written.
    pub(crate) binding_at: Location,
}

/// Fields of which at most one is set.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Oneof {
    /// The name.
    pub name: String,
    /// Whether one of them must be set (`buf.validate`).
    pub required: bool,
}

/// What a message is, besides data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageBinding {
    /// It says what happened.
    Event {
        /// Where events of this aggregate go.
        topic: String,
        /// The path of the field that orders them.
        key: Option<Vec<String>>,
    },
    /// It asks for something.
    Command {
        /// The topic that the service reads its commands from.
        destination: String,
        /// The path of the field that orders them.
        key: Option<Vec<String>>,
    },
}

/// A field of a message.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Field {
    /// The name in the contract: `customer_id`.
    pub name: String,
    /// The name in JSON: `customerId`.
    pub json_name: String,
    /// The number on the wire.
    pub number: u32,
    /// What one value is.
    pub kind: Kind,
    /// How many values there are.
    pub cardinality: Cardinality,
    /// Whether "not set" differs from the default value.
    pub explicit_presence: bool,
    /// The place in [`Message::oneofs`] of the group that it belongs to.
    pub oneof: Option<usize>,
    /// Never shown in logs.
    pub sensitive: bool,
    /// The rules of `buf.validate`, in their JSON form: `{"string": {"minLen": "1"}}`.
    pub rules: Option<Value>,
    /// Where it is declared, and what is written above it.
    pub source: Source,
    /// Whether the contract advises against it.
    pub deprecated: bool,
}

/// What one value of a field is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number, a text, bytes or a truth.
    Scalar(Scalar),
    /// An enum with this full name.
    Enum(String),
    /// A message with this full name.
    Message(String),
}

/// How many values a field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cardinality {
    /// One at most.
    Singular,
    /// Any number, in order.
    Repeated,
    /// Any number, each under a key of this type.
    Map(Scalar),
}

/// The scalar types. Kinds of integers that differ only on the wire are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named as in protobuf")]
pub enum Scalar {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Float,
    Double,
    String,
    Bytes,
}

/// An enum.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Enum {
    /// The full name.
    pub name: String,
    /// Where it is declared, and what is written above it.
    pub source: Source,
    /// The values, in the order of the contract.
    pub values: Vec<EnumValue>,
    /// The domain of its reasons, when it lists the reasons for which a service refuses.
    pub errors: Option<String>,
    /// Whether only the listed numbers are values.
    pub closed: bool,
}

/// A value of an enum.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EnumValue {
    /// The name: `ORDERS_ERROR_UNKNOWN_SKU`.
    pub name: String,
    /// The number.
    pub number: i32,
    /// What it means to a caller, when the enum lists reasons.
    pub reason: Option<Reason>,
    /// Where it is declared, and what is written above it.
    pub source: Source,
}

/// A reason for which a service refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reason {
    /// The stable reason, without the prefix of the enum: `UNKNOWN_SKU`.
    pub name: String,
    /// The number of the gRPC code, 1 to 16.
    pub code: u8,
    /// The name of the gRPC code: `INVALID_ARGUMENT`.
    pub code_name: String,
    /// The HTTP status over REST, where it is not the one of the code.
    pub http_status: Option<u16>,
}

/// Where something is declared, and what the author wrote about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Source {
    /// The file and the place in it.
    pub location: Location,
    /// The comment above it, without comment signs; empty without one.
    pub docs: String,
}

/// A place in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The name of the file as imports name it: `shop/orders/v1/orders.proto`.
    pub file: String,
    /// The line, from 1; 0 when the descriptor set has no source information.
    pub line: u32,
    /// The column, from 1.
    pub column: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}:{}", self.file, self.column),
        }
    }
}
