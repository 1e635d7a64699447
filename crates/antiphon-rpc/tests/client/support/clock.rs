//! A clock that is moved by hand while real sockets are in use.
//!
//! For tests that begin with `start_paused`. Servers have threads, and clocks, of their own.

use std::pin::pin;
use std::time::Duration;

use tokio::time::advance;

/// Lets the sockets and tasks do what they have to; no time passes for them.
pub(crate) async fn breathe() {
    tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(1))).await.unwrap();
}

/// Waits for something that may need time to pass: a connection looks every millisecond whether it is
/// ready.
pub(crate) async fn moving<T>(what: impl Future<Output = T>) -> T {
    let mut what = pin!(what);
    loop {
        tokio::select! {
            biased;
            done = &mut what => return done,
            () = breathe() => advance(Duration::from_millis(1)).await,
        }
    }
}

/// Keeps the clock, which runs on by itself when no task has anything to do, from doing that while
/// bytes are under way. It stands still as long as this is held.
pub(crate) struct Clock {
    _held: std::sync::mpsc::Sender<()>,
}

impl Clock {
    pub(crate) fn hold() -> Self {
        let (held, released) = std::sync::mpsc::channel();
        tokio::task::spawn_blocking(move || released.recv());
        Self { _held: held }
    }
}
