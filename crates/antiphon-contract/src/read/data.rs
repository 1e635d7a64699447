//! Messages, fields and enums.

use std::sync::Arc;

use buffa::editions::{EnumType, FieldPresence};
use buffa_descriptor::generated::descriptor::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto,
};
use buffa_descriptor::{
    FieldDescriptor, FieldKind, MessageDescriptor, OneofDescriptor, ScalarType, SingularKind,
};

use super::{Places, Reader, full_name, join, number, tag};
use crate::error::did_you_mean;
use crate::model::{
    Cardinality, Enum, EnumValue, Field, Kind, Location, Message, MessageBinding, Oneof, Reason,
    Scalar,
};
use crate::options::{self, Options};

impl Reader {
    pub(super) fn message(
        &mut self,
        places: &Places<'_>,
        scope: &str,
        descriptor: &DescriptorProto,
        path: &[i32],
    ) {
        let name = full_name(scope, descriptor.name.as_deref());
        if descriptor.options.as_option().and_then(|options| options.map_entry) == Some(true) {
            return;
        }
        let pool = Arc::clone(&self.pool);
        let Some(linked) = pool.message_by_name(&name) else {
            return;
        };
        let source = places.source(path);
        let options = Options::read(&pool, linked.options());
        let options = self.noted(&source.location, options.map(Some));
        let at = places.option(path, &[tag::MESSAGE_OPTIONS, tag::OPTION_MESSAGE]);
        let binding = options.as_ref().and_then(|options| self.binding(&name, &at, options));
        let (oneofs, groups) = self.oneofs(linked);
        let fields = linked
            .fields()
            .iter()
            .enumerate()
            .map(|(index, field)| {
                let path = join(path, &[tag::MESSAGE_FIELD, number(index)]);
                let oneof = field.oneof_index().and_then(|index| groups[usize::from(index)]);
                self.field(places, field, oneof, &path)
            })
            .collect();
        let deprecated = options.is_some_and(|options| options.standard("deprecated").is_some());
        for (index, nested) in descriptor.nested_type.iter().enumerate() {
            let path = join(path, &[tag::MESSAGE_NESTED, number(index)]);
            self.message(places, &name, nested, &path);
        }
        for (index, nested) in descriptor.enum_type.iter().enumerate() {
            let path = join(path, &[tag::MESSAGE_ENUM, number(index)]);
            self.enumeration(places, &name, nested, &path);
        }
        let message = Message {
            name: name.clone(),
            source,
            fields,
            oneofs,
            binding,
            deprecated,
            binding_at: at,
        };
        self.contract.messages.insert(name, message);
    }

    /// The groups that the contract declares, and for each group of the descriptor its place among
    /// them: an `optional` field is a group of its own in descriptors, and none in the contract.
    fn oneofs(&mut self, message: &MessageDescriptor) -> (Vec<Oneof>, Vec<Option<usize>>) {
        let mut declared = Vec::new();
        let mut places = Vec::new();
        for oneof in message.oneofs() {
            places.push((!oneof.is_synthetic()).then_some(declared.len()));
            if !oneof.is_synthetic() {
                let required = self.required(oneof);
                declared.push(Oneof { name: oneof.name().to_owned(), required });
            }
        }
        (declared, places)
    }

    fn required(&self, oneof: &OneofDescriptor) -> bool {
        Options::read(&self.pool, oneof.options())
            .and_then(|options| options.get::<options::OneofRules>("buf.validate.oneof"))
            .is_ok_and(|rules| rules.is_some_and(|rules| rules.required))
    }

    fn binding(&mut self, name: &str, at: &Location, options: &Options) -> Option<MessageBinding> {
        let read = options.get::<options::MessageBinding>("antiphon.v1.message");
        let binding = self.noted(at, read)?;
        let key =
            |key: String| (!key.is_empty()).then(|| key.split('.').map(str::to_owned).collect());
        match (binding.event, binding.command) {
            (Some(_), Some(_)) => {
                self.error(at.clone(), format!("{name} is both an event and a command"));
                None
            }
            (Some(event), None) => {
                if event.topic.is_empty() {
                    self.error(
                        at.clone(),
                        format!("the event {name} has no topic; add `topic: \"…\"`"),
                    );
                }
                Some(MessageBinding::Event { topic: event.topic, key: key(event.key) })
            }
            (None, Some(command)) => {
                if command.destination.is_empty() {
                    let help = "add `destination: \"…\"`";
                    self.error(
                        at.clone(),
                        format!("the command {name} has no destination; {help}"),
                    );
                }
                let key = key(command.key);
                Some(MessageBinding::Command { destination: command.destination, key })
            }
            (None, None) => {
                let help = "add one, or remove the option";
                self.error(at.clone(), format!("{name} is neither an event nor a command; {help}"));
                None
            }
        }
    }

    fn field(
        &mut self,
        places: &Places<'_>,
        field: &FieldDescriptor,
        oneof: Option<usize>,
        path: &[i32],
    ) -> Field {
        let source = places.source(path);
        let options = Options::read(&self.pool, field.options());
        let options = self.noted(&source.location, options.map(Some));
        let at = places.option(path, &[tag::FIELD_OPTIONS, tag::OPTION_FIELD]);
        let policy = options
            .as_ref()
            .map_or(Ok(None), |options| options.get::<options::FieldPolicy>("antiphon.v1.field"));
        let policy = self.noted(&at, policy);
        let (kind, cardinality) = self.kind(field.kind());
        Field {
            name: field.name().to_owned(),
            json_name: field.json_name().to_owned(),
            number: field.number(),
            kind,
            cardinality,
            explicit_presence: field.presence() != FieldPresence::Implicit,
            oneof,
            sensitive: policy.is_some_and(|policy| policy.sensitive),
            rules: options.as_ref().and_then(|options| options.raw("buf.validate.field").cloned()),
            source,
            deprecated: options.is_some_and(|options| options.standard("deprecated").is_some()),
        }
    }

    fn kind(&self, kind: FieldKind) -> (Kind, Cardinality) {
        match kind {
            FieldKind::Singular(one) => (self.one(one), Cardinality::Singular),
            FieldKind::List(one) => (self.one(one), Cardinality::Repeated),
            FieldKind::Map { key, value } => (self.one(value), Cardinality::Map(scalar(key))),
        }
    }

    fn one(&self, kind: SingularKind) -> Kind {
        match kind {
            SingularKind::Scalar(of) => Kind::Scalar(scalar(of)),
            SingularKind::Enum(of) => Kind::Enum(self.pool.enumeration(of).full_name().to_owned()),
            SingularKind::Message(of) => {
                Kind::Message(self.pool.message(of).full_name().to_owned())
            }
        }
    }

    pub(super) fn enumeration(
        &mut self,
        places: &Places<'_>,
        scope: &str,
        descriptor: &EnumDescriptorProto,
        path: &[i32],
    ) {
        let name = full_name(scope, descriptor.name.as_deref());
        let source = places.source(path);
        let options = Options::read(&self.pool, descriptor.options.as_option());
        let at = places.option(path, &[tag::ENUM_OPTIONS, tag::OPTION_ERRORS]);
        let errors =
            options.and_then(|options| options.get::<options::ErrorReasons>("antiphon.v1.errors"));
        let errors = self.noted(&at, errors).map(|errors| {
            if errors.domain.is_empty() { places.package.to_owned() } else { errors.domain }
        });
        let prefix = format!("{}_", upper_snake(descriptor.name.as_deref().unwrap_or_default()));
        let values = descriptor
            .value
            .iter()
            .enumerate()
            .map(|(index, value)| {
                let path = join(path, &[tag::ENUM_VALUE, number(index)]);
                self.value(places, value, &prefix, errors.is_some(), &path)
            })
            .collect();
        let closed = self
            .pool
            .enum_by_name(&name)
            .is_some_and(|linked| linked.enum_type() == EnumType::Closed);
        let enumeration = Enum { name: name.clone(), source, values, errors, closed };
        self.contract.enums.insert(name, enumeration);
    }

    fn value(
        &mut self,
        places: &Places<'_>,
        value: &EnumValueDescriptorProto,
        prefix: &str,
        is_reason: bool,
        path: &[i32],
    ) -> EnumValue {
        let name = value.name.clone().unwrap_or_default();
        let number = value.number.unwrap_or_default();
        let source = places.source(path);
        let at = places.option(path, &[tag::VALUE_OPTIONS, tag::OPTION_REASON]);
        let options = Options::read(&self.pool, value.options.as_option());
        let option =
            options.and_then(|options| options.get::<options::ErrorReason>("antiphon.v1.reason"));
        let option = self.noted(&at, option);
        let reason = match option {
            Some(option) if is_reason => self.reason(&name, prefix, &at, &option),
            Some(_) => {
                let message = format!(
                    "{name} has (antiphon.v1.reason), but its enum has no (antiphon.v1.errors)"
                );
                self.error(at, message);
                None
            }
            None if is_reason && number != 0 => {
                let help = "add `[(antiphon.v1.reason) = {code: …}]`";
                self.error(
                    source.location.clone(),
                    format!("the reason {name} has no code; {help}"),
                );
                None
            }
            None => None,
        };
        EnumValue { name, number, reason, source }
    }

    fn reason(
        &mut self,
        name: &str,
        prefix: &str,
        at: &Location,
        option: &options::ErrorReason,
    ) -> Option<Reason> {
        let code_name = option.code.as_ref().and_then(|code| code.as_str()).unwrap_or("OK");
        let code = CODES.iter().position(|code| *code == code_name).unwrap_or_default();
        if code == 0 {
            let hint = did_you_mean(code_name, CODES[1..].iter().copied());
            self.error(
                at.clone(),
                format!("the reason {name} has no code; use one of google.rpc.Code but OK{hint}"),
            );
            return None;
        }
        let http_status = match option.http_status.map(u16::try_from) {
            None | Some(Ok(0)) => None,
            Some(Ok(status)) if (400..600).contains(&status) => Some(status),
            Some(_) => {
                let message = format!("the HTTP status of the reason {name} is not 400 to 599");
                self.error(at.clone(), message);
                None
            }
        };
        Some(Reason {
            name: name.strip_prefix(prefix).unwrap_or(name).to_owned(),
            code: u8::try_from(code).unwrap_or_default(),
            code_name: code_name.to_owned(),
            http_status,
        })
    }
}

/// `google.rpc.Code`; the place is the number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn scalar(of: ScalarType) -> Scalar {
    match of {
        ScalarType::Double => Scalar::Double,
        ScalarType::Float => Scalar::Float,
        ScalarType::Int64 | ScalarType::Sfixed64 | ScalarType::Sint64 => Scalar::Int64,
        ScalarType::Uint64 | ScalarType::Fixed64 => Scalar::Uint64,
        ScalarType::Int32 | ScalarType::Sfixed32 | ScalarType::Sint32 => Scalar::Int32,
        ScalarType::Uint32 | ScalarType::Fixed32 => Scalar::Uint32,
        ScalarType::Bool => Scalar::Bool,
        ScalarType::String => Scalar::String,
        ScalarType::Bytes => Scalar::Bytes,
    }
}

/// `OrdersError` as the prefix of its values: `ORDERS_ERROR`.
fn upper_snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    let mut before = '_';
    for character in name.chars() {
        if character.is_ascii_uppercase() && !before.is_ascii_uppercase() && before != '_' {
            snake.push('_');
        }
        snake.push(character.to_ascii_uppercase());
        before = character;
    }
    snake
}
