//! Starting, watching and draining the components of a process.

use std::fmt;
use std::time::Duration;

use antiphon_core::{BoxError, BoxFuture, Component, Health, Shutdown, ShutdownHandle, Stage};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// In the order in which they drain.
const STAGES: [Stage; 5] =
    [Stage::Announce, Stage::Serve, Stage::Consume, Stage::Relay, Stage::Observe];

/// A component, ready to run.
pub(crate) struct Part {
    name: String,
    stage: Stage,
    run: Box<dyn FnOnce(Shutdown) -> BoxFuture<'static, Result<(), BoxError>> + Send>,
}

impl Part {
    pub(crate) fn new<C: Component>(component: C) -> Self {
        Self {
            name: component.name().to_owned(),
            stage: component.stage(),
            run: Box::new(move |shutdown| Box::pin(component.run(shutdown))),
        }
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Part({}, {:?})", self.name, self.stage)
    }
}

/// Why everything ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was asked to, and drained.
    Drained,
    /// It was asked to, and this much did not end in time or was cut by a second signal.
    Cut(Vec<String>),
}

type Ended = (String, Result<(), BoxError>);

/// The running components of one stage.
struct Running {
    stage: Stage,
    handle: ShutdownHandle,
    tasks: JoinSet<Ended>,
    names: Vec<String>,
}

/// Runs all parts until `stop` completes, then drains them stage by stage within `within`. `cut`
/// ends the drain early.
///
/// # Errors
/// A component failed or ended without being asked; the others were drained first.
pub(crate) async fn run(
    parts: Vec<Part>,
    health: &Health,
    stop: impl Future<Output = ()>,
    cut: impl Future<Output = ()>,
    within: Duration,
) -> Result<End, BoxError> {
    let mut stages = start(parts);
    let failure = tokio::select! {
        biased;
        failure = first_end(&mut stages) => Some(failure),
        () = stop => None,
    };
    health.unwell("lifecycle", "the process is draining");
    if let Some(failure) = &failure {
        tracing::error!(%failure, "draining because a component ended");
    } else {
        tracing::info!(within = ?within, "draining");
    }
    let left = drain(&mut stages, cut, Instant::now() + within).await;
    match failure {
        Some(failure) => Err(failure),
        None if left.is_empty() => Ok(End::Drained),
        None => Ok(End::Cut(left)),
    }
}

fn start(parts: Vec<Part>) -> Vec<Running> {
    let mut parts = parts;
    STAGES
        .into_iter()
        .map(|stage| {
            let (handle, shutdown) = ShutdownHandle::new();
            let mut running = Running { stage, handle, tasks: JoinSet::new(), names: Vec::new() };
            for part in parts.extract_if(.., |part| part.stage == stage) {
                let name = part.name.clone();
                running.names.push(name.clone());
                let work = (part.run)(shutdown.clone());
                running.tasks.spawn(async move { (name, work.await) });
            }
            running
        })
        .collect()
}

/// Completes when any component ends, which none may before it is asked to.
async fn first_end(stages: &mut [Running]) -> BoxError {
    std::future::poll_fn(|task| {
        for stage in stages.iter_mut() {
            if let std::task::Poll::Ready(Some(ended)) = stage.tasks.poll_join_next(task) {
                return std::task::Poll::Ready(
                    stage
                        .ended(ended)
                        .unwrap_or_else(|| "a component ended without being asked to".into()),
                );
            }
        }
        std::task::Poll::Pending
    })
    .await
}

impl Running {
    /// Notes that a component ended, and says why if it failed.
    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) -> Option<BoxError> {
        match ended {
            Ok((name, outcome)) => {
                self.names.retain(|running| *running != name);
                outcome.err().map(|error| format!("{name}: {error}").into())
            }
            Err(panic) => Some(format!("a component of {:?} panicked: {panic}", self.stage).into()),
        }
    }

    /// Waits for everything of the stage; what is left after `deadline` is cut.
    async fn drain(&mut self, deadline: Instant) -> Vec<String> {
        self.handle.drain(deadline.saturating_duration_since(Instant::now()));
        while let Ok(ended) = tokio::time::timeout_at(deadline, self.tasks.join_next()).await {
            let Some(ended) = ended else { return Vec::new() };
            if let Some(error) = self.ended(ended) {
                tracing::warn!(%error, "a component failed while it drained");
            }
        }
        self.handle.cut();
        std::mem::take(&mut self.names)
    }
}

/// Drains stage by stage. Each stage may use up the time that is left, but for a share that is kept
/// for those after it. Gives what had to be cut.
async fn drain(
    stages: &mut [Running],
    cut: impl Future<Output = ()>,
    deadline: Instant,
) -> Vec<String> {
    let mut left = Vec::new();
    let in_order = async {
        let count = stages.len();
        for (at, stage) in stages.iter_mut().enumerate() {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let behind = u32::try_from(count - at - 1).unwrap_or(0);
            let kept = remaining / 10 * behind;
            left.extend(stage.drain(Instant::now() + (remaining - kept)).await);
        }
    };
    let finished = tokio::select! {
        () = in_order => true,
        () = cut => false,
    };
    if !finished {
        tracing::warn!("a second signal: stopping at once");
        for stage in stages {
            stage.handle.cut();
            left.append(&mut stage.names);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use parking_lot::Mutex;

    type Log = Arc<Mutex<Vec<&'static str>>>;

    struct Sample {
        name: &'static str,
        stage: Stage,
        takes: Duration,
        log: Log,
    }

    impl Component for Sample {
        fn name(&self) -> &str {
            self.name
        }
        fn stage(&self) -> Stage {
            self.stage
        }
        async fn run(self, shutdown: Shutdown) -> Result<(), BoxError> {
            shutdown.draining().await;
            tokio::time::sleep(self.takes).await;
            self.log.lock().push(self.name);
            Ok(())
        }
    }

    fn sample(name: &'static str, stage: Stage, secs: u64, log: &Log) -> Part {
        Part::new(Sample { name, stage, takes: Duration::from_secs(secs), log: Arc::clone(log) })
    }

    #[tokio::test(start_paused = true)]
    async fn stages_drain_in_order_whatever_the_order_of_adding() {
        let log = Log::default();
        let parts = vec![
            sample("relay", Stage::Relay, 0, &log),
            sample("serve", Stage::Serve, 2, &log),
            sample("consume", Stage::Consume, 1, &log),
        ];
        let never = std::future::pending();
        let end =
            run(parts, &Health::new(), async {}, never, Duration::from_secs(10)).await.unwrap();
        assert_eq!(end, End::Drained);
        assert_eq!(*log.lock(), ["serve", "consume", "relay"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_is_named_and_leaves_time_for_the_rest() {
        let log = Log::default();
        let parts =
            vec![sample("stuck", Stage::Serve, 100, &log), sample("relay", Stage::Relay, 0, &log)];
        let never = std::future::pending();
        let end =
            run(parts, &Health::new(), async {}, never, Duration::from_secs(10)).await.unwrap();
        assert_eq!(end, End::Cut(vec!["stuck".to_owned()]));
        assert_eq!(*log.lock(), ["relay"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_cuts() {
        let log = Log::default();
        let parts = vec![sample("slow", Stage::Serve, 5, &log)];
        let second = tokio::time::sleep(Duration::from_secs(1));
        let end =
            run(parts, &Health::new(), async {}, second, Duration::from_secs(10)).await.unwrap();
        assert_eq!(end, End::Cut(vec!["slow".to_owned()]));
    }

    struct Fails;

    impl Component for Fails {
        fn name(&self) -> &str {
            "fails"
        }
        fn stage(&self) -> Stage {
            Stage::Relay
        }
        async fn run(self, _: Shutdown) -> Result<(), BoxError> {
            Err("disk full".into())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_component_that_ends_early_drains_the_others() {
        let log = Log::default();
        let parts = vec![Part::new(Fails), sample("serve", Stage::Serve, 1, &log)];
        let health = Health::new();
        let never = std::future::pending();
        let error =
            run(parts, &health, std::future::pending(), never, Duration::from_secs(10)).await;
        assert_eq!(error.unwrap_err().to_string(), "fails: disk full");
        assert_eq!(*log.lock(), ["serve"]);
        assert!(!health.is_ready());
    }
}
