//! Calls that go on while something happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use antiphon_core::Status;
use antiphon_rpc::MethodInfo;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::{Fleet, call, soon, until};

/// Calls that go on in the background until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<Status>>>,
    tasks: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(fleet: &Fleet, method: &'static MethodInfo, tasks: usize) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            done: Arc::default(),
            failed: Arc::default(),
            tasks: JoinSet::new(),
        };
        for _ in 0..tasks {
            let channel = fleet.channel.clone();
            let (stop, done) = (Arc::clone(&load.stop), Arc::clone(&load.done));
            let failed = Arc::clone(&load.failed);
            load.tasks.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    match call(&channel, method).await {
                        Ok(_) => done.fetch_add(1, Ordering::SeqCst),
                        Err(status) => {
                            failed.lock().push(status);
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            0
                        }
                    };
                }
            });
        }
        load
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }

    /// Lets so many more calls succeed.
    pub(crate) async fn more(&self, calls: usize) {
        let goal = self.done() + calls;
        until(|| self.done() >= goal).await;
    }

    pub(crate) async fn stop(self) -> Vec<Status> {
        self.stop.store(true, Ordering::SeqCst);
        soon(self.tasks.join_all()).await;
        std::mem::take(&mut *self.failed.lock())
    }
}
