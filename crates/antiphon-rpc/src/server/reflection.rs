//! Reflection (`grpc.reflection.v1` and `v1alpha`), so that tools like grpcurl need no files.
//!
//! The answers come from the `connectrpc-reflection` crate; here it is hosted as one of our services,
//! so that it passes the same layers as every other.

use std::sync::Arc;

use antiphon_core::{BoxFuture, Status};
use bytes::Bytes;
use connectrpc::{CodecFormat, Dispatcher, RequestContext, Router};
use connectrpc_reflection::{FILE_DESCRIPTOR_SET, ReflectionError, Reflector};
use futures_util::{StreamExt, TryStreamExt};
use http::HeaderMap;

use super::health::HealthService;
use super::methods::procedure;
use crate::service::{
    Codec, Encoded, Idempotency, MethodInfo, MethodKind, Service, ServiceInfo, Streaming,
};
use crate::status_wire;

const V1: &str = "grpc.reflection.v1.ServerReflection";
const V1_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

const fn info(name: &'static str, methods: &'static [MethodInfo]) -> ServiceInfo {
    ServiceInfo { name, methods, descriptor_set: FILE_DESCRIPTOR_SET }
}

const fn method(service: &'static str, path: &'static str) -> MethodInfo {
    MethodInfo {
        service,
        name: "ServerReflectionInfo",
        path,
        kind: MethodKind::Bidi,
        idempotency: Idempotency::NoSideEffects,
        timeout: None,
        retry: false,
        hedge: false,
    }
}

static INFO_V1: ServiceInfo =
    info(V1, &[method(V1, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")]);
static INFO_V1_ALPHA: ServiceInfo = info(
    V1_ALPHA,
    &[method(V1_ALPHA, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")],
);

/// One version of the service.
pub(super) struct Reflection {
    info: &'static ServiceInfo,
    router: Arc<Router>,
}

impl Reflection {
    /// Both versions, describing `services` and health.
    ///
    /// # Errors
    /// When a descriptor set of a service cannot be read.
    pub(super) fn new(services: &[Arc<dyn Service>]) -> Result<[Self; 2], ReflectionError> {
        let mut reflector = Reflector::from_descriptor_set_bytes(&HealthService::descriptor_set())?;
        for service in services {
            reflector.add_descriptor_set_bytes(service.info().descriptor_set)?;
        }
        // Descriptor sets hold what was compiled, which may be more than is served.
        let names = services.iter().map(|service| service.info().name).chain([V1, V1_ALPHA]);
        let router = connectrpc_reflection::install(Router::new(), reflector.with_services(names));
        let router = Arc::new(router);
        Ok([&INFO_V1, &INFO_V1_ALPHA].map(|info| Self { info, router: Arc::clone(&router) }))
    }
}

impl Service for Reflection {
    fn info(&self) -> &'static ServiceInfo {
        self.info
    }

    fn unary(
        &self,
        _method: usize,
        _request: Bytes,
        _codec: Codec,
    ) -> BoxFuture<'static, Result<Encoded, Status>> {
        Box::pin(async { Err(Status::unimplemented("the method is not unary")) })
    }

    fn stream(
        &self,
        method: usize,
        requests: Streaming<Bytes>,
        codec: Codec,
    ) -> BoxFuture<'static, Result<Streaming<Encoded>, Status>> {
        let Some(method) = self.info.methods.get(method) else {
            return Box::pin(async { Err(Status::unimplemented("there is no such method")) });
        };
        let format = match codec {
            Codec::Proto => CodecFormat::Proto,
            Codec::Json => CodecFormat::Json,
        };
        let requests = requests.map_err(|status| status_wire::to_connect(&status)).boxed();
        let context = RequestContext::new(HeaderMap::new());
        let answers =
            self.router.call_bidi_streaming(procedure(method.path), context, requests, format);
        Box::pin(async move {
            let answers = answers.await.map_err(|error| status_wire::from_connect(&error))?.body;
            Ok(Streaming::new(answers.map(|answer| match answer {
                Ok(body) => encode(&body.into_contiguous()),
                Err(error) => Err(status_wire::from_connect(&error)),
            })))
        })
    }
}

fn encode(message: &[u8]) -> Result<Encoded, Status> {
    Encoded::build(message.len(), |out| {
        out.extend_from_slice(message);
        Ok(())
    })
}
