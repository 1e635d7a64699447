//! The reader's end of a member.

use std::future::poll_fn;
use std::sync::Arc;

use antiphon_core::BoxFuture;
use antiphon_messaging::{Fetched, Source};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::held::{End, Held};

/// A member of a group, fetching. What it holds is in [`Held`], what it needs of the server is done
/// by the member's task.
pub(crate) struct Reader {
    held: Arc<Held>,
    /// Becomes `true` when the task is done with everything.
    done: watch::Receiver<bool>,
}

/// Marks that somebody waits for deliveries, for as long as it lives.
struct Fetching<'a>(&'a Held);

impl Reader {
    pub(crate) fn new(held: Arc<Held>, done: watch::Receiver<bool>) -> Self {
        Self { held, done }
    }
}

impl Source for Reader {
    fn fetch(&mut self, credits: usize) -> BoxFuture<'_, Fetched> {
        Box::pin(async move {
            let _fetching = Fetching::begin(&self.held);
            poll_fn(|context| self.held.poll_fetch(credits, context)).await
        })
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        self.held.lock().closing = true;
        self.held.changed.notify_one();
        Box::pin(async move {
            // An error says that the task is no more, and with it the membership.
            let _ = self.done.wait_for(|done| *done).await;
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.held.lock().end(End::Left);
        self.held.changed.notify_one();
    }
}

impl<'a> Fetching<'a> {
    fn begin(held: &'a Held) -> Self {
        held.lock().idle_since = None;
        Self(held)
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.0.lock().idle_since = Some(Instant::now());
    }
}
