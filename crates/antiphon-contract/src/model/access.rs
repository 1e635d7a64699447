//! Finding things in the model.

use super::{
    Cardinality, Contract, Enum, EnumValue, Field, Kind, Message, MessageBinding, Method, Reason,
    Scalar, Service,
};

impl Contract {
    /// The service of this full name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// The message of this full name.
    #[must_use]
    pub fn message(&self, name: &str) -> Option<&Message> {
        self.messages.get(name)
    }

    /// The enum of this full name.
    #[must_use]
    pub fn enumeration(&self, name: &str) -> Option<&Enum> {
        self.enums.get(name)
    }

    /// The field at the end of a path that begins in a message: `["order", "id"]`. `None` when a name
    /// is unknown, or when a field on the way is not a single message.
    #[must_use]
    pub fn field(&self, message: &Message, path: &[String]) -> Option<&Field> {
        let (first, rest) = path.split_first()?;
        // Taken from the map, so that the answer lives as long as the contract.
        let field = self.messages.get(&message.name)?.field(first)?;
        match (&field.kind, field.cardinality) {
            _ if rest.is_empty() => Some(field),
            (Kind::Message(name), Cardinality::Singular) => {
                self.field(self.messages.get(name)?, rest)
            }
            _ => None,
        }
    }
}

impl Service {
    /// The name without the package: `OrdersService`.
    #[must_use]
    pub fn short_name(&self) -> &str {
        short(&self.name)
    }

    /// The package.
    #[must_use]
    pub fn package(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(package, _)| package)
    }

    /// The method of this name.
    #[must_use]
    pub fn method(&self, name: &str) -> Option<&Method> {
        self.methods.iter().find(|method| method.name == name)
    }
}

impl Message {
    /// The name without the package and without the messages around it.
    #[must_use]
    pub fn short_name(&self) -> &str {
        short(&self.name)
    }

    /// The field of this name, as the contract writes it.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The field of this name, as JSON writes it; proto3 JSON takes the contract's name as well.
    #[must_use]
    pub fn field_by_json_name(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.json_name == name).or_else(|| self.field(name))
    }

    /// Whether it is one of `google.protobuf`'s types with a JSON form of their own.
    #[must_use]
    pub fn is_well_known(&self) -> bool {
        const NAMES: [&str; 15] = [
            "Any",
            "BoolValue",
            "BytesValue",
            "DoubleValue",
            "Duration",
            "FieldMask",
            "FloatValue",
            "Int32Value",
            "Int64Value",
            "ListValue",
            "StringValue",
            "Struct",
            "Timestamp",
            "UInt32Value",
            "UInt64Value",
        ];
        self.name
            .strip_prefix("google.protobuf.")
            .is_some_and(|name| name == "Value" || NAMES.contains(&name))
    }
}

impl MessageBinding {
    /// The path of the field that orders the messages.
    #[must_use]
    pub fn key(&self) -> Option<&[String]> {
        match self {
            Self::Event { key, .. } | Self::Command { key, .. } => key.as_deref(),
        }
    }
}

impl Field {
    /// Whether there may be several values.
    #[must_use]
    pub fn is_repeated(&self) -> bool {
        self.cardinality == Cardinality::Repeated
    }

    /// Whether it is a map.
    #[must_use]
    pub fn is_map(&self) -> bool {
        matches!(self.cardinality, Cardinality::Map(_))
    }
}

impl Reason {
    /// The HTTP status over REST: the one that is declared, or the one of the code as in
    /// `google/rpc/code.proto`.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.http_status.unwrap_or(match self.code {
            1 => 499,
            3 | 9 | 11 => 400,
            4 => 504,
            5 => 404,
            6 | 10 => 409,
            7 => 403,
            8 => 429,
            12 => 501,
            14 => 503,
            16 => 401,
            _ => 500,
        })
    }
}

impl Scalar {
    /// The name in `.proto` files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Uint32 => "uint32",
            Self::Uint64 => "uint64",
            Self::Float => "float",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
        }
    }
}

impl Enum {
    /// The name without the package and without the messages around it.
    #[must_use]
    pub fn short_name(&self) -> &str {
        short(&self.name)
    }

    /// The value of this name.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&EnumValue> {
        self.values.iter().find(|value| value.name == name)
    }
}

fn short(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, short)| short)
}
