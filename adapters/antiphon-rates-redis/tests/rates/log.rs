//! What a test's thread writes to the log.

use std::fmt::{Debug, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry;

/// The lines, until this is dropped.
pub(crate) struct Log(Arc<Mutex<Vec<String>>>, #[expect(dead_code, reason = "held")] DefaultGuard);

impl Log {
    /// Keeps what this thread writes from now on.
    pub(crate) fn keep() -> Self {
        let lines = Arc::new(Mutex::default());
        let guard = tracing::subscriber::set_default(registry().with(Lines(Arc::clone(&lines))));
        Self(lines, guard)
    }

    /// How many lines have all these words.
    pub(crate) fn count(&self, words: &[&str]) -> usize {
        let has_all = |line: &&String| words.iter().all(|word| line.contains(word));
        self.0.lock().iter().filter(has_all).count()
    }

    /// All of them.
    pub(crate) fn text(&self) -> String {
        self.0.lock().join("\n")
    }
}

struct Lines(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line(format!("{} ", event.metadata().level()));
        event.record(&mut line);
        self.0.lock().push(line.0);
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, "{}={value:?} ", field.name());
    }
}
