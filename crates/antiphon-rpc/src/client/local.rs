//! Calling a service of the same process.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use antiphon_core::{Context, SpanId, Status};
use futures_util::FutureExt;
use tokio::time::Instant;

use crate::service::{MethodInfo, MethodKind};

/// How long a call may take when neither the caller nor the contract says.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Calls a handler of the same process: with a context of its own below the caller's, within the
/// deadline, and with a panic turned into [`antiphon_core::Code::Internal`], as over the network. No
/// byte is encoded. Validation is the generated client's first step.
///
/// # Errors
/// What the handler returns, or `DEADLINE_EXCEEDED`.
///
/// # Cancel safety
/// Dropping the future drops the handler's.
pub async fn local<Req, Res, Fut>(
    method: &'static MethodInfo,
    idempotency_key: Option<&str>,
    request: Req,
    handler: impl FnOnce(Req) -> Fut,
) -> Result<Res, Status>
where
    Fut: Future<Output = Result<Res, Status>>,
{
    let mut context = callee_context(method, TIMEOUT);
    if let Some(key) = idempotency_key {
        context = context.with_idempotency_key(key);
    }
    if context.is_expired() {
        return Err(Status::deadline_exceeded());
    }
    let call = context.sync_scope(|| handler(request));
    let call = AssertUnwindSafe(call).catch_unwind();
    context
        .run(async {
            match call.await {
                Ok(answer) => answer,
                Err(panic) => Err(panicked(method, panic.as_ref())),
            }
        })
        .await
}

/// The context of a call to `method`, made from the current one. Streams live as long as the caller
/// wants; a unary call always has a deadline.
fn callee_context(method: &MethodInfo, timeout: Duration) -> Context {
    let context = Context::current().without_idempotency_key();
    let trace = context.trace().child(SpanId::random());
    with_timeout(context.with_trace(trace), method, timeout)
}

/// Bounds the deadline by the contract's timeout, and a unary call by `timeout` if there is none.
pub(super) fn with_timeout(context: Context, method: &MethodInfo, timeout: Duration) -> Context {
    let bound = match method.kind {
        MethodKind::Unary => Some(method.timeout.unwrap_or(timeout)),
        MethodKind::ServerStream | MethodKind::ClientStream | MethodKind::Bidi => method.timeout,
    };
    match bound {
        Some(bound) => context.with_deadline(Instant::now() + bound),
        None => context,
    }
}

fn panicked(method: &MethodInfo, panic: &(dyn std::any::Any + Send)) -> Status {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("the panic has no message");
    tracing::error!(rpc.method = method.path, panic = text, "a handler panicked");
    Status::internal(format!("the handler of {} panicked: {text}", method.path))
}
