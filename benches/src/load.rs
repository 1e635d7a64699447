//! The load: connections with calls in flight, as many as asked for, until the time is over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use antiphon_core::BoxError;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// What is called, and how.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) connections: usize,
    pub(crate) streams: usize,
    pub(crate) path: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) body: Bytes,
    /// HTTP/2 with gRPC trailers, or HTTP/1.1.
    pub(crate) grpc: bool,
}

impl Load {
    /// Calls for some time; gives the number of calls that were answered well.
    pub(crate) async fn run(&self, to: SocketAddr, time: Duration) -> Result<u64, BoxError> {
        let calls = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..self.connections {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            if self.grpc {
                let (sender, connection) = hyper::client::conn::http2::handshake(
                    TokioExecutor::new(),
                    TokioIo::new(stream),
                )
                .await?;
                tokio::spawn(connection);
                for _ in 0..self.streams {
                    let (mut sender, load) = (sender.clone(), self.clone());
                    let (calls, stop) = (Arc::clone(&calls), Arc::clone(&stop));
                    tasks.spawn(async move {
                        while !stop.load(Ordering::Relaxed) {
                            sender.ready().await?;
                            load.check(sender.send_request(load.request(to)?).await?).await?;
                            calls.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok::<(), BoxError>(())
                    });
                }
            } else {
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                let (load, calls, stop) = (self.clone(), Arc::clone(&calls), Arc::clone(&stop));
                tasks.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        sender.ready().await?;
                        load.check(sender.send_request(load.request(to)?).await?).await?;
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<(), BoxError>(())
                });
            }
        }
        tokio::time::sleep(time).await;
        stop.store(true, Ordering::Relaxed);
        while let Some(task) = tasks.join_next().await {
            task??;
        }
        Ok(calls.load(Ordering::Relaxed))
    }

    fn request(&self, to: SocketAddr) -> Result<Request<Full<Bytes>>, BoxError> {
        let request = Request::post(if self.grpc {
            format!("http://{to}{}", self.path)
        } else {
            self.path.to_owned()
        });
        let request = request.header("content-type", self.content_type);
        let request = if self.grpc {
            request.header("te", "trailers")
        } else {
            request.header("host", to.to_string())
        };
        Ok(request.body(Full::new(self.body.clone()))?)
    }

    /// A fast wrong answer must not win.
    async fn check(&self, answer: http::Response<hyper::body::Incoming>) -> Result<(), BoxError> {
        let status = answer.status();
        let body = answer.into_body().collect().await?;
        if self.grpc {
            let code = body.trailers().and_then(|trailers| trailers.get("grpc-status"));
            if code.is_none_or(|code| code != "0") {
                return Err(format!("a call failed: {status}, grpc-status {code:?}").into());
            }
        }
        let bytes = body.to_bytes();
        if status != 200 || bytes.len() + 8 < self.body.len() {
            return Err(format!("a call failed: {status}, {} bytes", bytes.len()).into());
        }
        Ok(())
    }
}
