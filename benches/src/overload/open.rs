//! Load in an open loop: calls come when they come, whether those before them were answered or not.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use antiphon_core::BoxError;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

const CONNECTIONS: usize = 8;
/// What callers wait at most; an answer that comes later is worth nothing.
const PATIENCE: Duration = Duration::from_secs(1);
const PATH: &str = "/bench.v1.EchoService/Echo";

/// What came of the calls of some time.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// How long the calls took that were answered well and in time, in milliseconds, sorted.
    pub(super) took: Vec<f64>,
    pub(super) refused: u32,
    /// Neither answered in time nor refused.
    pub(super) lost: u32,
}

impl Seen {
    /// The time within which this part of the answers came, in milliseconds.
    pub(super) fn quantile(&self, part: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place in the list"
        )]
        let place = (self.took.len() as f64 * part) as usize;
        self.took.get(place.min(self.took.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }

    fn count(&mut self, answer: Answer, took: Duration) {
        match answer {
            Answer::Good if took <= PATIENCE => self.took.push(took.as_secs_f64() * 1e3),
            Answer::Refused => self.refused += 1,
            Answer::Good | Answer::Lost => self.lost += 1,
        }
    }
}

enum Answer {
    Good,
    Refused,
    Lost,
}

/// Connections to a server, and what is sent over them.
pub(super) struct Load {
    senders: Vec<SendRequest<Full<Bytes>>>,
    to: SocketAddr,
    body: Bytes,
    random: u64,
}

impl Load {
    pub(super) async fn connect(to: SocketAddr, body: Bytes) -> Result<Self, BoxError> {
        let mut senders = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            let io = TokioIo::new(stream);
            let (sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            senders.push(sender);
        }
        Ok(Self { senders, to, body, random: 0x9e37_79b9_7f4a_7c15 })
    }

    /// Calls one after the other, `at_once` at a time: how many are answered in each second.
    pub(super) async fn closed(&self, at_once: usize, time: Duration) -> Result<f64, BoxError> {
        let end = Instant::now() + time;
        let calls = (0..at_once).map(|number| async move {
            let mut good = 0_u32;
            while Instant::now() < end {
                let sender = self.senders[number % CONNECTIONS].clone();
                let answer = call(sender, request(self.to, self.body.clone())?).await;
                good += u32::from(matches!(answer, Answer::Good));
            }
            Ok::<_, BoxError>(good)
        });
        let good: u32 = futures_util::future::try_join_all(calls).await?.into_iter().sum();
        Ok(f64::from(good) / time.as_secs_f64())
    }

    /// Sends so many calls a second, at random times, for `time`, and waits for the answers.
    pub(super) async fn open(&mut self, per_second: f64, time: Duration) -> Result<Seen, BoxError> {
        let seen = Rc::new(RefCell::new(Seen::default()));
        let calls = LocalSet::new();
        calls.run_until(self.send(per_second, time, &seen)).await?;
        calls.await;
        let mut seen = seen.take();
        seen.took.sort_by(f64::total_cmp);
        Ok(seen)
    }

    async fn send(
        &mut self,
        per_second: f64,
        time: Duration,
        seen: &Rc<RefCell<Seen>>,
    ) -> Result<(), BoxError> {
        let begun = Instant::now();
        let (mut due, mut number) = (0.0, 0_usize);
        // All that is due is sent at once; that the machine had no time for the load is not the
        // server's fault, so each call is timed from when it is sent.
        let mut ticks = interval(Duration::from_millis(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = begun.elapsed();
            if now >= time {
                return Ok(());
            }
            while due <= now.as_secs_f64() {
                due += self.pause() / per_second;
                number += 1;
                let sender = self.senders[number % CONNECTIONS].clone();
                let request = request(self.to, self.body.clone())?;
                let (seen, sent) = (Rc::clone(seen), Instant::now());
                tokio::task::spawn_local(async move {
                    let answer = call(sender, request).await;
                    seen.borrow_mut().count(answer, sent.elapsed());
                });
            }
        }
    }

    /// Exponentially distributed around 1, from a seed (xorshift64*, Vigna 2016).
    fn pause(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let bits = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let even = (bits as f64 + 0.5) / (1_u64 << 53) as f64;
        -even.ln()
    }
}

fn request(to: SocketAddr, body: Bytes) -> Result<Request<Full<Bytes>>, BoxError> {
    let request = Request::post(format!("http://{to}{PATH}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "1S");
    Ok(request.body(Full::new(body))?)
}

async fn call(mut sender: SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Answer {
    let answering = async {
        sender.ready().await?;
        let answer = sender.send_request(request).await?;
        let head = answer.headers().get("grpc-status").cloned();
        let body = answer.into_body().collect().await?;
        let status = head.or_else(|| body.trailers()?.get("grpc-status").cloned());
        Ok::<_, hyper::Error>(status)
    };
    match tokio::time::timeout(2 * PATIENCE, answering).await {
        Ok(Ok(Some(status))) if status == "0" => Answer::Good,
        Ok(Ok(Some(status))) if status == "14" => Answer::Refused,
        _ => Answer::Lost,
    }
}
