//! The health service of gRPC (`grpc.health.v1`), answered from [`Health`].
//!
//! The process is one whole: every service it serves has the same answer, and so has "".

use std::sync::Arc;

use antiphon_core::{BoxFuture, Health, Status};
use buffa::Message;
use buffa_descriptor::generated::descriptor::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::fields::{Fields, Value};
use crate::service::{
    Codec, Encoded, Idempotency, MethodInfo, MethodKind, Service, ServiceInfo, Streaming,
};

const SERVICE: &str = "grpc.health.v1.Health";
const CHECK: usize = 0;
const WATCH: usize = 1;

static INFO: ServiceInfo = ServiceInfo {
    name: SERVICE,
    methods: &[
        MethodInfo {
            service: SERVICE,
            name: "Check",
            path: "/grpc.health.v1.Health/Check",
            kind: MethodKind::Unary,
            idempotency: Idempotency::NoSideEffects,
            timeout: None,
            retry: false,
            hedge: false,
        },
        MethodInfo {
            service: SERVICE,
            name: "Watch",
            path: "/grpc.health.v1.Health/Watch",
            kind: MethodKind::ServerStream,
            idempotency: Idempotency::NoSideEffects,
            timeout: None,
            retry: false,
            hedge: false,
        },
    ],
    descriptor_set: &[],
};

/// `HealthCheckResponse.ServingStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up = 1,
    Down = 2,
    Unknown = 3,
}

impl State {
    const fn of(ready: bool) -> Self {
        if ready { Self::Up } else { Self::Down }
    }

    fn encode(self, codec: Codec) -> Result<Encoded, Status> {
        let name = match self {
            Self::Up => "SERVING",
            Self::Down => "NOT_SERVING",
            Self::Unknown => "SERVICE_UNKNOWN",
        };
        Encoded::build(32, |out| {
            match codec {
                Codec::Proto => out.extend_from_slice(&[0x08, self as u8]),
                Codec::Json => {
                    out.extend_from_slice(format!(r#"{{"status":"{name}"}}"#).as_bytes())
                }
            }
            Ok(())
        })
    }
}

/// The service.
pub(super) struct HealthService {
    health: Health,
    served: Arc<[&'static str]>,
}

impl HealthService {
    pub(super) fn new(health: &Health, services: &[Arc<dyn Service>]) -> Self {
        let served = services.iter().map(|service| service.info().name).chain(["", SERVICE]);
        Self { health: health.clone(), served: served.collect() }
    }

    /// The descriptor set of `grpc/health/v1/health.proto`.
    pub(super) fn descriptor_set() -> Vec<u8> {
        FileDescriptorSet { file: vec![file()], ..FileDescriptorSet::default() }.encode_to_vec()
    }

    fn check(&self, request: &[u8], codec: Codec) -> Result<Encoded, Status> {
        let name = service_name(request, codec)?;
        if self.served.contains(&name.as_str()) {
            State::of(self.health.is_ready()).encode(codec)
        } else {
            Err(Status::not_found(format!("no service {name:?} is served here")))
        }
    }

    /// The state now and after every change. A service that is not known now stays unknown: what a
    /// process serves does not change while it runs.
    fn watch(&self, request: &[u8], codec: Codec) -> Result<Streaming<Encoded>, Status> {
        let name = service_name(request, codec)?;
        if !self.served.contains(&name.as_str()) {
            let unknown = State::Unknown.encode(codec);
            return Ok(Streaming::new(stream::iter([unknown]).chain(stream::pending())));
        }
        let mut states = self.health.watch();
        states.mark_changed();
        Ok(Streaming::new(stream::unfold(states, move |mut states| async move {
            states.changed().await.ok()?;
            let ready = *states.borrow_and_update();
            Some((State::of(ready).encode(codec), states))
        })))
    }
}

impl Service for HealthService {
    fn info(&self) -> &'static ServiceInfo {
        &INFO
    }

    fn unary(
        &self,
        method: usize,
        request: Bytes,
        codec: Codec,
    ) -> BoxFuture<'static, Result<Encoded, Status>> {
        let answer = match method {
            CHECK => self.check(&request, codec),
            _ => Err(Status::unimplemented("the method is not unary")),
        };
        Box::pin(async { answer })
    }

    fn stream(
        &self,
        method: usize,
        mut requests: Streaming<Bytes>,
        codec: Codec,
    ) -> BoxFuture<'static, Result<Streaming<Encoded>, Status>> {
        let service = Self { health: self.health.clone(), served: Arc::clone(&self.served) };
        Box::pin(async move {
            if method != WATCH {
                return Err(Status::unimplemented("the method is unary"));
            }
            let none = || Err(Status::invalid_argument("there is no request"));
            let request = requests.next().await.unwrap_or_else(none)?;
            service.watch(&request, codec)
        })
    }
}

/// The `service` of a `HealthCheckRequest`.
fn service_name(request: &[u8], codec: Codec) -> Result<String, Status> {
    let mut name = String::new();
    match codec {
        Codec::Proto => {
            for field in Fields(request) {
                match field {
                    Some((1, Value::Bytes(text))) => name = String::from_utf8_lossy(text).into(),
                    Some(_) => {}
                    None => return Err(Status::invalid_argument("not a HealthCheckRequest")),
                }
            }
        }
        Codec::Json => {
            let json: serde_json::Value = serde_json::from_slice(request)
                .map_err(|error| Status::invalid_argument(format!("not JSON: {error}")))?;
            if let Some(service) = json.get("service") {
                let text = service.as_str();
                name = text
                    .ok_or_else(|| Status::invalid_argument("`service` must be a text"))?
                    .to_owned();
            }
        }
    }
    Ok(name)
}

/// The file as `protoc` describes it, for reflection.
fn file() -> FileDescriptorProto {
    let text = |text: &str| Some(text.to_owned());
    let field = |name: &str, of: Type, type_name: Option<&str>| FieldDescriptorProto {
        name: text(name),
        json_name: text(name),
        number: Some(1),
        label: Some(Label::LABEL_OPTIONAL),
        r#type: Some(of),
        type_name: type_name.map(str::to_owned),
        ..FieldDescriptorProto::default()
    };
    let method = |info: &MethodInfo| MethodDescriptorProto {
        name: text(info.name),
        input_type: text(".grpc.health.v1.HealthCheckRequest"),
        output_type: text(".grpc.health.v1.HealthCheckResponse"),
        server_streaming: Some(info.kind == MethodKind::ServerStream),
        ..MethodDescriptorProto::default()
    };
    let value = |(number, name): (i32, &str)| EnumValueDescriptorProto {
        name: text(name),
        number: Some(number),
        ..EnumValueDescriptorProto::default()
    };
    let states = [(0, "UNKNOWN"), (1, "SERVING"), (2, "NOT_SERVING"), (3, "SERVICE_UNKNOWN")];
    let status = ".grpc.health.v1.HealthCheckResponse.ServingStatus";
    FileDescriptorProto {
        name: text("grpc/health/v1/health.proto"),
        package: text("grpc.health.v1"),
        syntax: text("proto3"),
        message_type: vec![
            DescriptorProto {
                name: text("HealthCheckRequest"),
                field: vec![field("service", Type::TYPE_STRING, None)],
                ..DescriptorProto::default()
            },
            DescriptorProto {
                name: text("HealthCheckResponse"),
                field: vec![field("status", Type::TYPE_ENUM, Some(status))],
                enum_type: vec![EnumDescriptorProto {
                    name: text("ServingStatus"),
                    value: states.map(value).to_vec(),
                    ..EnumDescriptorProto::default()
                }],
                ..DescriptorProto::default()
            },
        ],
        service: vec![ServiceDescriptorProto {
            name: text("Health"),
            method: INFO.methods.iter().map(method).collect(),
            ..ServiceDescriptorProto::default()
        }],
        ..FileDescriptorProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use antiphon_core::Code;

    fn service(health: &Health) -> HealthService {
        HealthService::new(health, &[])
    }

    #[tokio::test]
    async fn checks_follow_the_health_of_the_process() {
        let health = Health::new();
        let service = service(&health);
        let check = |request: &'static [u8], codec| {
            let answer = service.unary(CHECK, Bytes::from_static(request), codec);
            async { answer.await.map(|answer| answer.message()).map_err(|status| status.code()) }
        };
        assert_eq!(check(b"", Codec::Proto).await.unwrap(), &[8, 1][..]);
        health.unwell("store", "gone");
        assert_eq!(check(b"", Codec::Proto).await.unwrap(), &[8, 2][..]);
        assert_eq!(check(b"{}", Codec::Json).await.unwrap(), r#"{"status":"NOT_SERVING"}"#);
        assert_eq!(check(b"\x0a\x01x", Codec::Proto).await, Err(Code::NotFound));
        assert_eq!(check(b"\x0a\x09x", Codec::Proto).await, Err(Code::InvalidArgument));
        assert_eq!(check(b"{\"service\":1}", Codec::Json).await, Err(Code::InvalidArgument));
    }

    #[tokio::test]
    async fn a_watch_tells_the_state_now_and_every_change() {
        let health = Health::new();
        let requests = Streaming::new(stream::iter([Ok(Bytes::new())]));
        let mut states = service(&health).stream(WATCH, requests, Codec::Proto).await.unwrap();
        let mut next = async || states.next().await.unwrap().unwrap().message()[1];
        assert_eq!(next().await, 1);
        health.unwell("store", "gone");
        assert_eq!(next().await, 2);
        health.well("store");
        assert_eq!(next().await, 1);
    }
}
