//! Our client and our server with those of grpcio (Python), grpc-js (Node) and grpc-go: retries,
//! pushback, deadlines, cancellation and GOAWAY, in both directions.
//!
//! Each test runs once with each of them, against processes of its own. `cargo xtask test` prepares
//! what they need and says in variables where it is.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod contract;
mod inward;
mod ours;
mod outward;
mod process;

/// Makes of each function a module with a test for each of the others.
macro_rules! with_each {
    ($($test:ident),+ $(,)?) => { $(
        mod $test {
            use crate::process::Language;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn grpcio() {
                super::$test(Language::Python).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn grpc_js() {
                super::$test(Language::Node).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn grpc_go() {
                super::$test(Language::Go).await;
            }
        }
    )+ };
}
pub(crate) use with_each;

/// Waits for something that happens soon: sooner than a test may take, and not so soon that a busy
/// machine fails it.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    let limit = std::time::Duration::from_secs(60);
    tokio::time::timeout(limit, what).await.expect("should happen soon")
}

/// Waits until something is so.
pub(crate) async fn until<F: Future<Output = bool>>(mut is_so: impl FnMut() -> F) {
    soon(async {
        while !is_so().await {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}
