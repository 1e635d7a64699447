//! The thread that collects spans into batches and sends them.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use super::upload::{Endpoint, UploadError};
use super::{Counts, Flush, otlp};
use crate::settings::{Service, TraceSettings};
use crate::span::Finished;

/// How long one batch is tried before it is given up: longer than a collector takes to restart.
const PATIENCE: Duration = Duration::from_secs(30);
/// The waits between tries: the first, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

pub(super) struct Exporter {
    endpoint: Endpoint,
    service: Service,
    batch_max: usize,
    interval: Duration,
    timeout: Duration,
    counts: Counts,
    /// Whether the last try failed, so that an outage is told once and not once a second.
    failing: bool,
}

impl Exporter {
    pub(super) fn new(
        endpoint: Endpoint,
        service: &Service,
        settings: &TraceSettings,
        counts: Counts,
    ) -> Self {
        Self {
            endpoint,
            service: service.clone(),
            batch_max: settings.batch,
            interval: *settings.interval,
            timeout: *settings.timeout,
            counts,
            failing: false,
        }
    }

    /// Runs on a thread of its own until every sender is gone.
    pub(super) fn spawn(
        self,
        queue: mpsc::Receiver<Finished>,
        flushes: mpsc::UnboundedReceiver<Flush>,
    ) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("antiphon-traces".to_owned())
            .spawn(move || runtime.block_on(self.run(queue, flushes)))?;
        Ok(())
    }

    async fn run(
        mut self,
        mut queue: mpsc::Receiver<Finished>,
        mut flushes: mpsc::UnboundedReceiver<Flush>,
    ) {
        let mut batch = Vec::new();
        loop {
            let flush = tokio::select! {
                Some(flush) = flushes.recv() => Some(flush),
                more = collect(&mut queue, &mut batch, self.batch_max, self.interval) => {
                    // A flush must not wait behind a batch that nobody takes.
                    if more { self.send(&mut batch, PATIENCE, &mut flushes).await } else { None }
                }
            };
            match flush {
                Some(flush) => self.flush(flush, &mut queue, &mut batch).await,
                None if queue.is_closed() && queue.is_empty() && batch.is_empty() => return,
                None => {}
            }
        }
    }

    /// Sends everything that is there, batch by batch.
    async fn flush(
        &mut self,
        flush: Flush,
        queue: &mut mpsc::Receiver<Finished>,
        batch: &mut Vec<Finished>,
    ) {
        // Nobody interrupts a flush.
        let (_never, mut nobody) = mpsc::unbounded_channel();
        loop {
            while batch.len() < self.batch_max
                && let Ok(span) = queue.try_recv()
            {
                batch.push(span);
            }
            let left = flush.until.saturating_duration_since(Instant::now());
            if batch.is_empty() {
                break;
            } else if left.is_zero() {
                self.counts.dropped.inc_by(batch.len() as u64);
                batch.clear();
            } else {
                self.send(batch, left, &mut nobody).await;
            }
        }
        // Who asked may have given up waiting.
        let _ = flush.done.send(());
    }

    /// Sends one batch, trying for as long as `patience` lasts. A flush that is asked for meanwhile is
    /// handed back, with the batch still unsent.
    async fn send(
        &mut self,
        batch: &mut Vec<Finished>,
        patience: Duration,
        flushes: &mut mpsc::UnboundedReceiver<Flush>,
    ) -> Option<Flush> {
        let until = Instant::now() + patience;
        let spans = batch.len() as u64;
        let body = Bytes::from(otlp::request(&self.service, batch));
        let mut wait = WAITS.0;
        loop {
            // Not interrupted: a request that is cut off may have been taken, and would be doubled.
            let timeout = self.timeout.min(patience);
            let uploaded = self.endpoint.upload(body.clone(), timeout).await;
            self.tell(&uploaded);
            match uploaded {
                Ok(()) => {
                    self.counts.exported.inc_by(spans);
                    break;
                }
                Err(UploadError::Again(_, hint)) if Instant::now() + wait < until => {
                    let pause = hint.unwrap_or(wait).min(WAITS.1);
                    tokio::select! {
                        Some(flush) = flushes.recv() => return Some(flush),
                        () = sleep(pause) => {}
                    }
                    wait = (wait * 2).min(WAITS.1);
                }
                Err(_) => {
                    self.counts.dropped.inc_by(spans);
                    break;
                }
            }
        }
        batch.clear();
        None
    }

    /// Tells of the beginning of an outage, and of its end.
    fn tell(&mut self, uploaded: &Result<(), UploadError>) {
        let failing = uploaded.is_err();
        match uploaded {
            Err(error) if !self.failing => tracing::warn!("{error}"),
            Ok(()) if self.failing => tracing::info!("the collector takes spans again"),
            Ok(()) | Err(_) => {}
        }
        self.failing = failing;
    }
}

/// Collects until the batch is full or `interval` has passed since its first span; whether there is
/// anything to send.
///
/// # Cancel safety
/// Safe: what was collected stays in `batch`.
async fn collect(
    queue: &mut mpsc::Receiver<Finished>,
    batch: &mut Vec<Finished>,
    batch_max: usize,
    interval: Duration,
) -> bool {
    if batch.is_empty() {
        match queue.recv().await {
            Some(span) => batch.push(span),
            None => return false,
        }
    }
    let until = Instant::now() + interval;
    while batch.len() < batch_max {
        match timeout_at(until, queue.recv()).await {
            Ok(Some(span)) => batch.push(span),
            Ok(None) | Err(_) => break,
        }
    }
    true
}
